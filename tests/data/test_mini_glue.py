"""Mini-GLUE: the shape of GLUE, labels that follow from the text, the same bytes everywhere."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.sparse import hstack
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from scripts import mini_glue
from scripts.mini_glue.__main__ import SHIPPED, write
from scripts.mini_glue.corpus import passages
from spafit_bench.base.errors import UserError
from spafit_bench.data.tasks import TASKS

STRUCTURED = ("cola", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli")
"""Tasks whose labels hang on order and on what two texts share."""
SHA256 = {
    "cola": "6758b5ec874c8cdd41ada14d97abdf12011ad6facd470c527967ad8e2d4b7de0",
    "sst2": "73ccbb163a04eae83c409b188406f4f7d1554d9e9cab3b88b100cf5cdf1dd113",
    "mrpc": "c447b5ac28783c522de02f9bdb338d51fcc6d6faf8110e543b34cc78d9ef070e",
    "stsb": "69c68e1a477538bb58f55ea8c858c36c6b3908295e08b500aad4cc287a7d94db",
    "qqp": "2bf6baa2901023afbd91cb71269ed7766c1ab1d483c932bee321608daa6c747a",
    "mnli": "58719feee6b0e5b711d12633739e31278c98d2a7bf56d093f086280b9d486ec2",
    "qnli": "b9f9e86bb6667817f102dbd24b8489bbd7495a93004aa4f62ed03dd5acc3f854",
    "rte": "6dd127c140d0128dec7ed1f6df689245e7d03240c77fe2cfc6dd6c213c6ce8a1",
    "wnli": "dad2f48e2e9e7ff8d0934f8b76ca377cf740654b6d8bbf52cd5cea99041af9de",
    "ax": "84fcfc44aeb81be3ff65ee48589e96974142ddd9a61e3de3c890a4ee452714ff",
}


generate = functools.cache(mini_glue.generate)


def canonical_sha256(task):
    """Hash a task's splits as JSON with sorted keys and no spaces."""
    text = json.dumps(generate(task), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def columns(task):
    """Return the text columns of a task or of AX."""
    return TASKS["mnli" if task == "ax" else task].text_columns


def labelled(task):
    """Return every row of a task whose label can be seen."""
    return [row for rows in generate(task).values() for row in rows if row["label"] != -1]


def negations(text):
    """Count the words that deny."""
    return len(re.findall(r"\b(?:not|never)\b", text))


@pytest.mark.parametrize("task", SHA256)
def test_bytes_are_pinned(task):
    """A task's rows are the same on every machine and in every version of Python."""
    assert canonical_sha256(task) == SHA256[task]


def test_the_shipped_rows_are_the_generators(tmp_path):
    """Every shipped file has the generated rows, and the same bytes with the same pyarrow."""
    write(tmp_path)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.parquet"))
    assert names == sorted(path.relative_to(SHIPPED) for path in SHIPPED.rglob("*.parquet"))
    for name in names:
        written, shipped = tmp_path / name, SHIPPED / name
        assert pq.read_table(written).equals(pq.read_table(shipped)), name
        if pq.read_metadata(shipped).created_by == pq.read_metadata(written).created_by:
            assert written.read_bytes() == shipped.read_bytes(), name


@pytest.mark.parametrize("name", TASKS)
def test_splits_columns_and_labels_are_glues(name):
    """Splits, columns, types and labels are those of the hub's data set."""
    task = TASKS[name]
    splits = generate(name)
    tests = {test.split for test in task.test_sets if test.config is None}
    assert set(splits) == {"train", *task.dev_splits, *tests}
    assert 400 <= len(splits["train"]) <= 2000
    for split, rows in splits.items():
        assert len(rows) >= 200
        assert [row["idx"] for row in rows] == list(range(len(rows)))
        labels = {row["label"] for row in rows}
        assert all(list(row) == [*task.text_columns, "label", "idx"] for row in rows)
        assert all(type(label) is (float if task.is_regression else int) for label in labels)
        if split in tests:
            assert labels == {-1}
        elif task.label_range:
            low, high = task.label_range
            assert low == min(labels)
            assert high == max(labels)
        else:
            assert labels == set(range(task.num_labels))


def test_ax_is_a_test_set_with_mnlis_columns():
    """AX has a test split alone, with hidden labels."""
    splits = generate("ax")
    assert list(splits) == ["test"]
    assert all(list(row) == ["premise", "hypothesis", "label", "idx"] for row in splits["test"])
    assert {row["label"] for row in splits["test"]} == {-1}


def test_unknown_task_is_a_user_error():
    """A misspelt task is answered with the nearest name."""
    with pytest.raises(UserError, match="did you mean 'mrpc'"):
        generate("mprc")


@pytest.mark.parametrize("task", [*TASKS, "ax"])
def test_no_text_is_on_both_sides_of_a_split(task):
    """No row occurs twice, in either order of its texts, within a split or across."""
    texts = [
        tuple(sorted(row[column] for column in columns(task)))
        for rows in generate(task).values()
        for row in rows
    ]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("task", [*TASKS, "ax"])
def test_texts_are_cased_sentences(task):
    """Texts begin with a capital, end with a mark, have one space between words, and differ."""
    for rows in generate(task).values():
        for row in rows:
            texts = [row[column] for column in columns(task)]
            assert all(re.fullmatch(r"[A-Z][A-Za-z,. ]*[.?]", text) for text in texts), row
            assert all("  " not in text and " ." not in text for text in texts), row
            assert len(set(texts)) == len(texts), row


@pytest.mark.parametrize(
    ("task", "low", "high"),
    [
        ("cola", 0.60, 0.72),
        ("sst2", 0.50, 0.60),
        ("mrpc", 0.57, 0.68),
        ("qqp", 0.55, 0.66),
        ("mnli", 0.33, 0.40),
        ("qnli", 0.50, 0.56),
        ("rte", 0.50, 0.56),
        ("wnli", 0.50, 0.58),
    ],
)
def test_majority_class_is_realistic(task, low, high):
    """The majority class of train is about as large as it is in GLUE."""
    counts = Counter(row["label"] for row in generate(task)["train"])
    assert low <= max(counts.values()) / counts.total() <= high


def test_mnli_dev_sets_are_of_different_genres():
    """The mismatched split speaks of things that train does not."""
    splits = generate("mnli")
    words = {
        split: {word for row in rows for word in re.findall(r"\w+", row["premise"])}
        for split, rows in splits.items()
    }
    assert {"violin", "laboratory", "boxer"} <= words["validation_mismatched"]
    assert not {"violin", "laboratory", "boxer"} & (words["train"] | words["validation_matched"])


def read_polarity(clause):
    """Return whether a clause praises: its last word of opinion, turned around by a denial."""
    praise = "moving funny wonderful charming great clever elegant gripping fresh"
    verbs = {"loved": 1, "love": 1, "enjoyed": 1, "enjoy": 1, "admired": 1, "admire": 1,
             "hated": 0, "hate": 0, "disliked": 0, "dislike": 0, "regretted": 0,
             "regret": 0}  # fmt: skip
    words = clause.rstrip(".").split()
    opinions = [verbs[word] for word in words if word in verbs]
    good = bool(opinions[0]) if opinions else words[-1] in praise.split()
    return good != bool(re.search(r"\b(?:not|never|hardly|far from)\b", clause))


def test_sentiment_is_that_of_the_main_clause():
    """Another reader, with rules of its own, finds SST-2's labels in the texts."""
    for row in labelled("sst2"):
        text = row["sentence"]
        if ", but " in text:
            main = text.split(", but ")[1]
        elif text.startswith("Although"):
            main = text.split(", ")[1]
        else:
            main = text.split(" although ")[0]
        assert row["label"] == read_polarity(main), row


def test_a_denial_of_one_sentence_alone_is_never_a_paraphrase():
    """Where one of two texts denies, MRPC and QQP call them different, and MNLI contradictory."""
    for task, label in (("mrpc", 0), ("qqp", 0), ("mnli", 2)):
        first, second = columns(task)
        odd = [row for row in labelled(task) if negations(row[first]) != negations(row[second])]
        assert len(odd) > 40
        assert {row["label"] for row in odd} == {label}


def who_did_it_to_whom(text):
    """Return agent, patient of `A verbed B.` or `B was verbed by A.`; None for other sentences."""
    someone = r"((?:[Tt]he )?\w+)"
    if match := re.fullmatch(rf"{someone} was (?!not|never)\w+ by {someone}\.", text):
        return match[2].lower(), match[1].lower()
    if match := re.fullmatch(rf"{someone} (?!was|did|never)\w+ {someone}\.", text):
        return match[1].lower(), match[2].lower()
    return None


def test_role_swaps_are_never_paraphrases():
    """That A did it to B and that B did it to A are different in MRPC, and both occur."""
    swapped = 0
    for row in labelled("mrpc"):
        first, second = (who_did_it_to_whom(row[column]) for column in columns("mrpc"))
        if first and second and first == second[::-1]:
            swapped += 1
            assert row["label"] == 0, row
    assert swapped > 5


def test_a_pronoun_means_what_its_reason_says():
    """In WNLI one verb and one reason always mean the same one of two."""
    pattern = re.compile(
        r"(?P<first>(?:The )?\w+) (?P<did>did not |was not |was )?(?P<verb>\w+)(?: in)?"
        r"(?P<by> by)? (?P<second>(?:the )?\w+) because \w+ was (?P<reason>.+)\."
    )
    meant = defaultdict(set)
    for row in labelled("wnli"):
        match = pattern.fullmatch(row["sentence1"])
        assert match, row
        said_first = row["sentence2"].startswith(match["first"] + " was")
        is_first = said_first == (row["label"] == 1)
        is_agent = is_first != bool(match["by"])
        denied = "not" in (match["did"] or "")
        meant[match["verb"][:4], denied, match["reason"]].add(is_agent)
    assert len(meant) > 30
    assert all(len(readings) == 1 for readings in meant.values())


def test_similarity_is_highest_for_paraphrases_and_falls_with_denial():
    """STS-B's scores are tenths, and a denial costs half of the range."""
    rows = labelled("stsb")
    assert all(round(row["label"] * 10) / 10 == row["label"] for row in rows)
    denied = [
        row["label"] for row in rows if negations(row["sentence1"]) != negations(row["sentence2"])
    ]
    assert len(denied) > 40
    assert max(denied) <= 2.5


def test_reflexives_agree_with_their_subject():
    """CoLA's reflexives are acceptable exactly where the subject is of their gender."""
    gender = {"brother": "himself", "son": "himself", "sister": "herself", "daughter": "herself"}
    rows = [row for row in labelled("cola") if row["sentence"].split()[1] in gender]
    assert len(rows) > 40
    for row in rows:
        agrees = gender[row["sentence"].split()[1]] in row["sentence"]
        assert row["label"] == agrees, row


def bag_of_words_accuracy(task):
    """Return the dev accuracy of a logistic regression on the words of each text."""
    splits = generate(task)
    dev = TASKS[task].dev_splits[0]
    train, held_out = [], []
    for column in columns(task):
        counter = CountVectorizer(token_pattern=r"\w+", lowercase=False, binary=True)
        train.append(counter.fit_transform([row[column] for row in splits["train"]]))
        held_out.append(counter.transform([row[column] for row in splits[dev]]))
    model = LogisticRegression(C=0.3, max_iter=2000)
    model.fit(hstack(train), [row["label"] for row in splits["train"]])
    return model.score(hstack(held_out), [row["label"] for row in splits[dev]])


@pytest.mark.parametrize("task", STRUCTURED)
def test_a_bag_of_words_does_not_tell_the_labels(task):
    """A bag of words stays within 8 points of the majority class, where structure decides."""
    dev = generate(task)[TASKS[task].dev_splits[0]]
    majority = np.bincount([row["label"] for row in dev]).max() / len(dev)
    assert bag_of_words_accuracy(task) < majority + 0.08


def test_pretraining_text_has_no_dev_or_test_row():
    """Passages that are held-out rows occur in the raw stream and are left out of the corpus."""
    held_out = {
        tuple(sorted(str(row[column]) for column in columns(task)))
        for task in [*TASKS, "ax"]
        for split, rows in generate(task).items()
        if split != "train"
        for row in rows
    }
    stream = passages("0")
    raw = [tuple(sorted(next(stream).texts)) for _ in range(30_000)]
    corpus = [tuple(sorted(passage.texts)) for passage in mini_glue.pretraining_text(29_000)]
    assert len(corpus) == 29_000
    assert held_out & set(raw)
    assert not held_out & set(corpus)


def test_perturbations_are_what_was_done():
    """Of two sentences one denies where a denial is recorded, and not where roles are swapped."""
    counts = Counter()
    for passage in mini_glue.pretraining_text(5000):
        if len(passage.texts) != 2 or passage.texts[0].count(".") != 1:
            continue
        first, second = passage.texts
        if "because" in first.lower() or second.count(".") != 1:
            continue
        differ = (negations(first) > 0) != (negations(second) > 0)
        if passage.perturbations == ("negate",):
            counts["denied"] += 1
            assert differ, passage
        elif passage.perturbations == ("swap_roles",):
            counts["swapped"] += 1
            assert not differ, passage
    assert min(counts.values()) > 50


def test_bag_of_words_misses_the_other_side_of_a_contrast():
    """Most reviews of SST-2 that contrast two clauses have words of praise and of blame."""
    praise = {"moving", "funny", "wonderful", "charming", "great", "clever", "elegant", "gripping"}
    blame = {"dull", "slow", "terrible", "boring", "awful", "weak", "clumsy", "tedious", "stale"}
    texts = [row["sentence"] for row in labelled("sst2")]
    contrasts = [text for text in texts if " but " in text or "lthough " in text]
    both = [
        text
        for text in contrasts
        if (words := set(re.findall(r"\w+", text))) & praise and words & blame
    ]
    assert len(contrasts) > 300
    assert len(both) > len(contrasts) / 2

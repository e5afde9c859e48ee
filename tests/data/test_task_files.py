"""Tasks beyond GLUE: their YAML, their files, and every command that meets them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import confusion_matrix, recall_score

from spafit_bench.base.errors import UserError
from spafit_bench.data.custom_tasks import TaskDefinition, find_task, read_task, shipped_tasks
from spafit_bench.data.load import limited, load_task_data
from spafit_bench.data.tasks import TASKS
from spafit_bench.results.record import parse_record
from spafit_bench.results.store import Store
from tests.conftest import Answer, Cli

REVIEWS: dict[str, Any] = {
    "name": "reviews",
    "title": "Reviews",
    "text": "body",
    "label": "stars",
    "labels": ["bad", "fair", "good"],
    "metrics": ["accuracy", "f1_macro"],
    "splits": {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"},
}
DISTANCE: dict[str, Any] = {
    "name": "distance",
    "text": ["left", "right"],
    "label": "gap",
    "range": [0, 10],
    "metrics": ["spearman"],
}
FAST = ("--epochs", 1, "--batch-size", 8, "--precision", "fp32")


def write_task(folder: Path, body: dict[str, Any], **changes: Any) -> Path:
    """Write a task file; a change to None leaves the key out."""
    merged = {key: value for key, value in (body | changes).items() if value is not None}
    path = folder / f"{body.get('name', 'task')}.yaml"
    path.write_text(yaml.safe_dump(merged, sort_keys=False))
    return path


def review_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make reviews whose class shows in a word."""
    rng = np.random.default_rng(seed)
    words = {"bad": "dog", "fair": "cat", "good": "bird"}
    names = [*words] * (count // 3 + 1)
    return [
        {"body": f"the {words[name]} {rng.choice(['runs', 'sings', 'eats'])}", "stars": name}
        for name in names[:count]
    ]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_reviews(folder: Path) -> Path:
    """Write the three files of the reviews; the test file has no labels."""
    write_csv(folder / "train.csv", review_rows(24))
    write_csv(folder / "dev.csv", review_rows(9, 1))
    write_csv(folder / "test.csv", [{"body": row["body"]} for row in review_rows(6, 2)])
    return folder


def write_distances(folder: Path, kind: str = "parquet") -> Path:
    """Write a regression of pairs, in files named by convention."""
    for split, count in (("train", 16), ("validation", 8)):
        rows = [
            {"left": f"one dog {n % 5}", "right": "two cat", "gap": float(n % 11)}
            for n in range(count)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
        else:
            write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture
def reviews(tmp_path: Path) -> tuple[Path, Path]:
    """A task file and its data."""
    return write_task(tmp_path, REVIEWS), write_reviews(tmp_path / "reviews-data")


# The file


def test_a_file_becomes_a_task(tmp_path: Path) -> None:
    """It has classes or a range, columns, and the file's name if the YAML gives none."""
    task = read_task(write_task(tmp_path, REVIEWS)).task()
    assert (task.name, task.title, task.text_columns) == ("reviews", "Reviews", ("body",))
    assert (task.num_labels, task.metrics) == (3, ("accuracy", "f1_macro"))
    assert task.score({"validation": {"accuracy": 0.5, "f1_macro": 0.7}}) == pytest.approx(0.6)
    path = write_task(tmp_path, DISTANCE).rename(tmp_path / "gaps.yaml")
    path.write_text(path.read_text().replace("name: distance\n", ""))
    task = find_task(str(path)).task
    assert (task.name, task.is_regression, task.label_range) == ("gaps", True, (0, 10))
    assert not task.in_glue


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "give labels (of a classification) or range"),
        ({"range": [0, 1]}, "give labels (of a classification) or range"),
        ({"labels": ["one"]}, "labels must be two names or more"),
        ({"labels": ["a", "a"]}, "labels must be two names or more, each once"),
        ({"labels": [False, True]}, "quote the names"),
        ({"metrics": None}, "'metrics' is missing"),
        ({"metrics": "f1"}, "metric f1 is of two classes, and there are 3"),
        ({"metrics": "pearson"}, "metric pearson is not one of a classification"),
        ({"metrics": "bleu"}, "metrics.0 = 'bleu'"),
        ({"metrics": ["accuracy", "accuracy"]}, "a metric is there twice"),
        ({"text": None}, "'text' is missing"),
        ({"text": ["a", "b", "c"]}, "text = ['a', 'b', 'c']"),
        ({"name": "mrpc"}, "that is GLUE's"),
        ({"name": "../x"}, "name = '../x'"),
        ({"label_column": "stars"}, "unknown key 'label_column'"),
        ({"splits": {"validation": "t.csv"}}, "splits must name train"),
        ({"splits": {"train": "t.csv", "dev": "d.csv"}}, "splits.dev"),
        ({"splits": {"train": "/etc/t.csv", "validation": "d.csv"}}, "below the data folder"),
        ({"splits": {"train": "../t.csv", "validation": "d.csv"}}, "below the data folder"),
        ({"splits": {"train": "t.xlsx", "validation": "d.csv"}}, "must end in .csv, .jsonl"),
        ({"title": "a" * 25}, "title = 'aaaa"),
        ({"note": "a \x1b[31m"}, "a character that cannot be shown"),
        ({"rows": {"train": 9}}, "rows must name train and validation"),
        ({"rows": {"train": 0, "validation": 1}}, "rows.train = 0"),
        ({"text": ["{a} {b}", "c"], "splits": {"train": "t.csv", "validation":
          {"file": "d.csv", "text": ["x", "y"]}}}, "splits.validation.text must name 3 columns"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_file_is_one_message(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The message names the file and the key."""
    path = write_task(tmp_path, REVIEWS, **changes)
    if "name" in changes:
        path = write_task(tmp_path, REVIEWS | changes | {"name": "x"}).parent / "x.yaml"
        path.write_text(yaml.safe_dump(REVIEWS | changes))
    with pytest.raises(UserError) as caught:
        read_task(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"range": [5, 0]}, "range must be [lowest, highest]"),
        ({"metrics": ["accuracy"]}, "metric accuracy is not one of a regression"),
        ({"range": ["a", 1]}, "range.0 = 'a'"),
        ({"range": [-np.inf, np.inf]}, "range = [-inf, inf]: both ends must be finite"),
        ({"range": [0, np.inf]}, "both ends must be finite; leave range out"),
        ({"range": [np.nan, 1]}, "range must be [lowest, highest]"),
    ],
    ids=str,
)
def test_a_wrong_regression(body: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A range runs upwards and is finite; a regression takes correlations only."""
    with pytest.raises(UserError) as caught:
        read_task(write_task(tmp_path, DISTANCE, **body))
    assert message in str(caught.value)


def test_a_regression_may_have_no_range(tmp_path: Path) -> None:
    """Then every finite number is a valid score."""
    task = find_task(str(write_task(tmp_path, DISTANCE, range=None))).task
    assert (task.is_regression, task.label_range) == (True, None)
    rows = [{"left": "a", "right": "b", "gap": score} for score in (-1e6, 3.5)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "d" / f"{split}.jsonl", rows)
    labels = load_task_data(task, str(tmp_path / "d")).splits["train"].labels
    assert labels is not None
    assert labels.tolist() == [-1e6, 3.5]
    (tmp_path / "d" / "train.jsonl").write_text('{"left": "a", "right": "b", "gap": Infinity}\n')
    with pytest.raises(UserError, match="score inf is out of range; distance takes a finite"):
        load_task_data(task, str(tmp_path / "d"))


def test_unknown_tasks_have_the_nearest_match() -> None:
    """GLUE's and the shipped names are suggested; a missing file is said to be missing."""
    with pytest.raises(UserError, match="did you mean 'boolq'"):
        find_task("boolqq")
    with pytest.raises(UserError, match=r"mine\.yaml: no such file"):
        find_task("mine.yaml")


# The data


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_files_named_by_convention(kind: str, tmp_path: Path) -> None:
    """`train` and `validation` in any format, in the folder or a subfolder of that name."""
    task = find_task(str(write_task(tmp_path, DISTANCE))).task
    for folder in (tmp_path / "plain", tmp_path / "outer" / "distance"):
        write_distances(folder, kind)
        data = load_task_data(task, str(folder.parent if "outer" in str(folder) else folder))
        assert data.splits["train"].num_rows == 16
        assert data.splits["validation"].labels is not None
        assert data.splits["validation"].labels.tolist()[:3] == [0, 1, 2]
        assert (data.official_split, "test" in data.splits) == (False, False)


def test_the_same_rows_are_the_same_data(tmp_path: Path) -> None:
    """The format does not matter, but another description makes other data."""
    task = find_task(str(write_task(tmp_path, DISTANCE))).task
    first = load_task_data(task, str(write_distances(tmp_path / "a", "parquet")))
    second = load_task_data(task, str(write_distances(tmp_path / "b", "jsonl")))
    assert first.fingerprint == second.fingerprint
    wider = find_task(str(write_task(tmp_path, DISTANCE, range=[0, 20]))).task
    assert load_task_data(wider, str(tmp_path / "a")).fingerprint != first.fingerprint


def test_labels_may_be_names_ids_or_truth_values(tmp_path: Path) -> None:
    """Class names that are numbers are never taken for ids; booleans are False and True."""
    for labels, cells, ids in (
        (["bad", "good"], ["good", "bad"], [1, 0]),
        (["bad", "good"], [1, 0], [1, 0]),
        (["1", "2"], [2, 1], [1, 0]),
        ([1, 2], ["2", "1"], [1, 0]),
        (["False", "True"], [True, False], [1, 0]),
    ):
        body = REVIEWS | {"labels": labels, "metrics": "accuracy", "splits": None}
        task = find_task(str(write_task(tmp_path, body))).task
        rows = [{"body": "dog", "stars": cell} for cell in cells]
        for split in ("train", "validation"):
            write_jsonl(tmp_path / "d" / f"{split}.jsonl", rows)
        found = load_task_data(task, str(tmp_path / "d")).splits["train"].labels
        assert found is not None
        assert found.tolist() == ids
    write_jsonl(tmp_path / "d" / "train.jsonl", [{"body": "dog", "stars": 0}])
    task = find_task(str(write_task(tmp_path, body | {"labels": ["1", "2"]}))).task
    with pytest.raises(UserError, match=r"label '0' is neither .* takes 0 \(1\) or 1 \(2\)"):
        load_task_data(task, str(tmp_path / "d"))


def test_labels_of_ones_own_test_set_are_read(tmp_path: Path) -> None:
    """No label column, or one placeholder in every row, means that there are no labels."""
    task = find_task(str(write_task(tmp_path, REVIEWS))).task
    folder = write_reviews(tmp_path / "d")
    unlabelled = load_task_data(task, str(folder))
    assert unlabelled.splits["test"].labels is None
    texts = [row["body"] for row in review_rows(6, 2)]
    for placeholder in ("-1", "", "?"):
        rows = [{"body": text, "stars": placeholder} for text in texts]
        write_csv(folder / "test.csv", rows)
        assert load_task_data(task, str(folder)).fingerprint == unlabelled.fingerprint
    write_csv(folder / "test.csv", review_rows(6, 2))
    labelled = load_task_data(task, str(folder))
    labels = labelled.splits["test"].labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert labelled.fingerprint != unlabelled.fingerprint, "its labels decide a score"
    write_csv(folder / "test.csv", [*review_rows(6, 2), {"body": "dog", "stars": "god"}])
    with pytest.raises(UserError, match=r"test\.csv, line 8, column 'stars': label 'god'"):
        load_task_data(task, str(folder))


def test_dev_can_be_split_off_train(tmp_path: Path) -> None:
    """A share of each class moves to validation, always the same rows; a dev set stays."""
    task = find_task(str(write_task(tmp_path, REVIEWS, splits={"train": "all.csv"}))).task
    rows = [row | {"body": f"{number} {row['body']}"} for number, row in enumerate(review_rows(60))]
    write_csv(tmp_path / "d" / "all.csv", rows)
    with pytest.raises(
        UserError, match=r"names no file for validation; --split 0\.1 takes a tenth"
    ):
        load_task_data(task, str(tmp_path / "d"))
    data = load_task_data(task, str(tmp_path / "d"), split=0.1)
    train, dev = data.splits["train"], data.splits["validation"]
    assert (train.num_rows, dev.num_rows) == (54, 6)
    assert dev.labels is not None
    assert np.bincount(dev.labels).tolist() == [2, 2, 2]
    assert sorted(train.texts[0] + dev.texts[0]) == sorted(row["body"] for row in rows)
    assert (data.official_split, data.notes) == (False, ())
    assert data.official_basis == "validation is 0.1 of train (--split)"
    again = load_task_data(task, str(tmp_path / "d"), split=0.1)
    assert again.fingerprint == data.fingerprint
    assert load_task_data(task, str(tmp_path / "d"), split=0.2).fingerprint != data.fingerprint
    with pytest.raises(UserError, match="which leaves 0 to hold out"):
        load_task_data(task, str(tmp_path / "d"), split=0.01)
    whole = find_task(str(write_task(tmp_path, REVIEWS))).task
    with pytest.raises(UserError, match=r"dev\.csv is validation, which --split would take"):
        load_task_data(whole, str(write_reviews(tmp_path / "whole")), split=0.1)
    with pytest.raises(UserError, match="--data mini has its own"):
        load_task_data(TASKS["rte"], "mini", split=0.1)


@pytest.mark.parametrize(
    ("changes", "dev", "note"),
    [
        ({}, [{"body": "x", "stars": "fair"}] * 2, "validation has no example of bad, good: every"),
        ({"label": "body", "text": "body", "labels": ["x", "y"]}, [{"body": "x"}, {"body": "y"}],
         "the label of train, 'body', is also one of its texts"),
    ],
)  # fmt: skip
def test_what_is_unusual_is_noted(
    changes: dict[str, Any], dev: list[dict[str, str]], note: str, tmp_path: Path
) -> None:
    """`data verify` and `run` show it."""
    task = find_task(str(write_task(tmp_path, REVIEWS, **changes))).task
    folder = write_reviews(tmp_path / "d")
    write_csv(folder / "dev.csv", dev)
    if changes:
        write_csv(folder / "train.csv", dev)
        (folder / "test.csv").unlink()
    assert any(each.startswith(note) for each in load_task_data(task, str(folder)).notes)


def test_one_class_left_by_a_limit_is_noted(tmp_path: Path) -> None:
    """A sorted file is the usual cause."""
    task = find_task(str(write_task(tmp_path, REVIEWS))).task
    folder = write_reviews(tmp_path / "d")
    write_csv(folder / "train.csv", sorted(review_rows(24), key=lambda row: str(row["stars"])))
    data = load_task_data(task, str(folder))
    assert not any("no example" in note for note in data.notes)
    notes = limited(data, 4).notes
    assert "train has no example of fair, good: every label is bad" in notes


def test_templates_put_columns_together(tmp_path: Path) -> None:
    """Braces name columns; braces inside a text are left as they are."""
    body = REVIEWS | {"text": ["{word}: {body}", "word"], "splits": None}
    task = find_task(str(write_task(tmp_path, body))).task
    rows = [{"word": "{body}", "body": "a dog", "stars": "bad"}]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "d" / f"{split}.jsonl", rows)
    data = load_task_data(task, str(tmp_path / "d"))
    assert data.splits["train"].texts == (("{body}: a dog",), ("{body}",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "dev.csv").unlink(), "dev.csv is missing: reviews needs it for validation"),
        (lambda d: write_csv(d / "dev.csv", [{"text": "a", "stars": "bad"}]), "no column 'body'"),
        (lambda d: write_csv(d / "dev.csv", [{"body": "a", "stars": "god"}]),
         "line 2, column 'stars': label 'god' is neither a class id nor a class name"),
        (lambda d: write_csv(d / "dev.csv", [{"body": " ", "stars": "bad"}]), "empty text"),
        (lambda d: write_csv(d / "dev.csv", [{"body": "a", "stars": "3"}]), "out of range"),
    ],
)  # fmt: skip
def test_wrong_data_is_one_message(
    change: Any, message: str, call: Cli, reviews: tuple[Path, Path], checkpoint: Path
) -> None:
    """The message of the command line names file, line and column."""
    file, folder = reviews
    change(folder)
    answer = call("run", "--task", file, "--data", folder, "--model", checkpoint, *METHOD, *FAST)
    assert message in answer.error


METHOD = ("--method", "bitfit")


def test_data_that_a_task_does_not_have(call: Cli, reviews: tuple[Path, Path]) -> None:
    """No hub, no mini-GLUE, no files, two files or a lost shard: each is one message."""
    file, folder = reviews
    run = ("run", "--task", file, "--model", "tiny-bert", *METHOD)
    assert "names no data set on the hub" in call(*run, "--data", "hub").error
    assert "mini-GLUE has no reviews" in call(*run, "--data", "mini").error
    (folder / "empty").mkdir()
    assert "no data for reviews here" in call(*run, "--data", folder / "empty").error
    distance = write_task(folder, DISTANCE)
    write_distances(folder / "two", "jsonl")
    write_distances(folder / "two", "parquet")
    run = ("run", "--task", distance, "--model", "tiny-bert", *METHOD)
    assert "are both there" in call(*run, "--data", folder / "two").error
    sharded = {"splits": {"train": "train-*.parquet", "validation": "train-*.parquet"}}
    write_distances(folder / "one")
    (folder / "one" / "train.parquet").rename(folder / "one" / "train-00000-of-00002.parquet")
    write_task(folder, DISTANCE | sharded)
    assert "1 of 2 shards of train are there" in call(*run, "--data", folder / "one").error


# Commands


def run_reviews(call: Cli, reviews: tuple[Path, Path], checkpoint: Path, *more: object) -> Answer:
    """Run the reviews' task."""
    file, folder = reviews
    return call(
        "run", "--task", file, "--data", folder, "--model", checkpoint, *FAST, "--json", *more
    )  # fmt: skip


def test_every_command_knows_the_task(
    call: Cli, reviews: tuple[Path, Path], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """After the run, all commands work without the YAML file."""
    small = ("--method", "bitfit,full", "--seed", "0-2")
    first = run_reviews(call, reviews, checkpoint, *small)
    assert first.code == 0, first.err
    records = first.json["runs"]
    assert {record["task"] for record in records} == {"reviews"}
    assert set(records[0]["metrics"]["validation"]) == {"accuracy", "f1_macro"}
    assert records[0]["run_id"].startswith("reviews-bitfit-")
    glue = ("--task", "mrpc,cola", "--data", data, "--model", checkpoint)
    assert call("run", *glue, "--method", "bitfit,full", *FAST).code == 0

    reviews[0].rename(tmp_path / "gone.yaml")
    table = call("table", "--json").json["tables"]
    scores = next(t for t in table if t["kind"] == "scores")
    titles = [column["title"] for column in scores["columns"]]
    assert list(dict.fromkeys(titles)) == ["Params (M)", "%", "CoLA", "MRPC", "Reviews", "Avg"]
    (row,) = [r for r in scores["rows"] if r["method"] == "full"]
    pair = [row["cells"][key]["value"] for key in ("cola", "mrpc")]
    assert row["cells"]["avg"]["value"] == pytest.approx(sum(pair) / 2)
    assert "unofficial" not in row["cells"]["reviews"]["marks"]
    assert any(
        n.startswith("Reviews is in no average: not a task of GLUE.") for n in scores["notes"]
    )
    text = call("table", "--baseline", "bitfit").out
    assert "Reviews" in text
    assert "macro F1" in text

    compared = call("compare", "full", "bitfit")
    assert "Reviews is in no average or test over tasks: not a task of GLUE" in compared.out
    run_id = records[0]["run_id"]
    assert "reviews" in call("show", run_id).out
    assert run_id in call("list", "runs").out
    predicted = call("predict", run_id, "--text", "the dog runs", "--format", "jsonl")
    assert set(predicted.json["probabilities"]) == {"bad", "fair", "good"}
    assert call("export", run_id, "--to", "plain").code == 0
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "fair", "2": "good"}
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "Reviews (reviews-data)" in card
    assert "GLUE scores" not in card
    frame = pd.read_parquet(tmp_path / "results" / "runs" / run_id / "predictions.parquet")
    assert frame["split"].value_counts().to_dict() == {"validation": 9, "test": 6}


def test_a_finished_run_is_found_wherever_its_file_lies(
    call: Cli, reviews: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    """The same description elsewhere is the same run; other labels or metrics are another."""
    first = run_reviews(call, reviews, checkpoint, *METHOD).json
    (tmp_path / "elsewhere").mkdir()
    moved = write_task(tmp_path / "elsewhere", REVIEWS, title="Other title")
    again = run_reviews(call, (moved, reviews[1]), checkpoint, *METHOD).json
    assert (again["run_id"], again["started_at"]) == (first["run_id"], first["started_at"])
    changed = write_task(tmp_path / "elsewhere", REVIEWS, metrics="accuracy")
    other = run_reviews(call, (changed, reviews[1]), checkpoint, *METHOD).json
    assert other["run_id"] != first["run_id"]
    tables = call("table", "--json").json["tables"]
    assert len([t for t in tables if t["kind"] == "scores"]) == 2


def test_ones_own_test_labels_are_scored(
    call: Cli, reviews: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    """Record and `show` have the scores of each class, even with --no-predict-test."""
    write_csv(reviews[1] / "test.csv", review_rows(6, 2))
    record = run_reviews(call, reviews, checkpoint, *METHOD, "--no-predict-test").json
    assert set(record["metrics"]) == set(record["majority"]) == {"validation", "test"}
    assert set(record["last"]["metrics"]) == {"validation"}
    frame = pd.read_parquet(
        tmp_path / "results" / "runs" / record["run_id"] / "predictions.parquet"
    )
    tested = frame[frame["split"] == "test"]
    assert tested["label"].tolist() == [0, 1, 2, 0, 1, 2]
    right = (tested["label"] == tested["prediction"]).mean()
    assert record["metrics"]["test"]["accuracy"] == pytest.approx(right)
    found = record["confusion"]["test"]
    expected = confusion_matrix(tested["label"], tested["prediction"], labels=[0, 1, 2])
    assert found["counts"] == expected.tolist()
    recalls = recall_score(
        tested["label"], tested["prediction"], labels=[0, 1, 2], average=None, zero_division=0
    )
    assert [found["scores"][name]["recall"] for name in REVIEWS["labels"]] == recalls.tolist()
    shown = call("show", record["run_id"]).out
    assert "test: rows by true class, columns by predicted class" in shown
    assert "acc-test " in shown
    assert call("report", "--out", "r.html").code == 0
    assert "good, test" in (tmp_path / "r.html").read_text()
    header = (tmp_path / "results" / "results.csv").read_text().splitlines()[0]
    assert "metrics.test.accuracy" in header
    assert "confusion" not in header


def test_a_run_on_one_file(call: Cli, checkpoint: Path, tmp_path: Path) -> None:
    """`--split` makes dev of a share of train; another share is another run."""
    file = write_task(tmp_path, REVIEWS, splits={"train": "all.csv"})
    write_csv(tmp_path / "d" / "all.csv", review_rows(24))
    flags = ("--task", file, "--data", "d", "--model", checkpoint, *METHOD, *FAST, "--json")
    assert "--split 0.1 takes a tenth" in call("run", *flags).error
    assert "split = 1.5" in call("run", *flags, "--split", 1.5).error
    verified = call("data", "verify", "--task", file, "--data", "d", "--split", 0.25)
    assert "train 18, validation 6" in verified.out
    record = call("run", *flags, "--split", 0.25).json
    assert record["data"]["rows"] == {"train": 18, "validation": 6}
    assert record["config"]["split"] == 0.25
    assert any("rows of validation are also in train" in note for note in record["warnings"])
    other = call("run", *flags, "--split", 0.5).json
    assert other["run_id"] != record["run_id"]
    assert call("run", *flags, "--split", 0.25).json["started_at"] == record["started_at"]


@pytest.mark.parametrize("range_", [(0, 10), None])
def test_a_regression_of_pairs_runs(
    range_: tuple[int, int] | None, call: Cli, tmp_path: Path, checkpoint: Path
) -> None:
    """Parquet, one metric, with or without a range; no average and no GLUE in its table."""
    file = write_task(tmp_path, DISTANCE, range=range_ and list(range_))
    data = write_distances(tmp_path / "d")
    flags = ("--data", data, "--model", checkpoint, *METHOD, *FAST)
    record = call("run", "--task", file, *flags, "--json").json
    assert set(record["metrics"]["validation"]) == {"spearman"}
    assert parse_record(json.dumps(record), "here").task_facts.label_range == range_
    assert call("export", record["run_id"], "--to", "model").code == 0
    outputs = "one score from 0 to 10." if range_ else "one score."
    assert f"gives {outputs}" in (tmp_path / "model" / "README.md").read_text()
    scores = call("table", "--json").json["tables"][0]
    assert scores["title"].startswith("Dev scores: ")
    assert [column["key"] for column in scores["columns"]] == ["trainable", "percent", "distance"]


def test_training_defaults_of_the_task(
    call: Cli, reviews: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    """They override the shipped defaults; everything a user sets overrides them."""
    own = {"train": {"epochs": 7, "max_length": 32}}
    file = write_task(tmp_path, REVIEWS | own)
    flags = ("--data", reviews[1], "--model", checkpoint, *METHOD, "--epochs", 1, "--json")
    train = call("run", "--task", file, *flags).json["config"]["train"]
    assert (train["epochs"], train["max_length"]) == (1, 32)
    write_task(tmp_path, REVIEWS | {"train": {"epoch": 7}})
    error = call("run", "--task", file, *flags).error
    assert "the file of" in error
    assert "did you mean 'epochs'" in error


def test_a_sweep_and_a_plan_of_the_task(
    call: Cli, reviews: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    """A learning rate is chosen on held-out train; settings can name the task's file."""
    file, folder = reviews
    (tmp_path / "s.yaml").write_text(
        yaml.safe_dump(
            {
                "tasks": [str(file)],
                "methods": ["bitfit"],
                "settings": {
                    "train": {"batch_size": 8},
                    "precision": "fp32",
                    "tasks": {str(file): {"train": {"epochs": 1}}},
                },
                "choose": {"key": "train.learning_rate", "values": [1e-3, 1e-2], "holdout": 0.25},
            }
        )
    )
    answer = call("sweep", "s.yaml", "--data", folder, "--model", checkpoint)
    assert answer.code == 0, answer.err
    records = [r for r in Store(tmp_path / "results").records() if r.holdout is None]
    assert {record.config["train"]["epochs"] for record in records} <= {1}
    assert len(call("list", "runs", "--json").json["runs"]) == 3
    plan = call("plan", "--method", "full", "--model", checkpoint, "--task", file, "--json").json
    assert (plan["num_labels"], plan["task"]) == (3, "reviews")


def test_predictions_from_templates(call: Cli, tmp_path: Path, checkpoint: Path) -> None:
    """A file gives the columns; --text cannot give three of them."""
    body = REVIEWS | {"text": ["{word}: {body}", "note"], "splits": None, "metrics": "accuracy"}
    file = write_task(tmp_path, body)
    rows = [row | {"word": "dog", "note": "not"} for row in review_rows(12)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "d" / f"{split}.jsonl", rows)
    flags = ("--data", "d", "--model", checkpoint, *METHOD, *FAST, "--json")
    run_id = call("run", "--task", file, *flags).json["run_id"]
    write_jsonl(tmp_path / "new.jsonl", rows[:2])
    found = call("predict", run_id, "--file", "new.jsonl", "--format", "json").json
    assert found["predictions"][0]["word"] == "dog"
    wrong = call("predict", run_id, "--text", "a", "--text-pair", "b").error
    assert "texts in columns (word and body and note): give --file" in wrong


# Shipped descriptions

SAMPLES: dict[str, dict[str, Any]] = {
    "boolq": {"question": "is a dog red", "passage": "the dog", "idx": 0, "label": True},
    "cb": {"premise": "a dog", "hypothesis": "cat runs", "label": "neutral", "idx": 0},
    "wic": {
        "word": "dog", "sentence1": "a dog runs", "sentence2": "the dog", "idx": 0, "label": False,
        "start1": 2, "end1": 5, "start2": 4, "end2": 7, "version": 1.1,
    },
    "rte-superglue": {"premise": "a dog", "hypothesis": "a cat", "label": "entailment", "idx": 0},
    "multirc": {"paragraph": "a dog", "question": "one", "answer": "two", "label": "True"},
}  # fmt: skip
FOLDERS = {"boolq": "BoolQ", "cb": "CB", "wic": "WiC", "rte-superglue": "RTE"}


def test_shipped_descriptions_are_whole() -> None:
    """Each has its file's name, a source, row counts and a place on the hub."""
    assert shipped_tasks() == ("axb", "axg", "boolq", "cb", "multirc", "rte-superglue", "wic")
    for name in shipped_tasks():
        found = find_task(name)
        assert isinstance(found.definition, TaskDefinition)
        assert found.task.name == name
        assert "arXiv" in found.definition.source
        assert found.task.rows
        assert found.task.hub is not None
    assert not set(shipped_tasks()) & set(TASKS)


@pytest.mark.parametrize("name", list(FOLDERS))
def test_the_download_of_superglue_is_read(name: str, tmp_path: Path) -> None:
    """`--data` may be the whole download or one task; the test file has no labels."""
    row = SAMPLES[name]
    folder = tmp_path / FOLDERS[name]
    for split in ("train", "val", "test"):
        unlabelled = {key: value for key, value in row.items() if key != "label"}
        write_jsonl(folder / f"{split}.jsonl", [row if split != "test" else unlabelled] * 2)
    task = find_task(name).task
    data = load_task_data(task, str(tmp_path))
    assert set(data.splits) == {"train", "validation", "test"}
    assert data.splits["train"].labels is not None
    assert "train has 2 rows, official has" in data.official_basis
    if name == "wic":
        assert data.splits["train"].texts[0][0] == "dog: a dog runs"
    if name != "rte-superglue":
        assert load_task_data(task, str(folder)).fingerprint == data.fingerprint


@pytest.mark.parametrize("name", ["boolq", "cb", "wic", "multirc", "rte-superglue"])
def test_the_hubs_layout_is_read(name: str, tmp_path: Path) -> None:
    """Parquet with class ids and their names in the schema, as `datasets` writes it."""
    task = find_task(name).task
    assert task.hub is not None
    row = {k: v for k, v in SAMPLES[name].items() if k != "label"} | {"label": 1}
    info = {"info": {"features": {"label": {"names": [*task.labels], "_type": "ClassLabel"}}}}
    for split, pattern in task.hub.patterns.items():
        own = row if split != "test" else row | {"label": -1}
        table = pa.Table.from_pylist([own] * 3).replace_schema_metadata(
            {"huggingface": json.dumps(info)}
        )
        path = tmp_path / pattern.replace("*", "00000-of-00001")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    data = load_task_data(task, str(tmp_path))
    assert data.splits["train"].labels is not None
    assert data.splits["train"].labels.tolist() == [1, 1, 1]
    assert data.splits["test"].labels is None


@pytest.mark.parametrize(("name", "columns"), [("axb", ("sentence1", "sentence2")),
                                              ("axg", ("premise", "hypothesis"))])  # fmt: skip
def test_diagnostics_are_scored_with_a_model_of_rte(
    name: str, columns: tuple[str, str], tmp_path: Path
) -> None:
    """Train is RTE's; dev is the diagnostic set with its own column names."""
    task = find_task(name).task
    write_jsonl(tmp_path / "RTE" / "train.jsonl", [SAMPLES["rte-superglue"]] * 2)
    row = dict(zip(columns, ("a dog", "a cat"), strict=True)) | {"label": "not_entailment"}
    write_jsonl(tmp_path / task.title / f"{task.title}.jsonl", [row] * 3)
    data = load_task_data(task, str(tmp_path))
    assert data.splits["train"].texts == (("a dog",) * 2, ("a cat",) * 2)
    labels = data.splits["validation"].labels
    assert labels is not None
    assert labels.tolist() == [1, 1, 1]


def test_booleans_in_parquet(tmp_path: Path) -> None:
    """Truth values are labels only if the classes are False and True."""
    body = REVIEWS | {"labels": ["False", "True"], "metrics": "f1", "splits": None}
    rows = [{"body": "a dog", "stars": True}, {"body": "a cat", "stars": False}]
    for split in ("train", "validation"):
        path = tmp_path / "d" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = load_task_data(find_task(str(write_task(tmp_path, body))).task, str(tmp_path / "d"))
    assert found.splits["train"].labels is not None
    assert found.splits["train"].labels.tolist() == [1, 0]
    other = find_task(str(write_task(tmp_path, body | {"labels": ["no", "yes"]}))).task
    with pytest.raises(UserError, match="label 'True' is neither a class id nor a class name"):
        load_task_data(other, str(tmp_path / "d"))


def test_a_declared_number_of_rows_makes_data_official(tmp_path: Path) -> None:
    """Data with the declared row counts is official."""
    file = write_task(tmp_path, DISTANCE | {"rows": {"train": 16, "validation": 8}})
    data = load_task_data(find_task(str(file)).task, str(write_distances(tmp_path / "d")))
    assert (data.official_split, data.official_basis) == (True, "row count")


def test_listed(call: Cli) -> None:
    """`list tasks` has GLUE's and the shipped ones."""
    tasks = [row["task"] for row in call("list", "tasks", "--json").json["tasks"]]
    assert tasks == [*TASKS, *shipped_tasks()]

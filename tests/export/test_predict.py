"""Labels for new texts: equal to the run's own predictions, from every kind of input."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax as scipy_softmax

from spafit_bench.base.errors import UserError
from spafit_bench.cli import main
from spafit_bench.data.tasks import get_task
from spafit_bench.data.text_input import Texts, TextSource, read_texts
from spafit_bench.export.predict import predict_run, predict_texts
from spafit_bench.export.restore import Base, load_run
from spafit_bench.results.lookup import find_run
from spafit_bench.results.record import RunRecord
from tests.conftest import Cli
from tests.support.tiny_runs import World, make_world

PAIR = get_task("mrpc")
SINGLE = get_task("cola")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny BERT and data."""
    return make_world(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def records(world: World) -> dict[str, RunRecord]:
    """One run per kind of task."""
    small = ("method.rank=4", "method.alpha=8")
    return {task: world.run("spafit", task, *small) for task in ("mrpc", "cola", "stsb", "mnli")}


def recorded(world: World, record: RunRecord, split: str) -> pd.DataFrame:
    """Return the rows of `predictions.parquet` of one split."""
    frame = pd.read_parquet(world.store.runs / record.run_id / "predictions.parquet")
    return frame[frame["split"] == split]


def predicted(world: World, record: RunRecord, source: TextSource, format_: str) -> str:
    """Predict on the CPU in the run's own precision."""
    base = Base(device="cpu", precision=None)
    return "".join(predict_run(find_run(record.run_id, world.store), source, base, format_))


@pytest.mark.parametrize("task", ["mrpc", "cola", "stsb", "mnli"])
def test_dev_predictions_are_the_recorded_ones(
    world: World, records: dict[str, RunRecord], task: str
) -> None:
    """On the dev set, `predict` says what the run itself wrote down."""
    record, facts = records[task], get_task(task)
    split = facts.dev_splits[-1]
    expected = recorded(world, record, split)
    source = TextSource(file=world.data / task / f"{split}.csv")
    body = json.loads(predicted(world, record, source, "json"))
    assert body["run_id"] == record.run_id
    rows = body["predictions"]
    logits = np.stack(expected["logits"])
    if facts.is_regression:
        np.testing.assert_allclose([r["score"] for r in rows], logits[:, 0], atol=1e-5)
        return
    labels = [facts.labels[int(number)] for number in expected["prediction"]]
    assert [row["label"] for row in rows] == labels
    found = [[row["probabilities"][label] for label in facts.labels] for row in rows]
    np.testing.assert_allclose(found, scipy_softmax(logits, axis=1), atol=1e-5)
    assert [row["probability"] for row in rows] == [max(values) for values in found]


def test_bf16_run_is_predicted_in_its_own_precision(world: World) -> None:
    """A run evaluated in bf16 is predicted in bf16 unless the user asks for another."""
    record = world.run("bitfit", "cola", precision="bf16")
    base = Base(precision=None)
    assert load_run(world.store, record.run_id, base).adapted.numerics.precision == "bf16"
    source = TextSource(file=world.data / "cola" / "validation.csv")
    rows = json.loads(predicted(world, record, source, "json"))["predictions"]
    expected = recorded(world, record, "validation")["prediction"]
    assert [SINGLE.labels.index(row["label"]) for row in rows] == expected.tolist()


def texts_of(path: Path, content: str, task: str = "mrpc", **source: str) -> list[Texts]:
    """Write a file and read its texts."""
    path.write_bytes(content.encode())
    return list(read_texts(get_task(task), TextSource(file=path, **source)))


def test_every_kind_of_file(tmp_path: Path) -> None:
    """CSV, TSV, JSON lines and plain lines, under the task's column names and the common ones."""
    expected = [('a "b"', "c, d"), ("é", "f")]
    csv = 'sentence2,id,sentence1\n"c, d",1,"a ""b"""\nf,2,é\n'
    assert texts_of(tmp_path / "a.csv", "\ufeff" + csv) == expected
    tsv = '#1 String\t#2 String\na "b"\tc, d\r\né\tf\n'
    assert texts_of(tmp_path / "a.tsv", tsv) == expected
    lines = [{"text": a, "text_pair": b, "label": 1} for a, b in expected]
    text = "\n".join(map(json.dumps, lines)) + "\n\n"
    assert texts_of(tmp_path / "a.jsonl", text) == expected
    assert texts_of(tmp_path / "a.txt", 'a "b"\tc, d\né\tf') == expected
    assert texts_of(tmp_path / "a.dat", "a\tb", kind="txt") == [("a", "b")]
    assert texts_of(tmp_path / "b.csv", "sentence\nx\n", "cola") == [("x",)]
    assert texts_of(tmp_path / "c.csv", "sentence1,sentence2\nx,y\n", "mnli") == [("x", "y")]
    assert texts_of(tmp_path / "d.csv", "premise,hypothesis\nx,y\n", "mnli") == [("x", "y")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "empty; its first line must name the columns"),
        ("a.csv", "sentence1,other\na,b\n", "line 2: no column .sentence1[+]sentence2 or"),
        ("a.csv", "sentence1,sentence2\na,b\nc\n", "line 3: 1 fields, but 2 are needed"),
        ("a.csv", "sentence1,sentence2\na,\n", "line 2, column .sentence2.: empty text"),
        ("a.csv", 'sentence1,sentence2\na,"b\n', "not CSV"),
        ("a.csv", "sentence1;sentence2\na;b\n", "line 1: the columns are separated by semicolons"),
        ("a.csv", "sentence1,sentence2,id,id\na,b,1,2\n", "line 1: column 'id' is there more than"),
        ("a.jsonl", '{"sentence1": "a", "sentence1": "b"}', "'sentence1' is there more than once"),
        ("a.tsv", "sentence1\tsentence2\na\tb\tc\n", "line 2: 3 fields"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": null}', "line 1, column .sentence2.: no text"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "\\ud800"}', "half of a surrogate pair"),
        ("a.jsonl", "[1]", "line 1: list, but must be an object"),
        ("a.jsonl", "{", "line 1: not JSON"),
        (
            "a.txt",
            "a\tb\nc\n",
            "line 2: 1 fields, but 2 are needed .* a tab",
        ),
        ("a.xlsx", "a", "unknown kind of file; say which with --input-format"),
    ],
)
def test_bad_input_is_one_message(tmp_path: Path, name: str, content: str, said: str) -> None:
    """What is wrong with a file is said with its line."""
    with pytest.raises(UserError, match=said):
        texts_of(tmp_path / name, content)


def test_other_bad_input(tmp_path: Path) -> None:
    """Missing files, bytes that are no text, and arguments that do not fit the task."""
    with pytest.raises(UserError, match="No such file"):
        list(read_texts(PAIR, TextSource(file=tmp_path / "none.csv")))
    (tmp_path / "latin.txt").write_bytes(b"\xe9\tb")
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_texts(PAIR, TextSource(file=tmp_path / "latin.txt")))
    with pytest.raises(UserError, match="give --text A --text-pair B"):
        list(read_texts(PAIR, TextSource(texts=("a",))))
    with pytest.raises(UserError, match="give --text alone"):
        list(read_texts(SINGLE, TextSource(texts=("a",), pairs=("b",))))
    with pytest.raises(UserError, match="2 --text but 1 --text-pair"):
        list(read_texts(PAIR, TextSource(texts=("a", "b"), pairs=("c",))))
    with pytest.raises(UserError, match="give one of the two"):
        list(read_texts(SINGLE, TextSource(texts=("a",), file=tmp_path)))
    assert list(read_texts(PAIR, TextSource(texts=("a",), pairs=("b",)))) == [("a", "b")]


def test_a_long_document_is_text(tmp_path: Path) -> None:
    """Longer than Python's own limit of a CSV field."""
    long = "word " * 40_000
    (tmp_path / "long.csv").write_text(f"sentence\n{long}\n")
    assert list(read_texts(SINGLE, TextSource(file=tmp_path / "long.csv"))) == [(long,)]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [("--device", "gpu", "choices: auto, cpu"), ("--precision", "half", "bf16")],
)
def test_a_device_or_precision_that_is_none(
    call: Cli, world: World, records: dict[str, RunRecord], flag: str, value: str, said: str
) -> None:
    """One message, as in `run`."""
    run_id, texts = records["cola"].run_id, ("--text", "the cat")
    error = call("predict", run_id, *texts, "--results", world.store.root, flag, value).error
    assert value in error
    assert said in error


def test_memory_is_constant(world: World, records: dict[str, RunRecord]) -> None:
    """No more than one pool of examples is ever read ahead of the answers."""
    restored = load_run(world.store, records["cola"].run_id)
    given = 0

    def endless() -> object:
        nonlocal given
        while True:
            given += 1
            yield ("the cat sat " * (1 + given % 5),)

    answers = predict_texts(restored, endless(), batch_size=2, at_once=6)  # type: ignore[arg-type]
    for number in range(1, 31):
        assert next(answers).index == number - 1
        assert given <= -(-number // 6) * 6


def test_order_and_batches_do_not_matter(world: World, records: dict[str, RunRecord]) -> None:
    """Answers come in the order of the input, whatever the batches are."""
    restored = load_run(world.store, records["cola"].run_id)
    texts = [("cat " * length,) for length in (9, 1, 5, 2, 7)]
    one = [p.logits for p in predict_texts(restored, texts, batch_size=1, at_once=1)]
    all_ = [p.logits for p in predict_texts(restored, texts, batch_size=3, at_once=50)]
    np.testing.assert_allclose(one, all_, atol=1e-5)
    assert np.ptp(np.array(one)[:, 0]) > 1e-3


def command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *words: str,
    stdin: bytes = b"",
) -> tuple[int, str, str]:
    """Run the command line; return exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["spafit-bench", *words])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    with pytest.raises(SystemExit) as leaving:
        main()
    captured = capsys.readouterr()
    return int(leaving.value.code or 0), captured.out, captured.err


def test_command_line(
    world: World,
    records: dict[str, RunRecord],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Arguments, standard input and every output format, by the beginning of a run's name."""
    where = ("--results", str(world.results), "--device", "cpu")
    code, out, _ = command(
        monkeypatch, capsys, "predict", "mrpc", "--text", "the cat\tsat", "--text-pair", "a dog",
        *where,
    )  # fmt: skip
    header, row = (line.split("\t") for line in out.splitlines())
    assert code == 0
    assert header == ["label", "probability", "sentence1", "sentence2"]
    assert row[0] in PAIR.labels
    assert row[2:] == ["the cat sat", "a dog"]
    typed = b"\xef\xbb\xbfthe cat\ta dog\nthe bird\ta cat\n"
    code, out, _ = command(
        monkeypatch, capsys, "predict", "mnli", "--format", "jsonl", *where, stdin=typed
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["premise"] for row in rows] == ["the cat", "the bird"]
    assert [sum(row["probabilities"].values()) for row in rows] == pytest.approx([1, 1])
    code, out, err = command(
        monkeypatch, capsys, "predict", "stsb", "--json", *where, stdin=b"a\tb\nonly one\n"
    )
    assert (code, out) == (2, "")
    assert "standard input, line 2" in err
    code, _, err = command(monkeypatch, capsys, "predict", "m", "--text", "a", *where)
    assert code == 2
    assert "could be any of 2 runs" in err


def test_empty_input_and_questions(world: World, tmp_path: Path) -> None:
    """No lines give no predictions; QQP's empty texts are allowed, as in training."""
    record = world.run("bitfit", "cola")
    (tmp_path / "empty.txt").write_text("")
    source = TextSource(file=tmp_path / "empty.txt")
    assert json.loads(predicted(world, record, source, "json"))["predictions"] == []
    assert predicted(world, record, source, "tsv") == "label\tprobability\tsentence\n"
    assert texts_of(tmp_path / "q.csv", "question1,question2\na,\n", "qqp") == [("a", "")]


def test_a_labelled_file_of_ones_own(world: World, call: Cli, tmp_path: Path) -> None:
    """Columns stay, predictions stand beside them, labels are scored, by every ending."""
    frame = pd.DataFrame(
        {"id": ["007", "9"], "sentence1": ["A b.", "C d."], "sentence2": ["A b.", "E f."]}
    )
    record = world.run("bitfit", "mrpc")
    for ending in ("csv", "jsonl", "parquet"):
        frame.assign(label=["1", "equivalent"]).to_csv(tmp_path / "in.csv", index=False)
        out = tmp_path / f"out.{ending}"
        where = ("--results", world.store.root, "--device", "cpu", "--seed", record.seed)
        answer = call("predict", record.run_id, "--file", tmp_path / "in.csv", "--out", out, *where)
        assert answer.code == 0, answer.err
        assert "accuracy" in answer.out
        assert "true class" in answer.out
        read = {"csv": pd.read_csv, "parquet": pd.read_parquet}.get(ending)
        found = read(out) if read else pd.read_json(out, lines=True)
        assert list(found)[:4] == ["id", "sentence1", "sentence2", "label"]
        assert set(found["prediction"]) <= {"equivalent", "not_equivalent"}


def test_a_merged_folder_predicts_like_its_run(
    world: World, records: dict[str, RunRecord], call: Cli, tmp_path: Path
) -> None:
    """`predict FOLDER` takes what `export` wrote: same labels, same columns, without the base."""
    record, merged = records["mrpc"], tmp_path / "merged"
    where = ("--results", world.store.root, "--device", "cpu")
    exported = call("export", record.run_id, "--to", merged, "--results", world.store.root)
    assert exported.code == 0, exported.err
    data = ("--file", world.data / "mrpc" / "validation.csv")
    of_run = call("predict", record.run_id, *data, "--json", *where)
    of_folder = call("predict", merged, *data, "--json", "--results", tmp_path / "none")
    assert of_folder.code == 0, of_folder.err
    expected = [row.pop("probabilities") for row in json.loads(of_run.out)["predictions"]]
    found = [row.pop("probabilities") for row in json.loads(of_folder.out)["predictions"]]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    out = call("predict", merged, *data, "--out", tmp_path / "out.csv")
    assert "accuracy" in out.out
    again = call("export", merged, "--to", tmp_path / "again")
    assert again.code == 2
    assert "is a merged model already" in again.error
    assert "omit --model" in call("predict", merged, *data, "--model", world.model).error


def test_texts_send_no_escapes_to_a_terminal(
    world: World, records: dict[str, RunRecord], call: Cli
) -> None:
    """TSV shows control characters; JSON escapes them as JSON does, and keeps the text."""
    text = "the \x1b[31mcat\x9b2J\u202e sat"
    where = ("--results", world.store.root, "--device", "cpu")
    command = ("predict", records["cola"].run_id, "--text", text, *where)
    shown = call(*command).out
    assert "\\x1b[31mcat" in shown
    for form in ("tsv", "json", "jsonl"):
        out = call(*command, "--format", form).out
        assert not set("\x1b\x9b\u202e") & set(out)
    assert json.loads(out)["sentence"] == text

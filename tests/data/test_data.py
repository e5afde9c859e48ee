"""Validation, fingerprints and officialness of a task's data."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spafit_bench.base.errors import UserError
from spafit_bench.data.load import Split, load_task_data, official_fingerprints, split_fingerprint
from spafit_bench.data.tasks import TASKS
from tests.support.glue_files import rows_of, write_hub, write_plain, write_tsv

SHARED = Path(__file__).resolve().parents[3] / "shared"
needs_glue = pytest.mark.skipif(
    not (SHARED / "glue").is_dir(), reason=f"no official GLUE at {SHARED / 'glue'}"
)
COMPLETE = ("cola", "sst2", "mrpc", "stsb", "rte", "wnli")


def message(task_name: str, root: Path) -> str:
    """Return the one message that loading gives."""
    with pytest.raises(UserError) as caught:
        load_task_data(TASKS[task_name], str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("task_name", "column", "value", "said"),
    [
        ("rte", "sentence2", "", "empty text"),
        ("rte", "sentence1", "  ", "empty text"),
        ("rte", "label", 2, "label 2 is out of range; rte takes 0 (entailment) or 1 (not_ent"),
        ("rte", "label", -1, "this looks like a test split"),
        ("rte", "label", -2, "label -2 is out of range"),
        ("rte", "label", "entailed", "neither a class id nor a class name (did you mean 'entail"),
        ("rte", "label", 0.5, "label '0.5' is neither a class id"),
        ("rte", "label", "", "no label"),
        ("mnli", "label", 3, "mnli takes 0 (entailment), 1 (neutral) or 2 (contradiction)"),
        ("stsb", "label", 5.5, "score 5.5 is out of range; stsb takes a number from 0 to 5"),
        ("stsb", "label", "nan", "score 'nan' is no number"),
        ("stsb", "label", "inf", "score inf is out of range"),
        ("stsb", "label", -1, "this looks like a test split"),
        ("stsb", "label", "high", "score 'high' is no number"),
        ("stsb", "label", "", "no score"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_bad_cell_is_named(
    task_name: str, column: str, value: object, said: str, kind: str, tmp_path: Path
) -> None:
    """The message has file, line (the header is line 1), column, the fault and what is valid."""
    rows = rows_of(TASKS[task_name])
    rows["train"][2][column] = value
    write_plain(tmp_path, TASKS[task_name], rows, kind)
    error = message(task_name, tmp_path)
    line = 4 if kind == "csv" else 3
    assert error.startswith(
        f"{tmp_path}/{task_name}/train.{kind}, line {line}, column '{column}': "
    )
    assert said in error


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("sentence1", None, "no text (null)"),
        ("label", None, "no label"),
        ("label", -1, "this looks like a test split"),
    ],
)
def test_a_bad_parquet_cell_is_named_by_row(
    column: str, value: object, said: str, tmp_path: Path
) -> None:
    """Parquet has no lines, so the message counts rows."""
    rows = rows_of(TASKS["rte"])
    rows["validation"][3][column] = value
    write_hub(tmp_path, TASKS["rte"], rows)
    error = message("rte", tmp_path)
    assert f"validation-00000-of-00001.parquet, row 3 (counted from 0), column '{column}'" in error
    assert said in error


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1\ta\tb", "line 3: 3 fields, but 4 are needed (index, sentence1, sentence2, label)"),
        ("1\ta\tb\tc\t0", "line 3: 5 fields, but 4 are needed"),
        ("1\ta\t \tentailment", "line 3, column 'sentence2': empty text"),
        ("1\ta\tb\tneutral", "line 3, column 'label': label 'neutral' is neither"),
        (b"1\ta\tb \xff\tentailment", "line 3: not UTF-8"),
    ],
)
def test_a_bad_tsv_line_is_named(line: str | bytes, said: str, tmp_path: Path) -> None:
    """Lines are counted from 1, the header included."""
    write_tsv(tmp_path, TASKS["rte"], rows_of(TASKS["rte"]))
    path = tmp_path / "RTE/train.tsv"
    lines = path.read_bytes().split(b"\n")
    lines[2] = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"\n".join(lines))
    assert f"{path}, {said}" in message("rte", tmp_path)


def test_a_missing_column_gets_the_nearest_present(tmp_path: Path) -> None:
    """Every format suggests the nearest column that is there."""
    for kind in ("csv", "jsonl", "hub"):
        rows = rows_of(TASKS["rte"])
        renamed = [{"sentence_1": r.pop("sentence1")} | r for r in rows["train"]]
        write_hub(tmp_path / kind, TASKS["rte"], rows | {"train": renamed})
        if kind != "hub":
            shutil.rmtree(tmp_path / kind)
            write_plain(tmp_path / kind, TASKS["rte"], rows_of(TASKS["rte"]), kind)
            path = tmp_path / kind / f"rte/train.{kind}"
            path.write_text(path.read_text().replace("sentence1", "sentence_1"))
        error = message("rte", tmp_path / kind)
        assert "no column 'sentence1': did you mean 'sentence_1'?" in error


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("sentence1", [1, 2], "int, but must be text"),
        ("label", [0.0, 1.0], "label '0.0' is neither a class id nor a class name"),
        ("label", [[0], [1]], "label '[0]' is neither a class id nor a class name"),
    ],
)
def test_a_parquet_column_of_the_wrong_type_is_named(
    column: str, values: list[Any], said: str, tmp_path: Path
) -> None:
    """The message names the first cell of the column."""
    rows = rows_of(TASKS["rte"], 2)
    for row, value in zip(rows["train"], values, strict=True):
        row[column] = value
    write_hub(tmp_path, TASKS["rte"], rows)
    assert f"row 0 (counted from 0), column '{column}': {said}" in message("rte", tmp_path)


def with_names(rows: list[dict[str, Any]], names: list[str]) -> pa.Table:
    """Return a table with the metadata that the `datasets` library writes."""
    table = pa.Table.from_pylist(rows)
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    info = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": info})


def test_ids_in_another_class_order_are_refused(tmp_path: Path) -> None:
    """Copies of MNLI disagree on what 0 means; the file's metadata decides."""
    task, rows = TASKS["mnli"], rows_of(TASKS["mnli"])
    swapped = with_names(rows["train"], ["contradiction", "entailment", "neutral"])
    write_hub(tmp_path, task, rows | {"train": swapped})
    assert "task's order is entailment, neutral, contradiction" in message("mnli", tmp_path)
    for names in (list(task.labels), ["0", "1", "2"]):
        write_hub(tmp_path, task, rows | {"train": with_names(rows["train"], names)})
        assert load_task_data(task, str(tmp_path)).splits["train"].num_rows == 5


@pytest.mark.parametrize("dictionary", [False, True])
def test_class_names_are_labels_too(dictionary: bool, tmp_path: Path) -> None:
    """Parquet may hold them as strings, plain or dictionary-encoded."""
    task, rows = TASKS["mnli"], rows_of(TASKS["mnli"])
    expected = [row["label"] for row in rows["train"]]
    table = pa.Table.from_pylist(
        [row | {"label": task.labels[row["label"]]} for row in rows["train"]]
    )
    if dictionary:
        table = table.set_column(2, "label", table["label"].dictionary_encode())
    write_hub(tmp_path, task, rows | {"train": table})
    labels = load_task_data(task, str(tmp_path)).splits["train"].labels
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("kind", ["hub", "tsv", "csv"])
def test_no_rows_and_empty_files_are_said(kind: str, tmp_path: Path) -> None:
    """Both happen when a download or a filter went wrong."""
    task, rows = TASKS["rte"], rows_of(TASKS["rte"])
    if kind == "hub":
        write_hub(tmp_path, task, rows | {"train": pa.Table.from_pylist(rows["train"])[:0]})
    elif kind == "tsv":
        write_tsv(tmp_path, task, rows | {"train": []})
    else:
        write_plain(tmp_path, task, rows | {"train": []}, "csv")
    assert "no rows; train needs at least one" in message("rte", tmp_path)
    (path,) = (path for path in tmp_path.rglob("train*") if path.is_file())
    path.write_bytes(b"")
    assert message("rte", tmp_path).startswith(f"{path}: the file is empty")


def test_a_truncated_parquet_file_is_said(tmp_path: Path) -> None:
    """A download that was interrupted leaves such a file."""
    write_hub(tmp_path, TASKS["rte"], rows_of(TASKS["rte"]))
    path = tmp_path / "rte/train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path}: cannot be read as parquet" in message("rte", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("sentence;label\na;1\n", "line 1: the columns are separated by semicolons; save"),
        ("sentence\tlabel\na\t1\n", "line 1: the columns are separated by tabs; save"),
        ("sentence,label,label\na,1,0\n", "line 1: column 'label' is there more than once"),
        ("sentence,label,id,id\na,1,0,0\n", "line 1: column 'id' is there more than once"),
    ],
)
def test_a_wrong_csv_header_is_said(content: str, said: str, tmp_path: Path) -> None:
    """Spreadsheets of some countries write semicolons; of two columns one would be lost."""
    write_plain(tmp_path, TASKS["cola"], rows_of(TASKS["cola"]), "csv")
    (tmp_path / "cola" / "train.csv").write_text(content)
    assert said in message("cola", tmp_path)


def test_csv_of_old_spreadsheets_is_read(tmp_path: Path) -> None:
    """A carriage return alone ends their lines."""
    write_plain(tmp_path, TASKS["cola"], rows_of(TASKS["cola"]), "csv")
    path = tmp_path / "cola" / "train.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r"))
    data = load_task_data(TASKS["cola"], str(tmp_path))
    assert data.splits["train"].texts[0][:2] == ("train sentence 0", "train sentence 1")


def test_a_key_twice_in_a_json_line_is_said(tmp_path: Path) -> None:
    """Which of the two is meant cannot be known."""
    write_plain(tmp_path, TASKS["cola"], rows_of(TASKS["cola"]), "jsonl")
    line = '{"sentence": "a", "label": 1, "label": 0}\n'
    (tmp_path / "cola" / "train.jsonl").write_text(line)
    assert "line 1: not JSON (the key 'label' is there more than once)" in message("cola", tmp_path)


def test_texts_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    """Even in a task that may have an empty text: there would be nothing to train on."""
    rows = rows_of(TASKS["qqp"])
    rows["validation"] = [row | {"question1": "", "question2": " "} for row in rows["validation"]]
    write_hub(tmp_path, TASKS["qqp"], rows)
    assert "every text of validation is empty" in message("qqp", tmp_path)


def test_half_surrogates_are_refused(tmp_path: Path) -> None:
    """JSON can write what UTF-8 cannot."""
    write_plain(tmp_path, TASKS["rte"], rows_of(TASKS["rte"]), "jsonl")
    path = tmp_path / "rte/train.jsonl"
    path.write_text(path.read_text().replace("train sentence1 2", "\\ud83d"))
    assert "line 3, column 'sentence1': half of a surrogate pair" in message("rte", tmp_path)


def test_qqp_may_have_an_empty_question(tmp_path: Path) -> None:
    """Two official rows have one."""
    rows = rows_of(TASKS["qqp"])
    rows["train"][1]["question2"] = ""
    write_hub(tmp_path, TASKS["qqp"], rows)
    assert load_task_data(TASKS["qqp"], str(tmp_path)).splits["train"].texts[1][1] == ""


BASE = Split(texts=(("a", "bc"), ("d", "e")), labels=np.array([0, 1]))


@pytest.mark.parametrize(
    "other",
    [
        Split(texts=(("ab", "c"), ("d", "e")), labels=BASE.labels),
        Split(texts=(("bc", "a"), ("d", "e")), labels=BASE.labels),
        Split(texts=(("d", "e"), ("a", "bc")), labels=BASE.labels),
        Split(texts=(("a", "bc", "d", "e"),), labels=BASE.labels),
        Split(texts=BASE.texts, labels=np.array([1, 0])),
        Split(texts=BASE.texts, labels=None),
        Split(texts=(("a", "bc"), ("d", "e ")), labels=BASE.labels),
    ],
)
def test_the_fingerprint_sees_every_difference(other: Split) -> None:
    """It depends on text boundaries, the order of rows and columns, labels and blanks."""
    assert split_fingerprint(other) != split_fingerprint(BASE)


def scores(*values: float) -> Split:
    """Return a split with these scores."""
    return Split(texts=(("a",) * len(values),), labels=np.array(values, dtype=np.float32))


def test_a_score_counts_as_it_is_trained_on() -> None:
    """Copies of GLUE may round its own fractions to three decimals; no other score is rounded."""
    first, *others = (split_fingerprint(scores(score)) for score in (3.067, 3.0671, 3.068))
    assert first not in others
    assert others[0] != others[1]
    assert split_fingerprint(scores(19 / 9)) == split_fingerprint(scores(2.111))
    assert split_fingerprint(scores(0.00034)) != split_fingerprint(scores(0.00035))


def test_scores_beyond_glue_count_to_the_last_digit() -> None:
    """The number counts, not the type that holds it."""
    narrow = scores(0.00034)
    wide = Split(texts=(("a",),), labels=np.array([np.float32(0.00034)], dtype=np.float64))
    found = split_fingerprint(narrow, exact_scores=True)
    assert found == split_fingerprint(wide, exact_scores=True)
    assert found != split_fingerprint(scores(0.00035), exact_scores=True)


def test_loaded_labels_cannot_be_changed(tmp_path: Path) -> None:
    """Two runs that share loaded data see the same."""
    write_hub(tmp_path, TASKS["rte"], rows_of(TASKS["rte"]))
    labels = load_task_data(TASKS["rte"], str(tmp_path)).splits["train"].labels
    assert labels is not None
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 1


def test_officialness_by_row_count_where_no_fingerprint_is_known(tmp_path: Path) -> None:
    """The basis is reported; data with one row fewer is not official."""
    counts = {"train": 5, "validation": 5}
    unknown = dataclasses.replace(TASKS["rte"], name="newtask", rows=MappingProxyType(counts))
    write_hub(tmp_path, unknown, rows_of(unknown))
    data = load_task_data(unknown, str(tmp_path))
    assert (data.official_split, data.official_basis) == (True, "row count")
    write_hub(tmp_path, unknown, {"train": rows_of(unknown)["train"][:4]})
    data = load_task_data(unknown, str(tmp_path))
    assert (data.official_split, data.official_basis) == (False, "train has 4 rows, official has 5")


@needs_glue
@pytest.mark.parametrize("name", COMPLETE)
def test_official_glue_is_recognised_in_both_layouts(name: str) -> None:
    """Parquet and TSV copies are the same data, test sets included, and official."""
    hub, tsv = (load_task_data(TASKS[name], str(SHARED / kind)) for kind in ("glue", "glue-tsv"))
    assert hub.official_split
    assert hub.official_basis == "fingerprint"
    assert hub.fingerprint == tsv.fingerprint
    assert {key: split.num_rows for key, split in hub.splits.items()} == dict(hub.task.rows)


@needs_glue
def test_one_changed_label_or_text_is_not_official(tmp_path: Path) -> None:
    """The row count is the same, but the fingerprint is another."""
    shutil.copytree(SHARED / "glue/rte", tmp_path / "rte")
    path = tmp_path / "rte/validation-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[7]["label"] = 1 - rows[7]["label"]
    write_hub(tmp_path, TASKS["rte"], {"validation": rows})
    data = load_task_data(TASKS["rte"], str(tmp_path))
    assert not data.official_split
    assert data.official_basis == "validation differs from official GLUE"


@needs_glue
def test_idx_and_test_labels_do_not_matter(tmp_path: Path) -> None:
    """Copies of GLUE differ in these, so the fingerprint leaves them out."""
    official = load_task_data(TASKS["mrpc"], str(SHARED / "glue"))
    for path in (SHARED / "glue/mrpc").iterdir():
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            del row["idx"]
            row["label"] = 1 if "test" in path.name else row["label"]
        write_hub(tmp_path, TASKS["mrpc"], {path.name.split("-")[0]: rows})
    copy = load_task_data(TASKS["mrpc"], str(tmp_path))
    assert (copy.fingerprint, copy.official_split) == (official.fingerprint, True)


@needs_glue
@pytest.mark.parametrize("name", ["mnli", "qnli", "qqp"])
def test_splits_carved_out_of_dev_are_not_official(name: str) -> None:
    """Their text is GLUE's, but in another split."""
    data = load_task_data(TASKS[name], str(SHARED / "glue-derived"))
    assert not data.official_split
    assert f"official has {data.task.rows['train']}" in data.official_basis


@needs_glue
def test_dev_by_fingerprint_and_train_by_row_count(tmp_path: Path) -> None:
    """If only the fingerprint of dev is known, the basis names both."""
    shutil.copytree(SHARED / "glue/qnli", tmp_path / "qnli")
    num_rows = TASKS["qnli"].rows["train"]
    row = {"question": "q", "sentence": "s", "label": 0}
    write_hub(tmp_path, TASKS["qnli"], {"train": [row] * num_rows})
    data = load_task_data(TASKS["qnli"], str(tmp_path))
    assert (data.official_split, data.official_basis) == (True, "fingerprint and row count")
    assert set(official_fingerprints()["qnli"]) == {"validation"}


@needs_glue
def test_mnli_test_sets_include_ax_from_both_layouts(tmp_path: Path) -> None:
    """AX is the same 1,104 rows wherever it comes from."""
    task = TASKS["mnli"]
    write_hub(tmp_path / "hub", task, {k: v for k, v in rows_of(task).items() if k != "ax"})
    shutil.copytree(SHARED / "glue/ax", tmp_path / "hub/ax")
    write_tsv(tmp_path / "tsv", task, {k: v for k, v in rows_of(task).items() if k != "ax"})
    shutil.copytree(SHARED / "glue-tsv/AX", tmp_path / "tsv/AX")
    hub, tsv = (load_task_data(task, str(tmp_path / kind)) for kind in ("hub", "tsv"))
    assert hub.fingerprint == tsv.fingerprint
    assert hub.splits["ax"].num_rows == 1104

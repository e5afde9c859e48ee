"""Small data folders for tests, in every layout that the loaders know."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spafit_bench.data.layouts import Part, parts_of
from spafit_bench.data.tasks import Task

Rows = dict[str, list[dict[str, Any]]]
"""Split key -> rows by the hub's column names."""


def rows_of(task: Task, num_rows: int = 5) -> Rows:
    """Make rows for every split; test labels are -1."""
    made: Rows = {}
    for part in parts_of(task):
        made[part.key] = [
            {name: f"{part.key} {name} {row}" for name in task.text_columns}
            | {"label": _label(task, row) if part.test_set is None else -1}
            for row in range(num_rows)
        ]
    return made


def _label(task: Task, row: int) -> float:
    return float(row) if task.is_regression else row % task.num_labels


def write_hub(root: Path, task: Task, rows: Mapping[str, Any]) -> None:
    """Write the hub's layout; a value may be rows or a ready pyarrow table."""
    for part in parts_of(task):
        if part.key in rows:
            value = rows[part.key]
            table = value if isinstance(value, pa.Table) else pa.Table.from_pylist(value)
            path = root / part.config / f"{part.split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)


def write_plain(root: Path, task: Task, rows: Mapping[str, Any], kind: str) -> None:
    """Write CSV or JSON lines."""
    for part in parts_of(task):
        if part.key not in rows:
            continue
        path = root / part.config / f"{part.split}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            if kind == "jsonl":
                file.writelines(
                    json.dumps(row, ensure_ascii=False) + "\n" for row in rows[part.key]
                )
            else:
                writer = csv.DictWriter(file, [*task.text_columns, "label"])
                writer.writeheader()
                writer.writerows(rows[part.key])


TSV_HEADERS: dict[str, dict[str, str]] = {
    "cola": {"test": "index sentence"},
    "sst2": {"*": "sentence label", "test": "index sentence"},
    "mrpc": {
        "*": "\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String",
        "test": "index|#1 ID|#2 ID|#1 String|#2 String",
    },
    "stsb": {
        "*": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        "test": "index genre filename year old_index source1 source2 sentence1 sentence2",
    },
    "qqp": {"*": "id qid1 qid2 question1 question2 is_duplicate", "test": "id question1 question2"},
    "mnli": {
        "train": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
        "sentence1_parse sentence2_parse sentence1 sentence2 label1 gold_label",
        "*": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
        "sentence1_parse sentence2_parse sentence1 sentence2 "
        "label1 label2 label3 label4 label5 gold_label",
        "test": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
        "sentence1_parse sentence2_parse sentence1 sentence2",
        "ax": "index sentence1 sentence2",
    },
    "qnli": {"*": "index question sentence label", "test": "index question sentence"},
    "rte": {"*": "index sentence1 sentence2 label", "test": "index sentence1 sentence2"},
    "wnli": {"*": "index sentence1 sentence2 label", "test": "index sentence1 sentence2"},
}  # fmt: skip
"""GLUE's own header lines: by split, `test` for every test set, `*` for the rest."""

TSV_FILES = {
    "train": "train", "validation": "dev", "test": "test",
    "validation_matched": "dev_matched", "validation_mismatched": "dev_mismatched",
    "test_matched": "test_matched", "test_mismatched": "test_mismatched",
}  # fmt: skip
LABELS_AS_NAMES = ("mnli", "qnli", "rte")


def tsv_header(task: Task, part: Part) -> list[str]:
    """Return the columns of GLUE's own file; CoLA's train and dev have none."""
    headers = TSV_HEADERS[task.name]
    key = "test" if part.test_set else "*"
    line = headers.get(part.key) or headers.get(key, "")
    return line.split("|") if "|" in line else line.split()


def write_tsv(root: Path, task: Task, rows: Mapping[str, Any], newline: str = "\n") -> None:
    """Write GLUE's TSV layout, every other column filled with `-`."""
    for part in parts_of(task):
        if part.key not in rows:
            continue
        header = tsv_header(task, part)
        lines = ["\t".join(header)] if header else []
        lines += [_tsv_line(task, header, row) for row in rows[part.key]]
        path = root / task.title / f"{TSV_FILES.get(part.key)}.tsv"
        if part.key == "ax":
            path = root / "diagnostic" / "diagnostic.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(line + newline for line in lines).encode())


def _tsv_line(task: Task, header: Sequence[str], row: Mapping[str, Any]) -> str:
    label = row["label"]
    shown = f"{label:.3f}" if task.is_regression else str(label)
    if task.name in LABELS_AS_NAMES and label != -1:
        shown = task.labels[label]
    if not header:
        return f"gj04\t{shown}\t*\t{row['sentence']}"
    cells = dict.fromkeys(header, "-")
    names = task.tsv_columns
    if not set(names) <= set(header):
        names = ("sentence1", "sentence2")
    cells |= dict(zip(names, (row[name] for name in task.text_columns), strict=True))
    if header[0].strip("\ufeff") == task.tsv.label_column:
        cells[header[0]] = shown
    elif header[-1] == task.tsv.label_column:
        cells[header[-1]] = shown
    return "\t".join(cells.values())

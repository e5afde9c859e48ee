"""A task's data as training sees it: validated, fingerprinted, and known to be official or not.

`load_task_data` is all that the rest of the package uses.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.data.layouts import read_source
from spafit_bench.data.readers import Cell, Table
from spafit_bench.data.tasks import Task
from spafit_bench.data.text_files import text_problem

Labels = NDArray[np.int64] | NDArray[np.float32]

_INTEGER = "[+-]?[0-9]{1,40}"

OFFICIAL_FINGERPRINTS = Path(__file__).with_name("official.json")
"""Task -> split -> `split_fingerprint` of GLUE's own; made by `scripts/fingerprint_glue.py`."""


@dataclass(frozen=True)
class Split:
    """One split."""

    texts: tuple[tuple[str, ...], ...]
    """One tuple per text column, each with one string per row."""
    labels: Labels | None
    """[num_rows] class ids (int64) or scores (float32); None for test sets."""

    @property
    def num_rows(self) -> int:
        """Rows."""
        return len(self.texts[0])

    def head(self, num_rows: int | None) -> Split:
        """Return the first rows, or all of them for None."""
        labels = None if self.labels is None else self.labels[:num_rows]
        return Split(tuple(column[:num_rows] for column in self.texts), labels)

    def take(self, rows: NDArray[np.int64]) -> Split:
        """Return the given rows, in the given order."""
        labels = None if self.labels is None else self.labels[rows]
        return Split(tuple(tuple(column[i] for i in rows) for column in self.texts), labels)


@dataclass(frozen=True)
class TaskData:
    """Every split of a task that its source has."""

    task: Task
    source: str
    """`mini`, the folder as it was given, or the hub's repository and commit."""
    splits: Mapping[str, Split]
    """By `train`, the task's `dev_splits` and the `key` of each test set that exists."""
    fingerprint: str
    """SHA-256 over every split's text, and the labels of train and dev, in row order."""
    official_split: bool
    official_basis: str
    """`fingerprint`, `row count` or both, for an official split; else what differs."""


def load_task_data(task: Task, source: str, *, offline: bool = False) -> TaskData:
    """Load and validate a task's data.

    Args:
        task: the task.
        source: `hub` (nyu-mll/glue), `mini` (the generated set inside the package) or a folder:
            hub layout, GLUE's TSV layout, or CSV/JSON lines.
        offline: use the hub's cache without asking the hub.

    Raises:
        UserError: train or dev is missing, or a file is not what the task needs; the message
            names file, row and column.
    """
    origin, tables = read_source(task, source, offline=offline)
    splits = {key: validated_split(task, key, shards) for key, shards in tables.items()}
    fingerprints = {
        key: split_fingerprint(split, exact_scores=not task.in_glue)
        for key, split in splits.items()
    }
    official_split, official_basis = _officialness(task, splits, fingerprints)
    return TaskData(
        task=task,
        source=origin,
        splits=MappingProxyType(splits),
        fingerprint=_digest_of_json(_identity(task) | {"splits": fingerprints}),
        official_split=official_split,
        official_basis=official_basis,
    )


def _identity(task: Task) -> dict[str, object]:
    """Say what a task is, besides its data: a name is enough in GLUE."""
    if task.in_glue:
        return {"task": task.name}
    return {"task": task.name, "labels": task.labels, "metrics": task.metrics} | {
        "range": task.label_range
    }


def limited(data: TaskData, num_rows: int | None) -> TaskData:
    """Return the data with only the first rows of train; dev is never cut."""
    if num_rows is None:
        return data
    train = data.splits["train"].head(num_rows)
    return replace(data, splits={**data.splits, "train": train})


HOLDOUT = "holdout"


def hold_out(data: TaskData, share: float) -> TaskData:
    """Return the data with a random slice of train in place of dev, and no test sets.

    The slice depends on the number of rows alone, so that every method and seed is judged on the
    same one.

    Raises:
        UserError: the slice would be empty, or all there is.
    """
    train = data.splits["train"]
    size = round(share * train.num_rows)
    if not 0 < size < train.num_rows:
        raise UserError(
            f"holdout = {share:g}: train of {data.task.name} has {train.num_rows} rows, which "
            f"leaves {size} to hold out"
        )
    order = np.random.default_rng(0).permutation(train.num_rows)
    return replace(
        data,
        task=replace(data.task, dev_splits=(HOLDOUT,), test_sets=()),
        splits={
            "train": train.take(np.sort(order[size:])),
            HOLDOUT: train.take(np.sort(order[:size])),
        },
        official_split=False,
        official_basis="a held-out slice of train",
    )


def split_fingerprint(split: Split, *, exact_scores: bool = False) -> str:
    """SHA-256 of one split's texts and labels, in row order; the same for every file format.

    Each text column is hashed as its byte lengths, then its UTF-8 bytes; scores as text with
    three decimals, which is all that GLUE gives, or with nine digits if they are to be exact.
    """
    score = "{:.9g}".format if exact_scores else "{:.3f}".format
    labels = split.labels
    sha = hashlib.sha256()
    shape = {"columns": len(split.texts), "rows": split.num_rows, "labelled": labels is not None}
    sha.update(json.dumps(shape, sort_keys=True).encode())
    for column in split.texts:
        encoded = [text.encode() for text in column]
        sha.update(np.fromiter(map(len, encoded), dtype="<u8", count=len(encoded)).tobytes())
        sha.update(b"".join(encoded))
    if labels is not None:
        is_score = labels.dtype.kind == "f"
        sha.update(",".join(score(label) if is_score else str(label) for label in labels).encode())
    return sha.hexdigest()


@cache
def official_fingerprints() -> Mapping[str, Mapping[str, str]]:
    """Return the known fingerprints: task -> split -> SHA-256; not every split has one."""
    known: dict[str, dict[str, str]] = json.loads(OFFICIAL_FINGERPRINTS.read_text("utf-8"))
    return known


def _digest_of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _officialness(
    task: Task, splits: Mapping[str, Split], fingerprints: Mapping[str, str]
) -> tuple[bool, str]:
    if not task.rows:
        return False, "the task's file states no rows"
    known = official_fingerprints().get(task.name, {})
    differences, bases = [], set()
    for key in ("train", *task.dev_splits):
        num_rows, official_rows = splits[key].num_rows, task.rows[key]
        if num_rows != official_rows:
            differences.append(f"{key} has {num_rows} rows, official has {official_rows}")
        elif known.get(key, fingerprints[key]) != fingerprints[key]:
            differences.append(f"{key} differs from official GLUE")
        bases.add("fingerprint" if key in known else "row count")
    return not differences, "; ".join(differences) or " and ".join(sorted(bases))


def validated_split(task: Task, key: str, shards: Sequence[Table]) -> Split:
    """Join the shards of one split, each checked.

    Raises:
        UserError: no rows, or a text or label that `task` cannot have.
    """
    num_rows = sum(len(shard.positions) for shard in shards)
    if not num_rows:
        raise UserError(f"{shards[0].path}: no rows; {key} needs at least one")
    unchecked = key not in official_fingerprints().get(task.name, {})
    may_be_empty = task.empty_texts or (unchecked and num_rows == task.rows.get(key))
    for shard in shards:
        for name, cells in zip(shard.columns.texts, shard.cells, strict=False):
            _check_texts(shard, name, cells, may_be_empty=may_be_empty)
    texts = tuple(
        tuple(cell for shard in shards for cell in shard.cells[index])
        for index in range(len(task.text_columns))
    )
    if task.templates:
        texts = tuple(zip(*map(task.compose, zip(*texts, strict=True)), strict=True))
    if shards[0].columns.label is None:
        return Split(texts=texts, labels=None)
    read = _scores if task.is_regression else _class_ids
    labels: Labels = np.concatenate([read(task, shard) for shard in shards])
    labels.setflags(write=False)
    return Split(texts=texts, labels=labels)


def _check_texts(table: Table, name: str, cells: Sequence[Cell], *, may_be_empty: bool) -> None:
    for row, cell in enumerate(cells):
        problem = text_problem(cell, may_be_empty=may_be_empty)
        if problem:
            raise UserError(f"{table.where(row, name)}: {problem}")


def _label_error(task: Task, table: Table, row: int, problem: str) -> UserError:
    if task.label_range is not None:
        valid = "a number from {:g} to {:g}".format(*task.label_range)
    else:
        *names, last = (f"{index} ({name})" for index, name in enumerate(task.labels))
        valid = f"{', '.join(names)} or {last}"
    where = table.where(row, str(table.columns.label))
    return UserError(f"{where}: {problem}; {task.name} takes {valid}")


def _class_ids(task: Task, table: Table) -> NDArray[np.int64]:
    """Ids of a label column that holds ids or class names."""
    cells = table.cells[-1]
    labels = [str(cell) if type(cell) in (int, str, bool) else None for cell in cells]
    ids: dict[str | None, int] = {}
    for label in dict.fromkeys(labels):
        row = labels.index(label)
        problem = _class_problem(task, label, cells[row])
        if problem:
            raise _label_error(task, table, row, problem)
        ids[label] = task.labels.index(label) if label in task.labels else int(label or "")
    return np.fromiter((ids[label] for label in labels), dtype=np.int64, count=len(labels))


def _class_problem(task: Task, label: str | None, cell: Cell) -> str:
    """Say what is wrong with a label; it is None where `cell` is neither integer nor text."""
    if cell is None or cell == "":
        return "no label"
    if label in task.labels:
        return ""
    are_numbers = any(re.fullmatch(_INTEGER, name) for name in task.labels)  # then ids are not
    if label is None or are_numbers or not re.fullmatch(_INTEGER, label):
        hint = f" ({nearest(label[:40], task.labels)})" if label else ""
        return f"label {str(cell)[:40]!r} is neither a class id nor a class name{hint}"
    if int(label) == -1:
        return "label -1: this looks like a test split, whose labels are not public"
    return "" if 0 <= int(label) < len(task.labels) else f"label {label} is out of range"


def _scores(task: Task, table: Table) -> NDArray[np.float32]:
    """Scores of a regression label column."""
    assert task.label_range is not None
    low, high = task.label_range
    scores = []
    for row, cell in enumerate(table.cells[-1]):
        score = _number(cell)
        if score is None:
            problem = "no score" if cell in (None, "") else f"score {str(cell)[:40]!r} is no number"
            raise _label_error(task, table, row, problem)
        if not low <= score <= high:
            looks = ": this looks like a test split, whose scores are not public"
            problem = f"score {score:g} is out of range" if score != -1 else f"score -1{looks}"
            raise _label_error(task, table, row, problem)
        scores.append(score)
    return np.asarray(scores, dtype=np.float32)


def _number(cell: Cell) -> float | None:
    """Read a finite or infinite number; None for anything else."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str) or "_" in str(cell):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number

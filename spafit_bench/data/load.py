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
_LARGEST_SCORE = float(np.finfo(np.float32).max)
_GLUE_FRACTIONS = {np.float32(n / d) for n, d in ((19, 9), (34, 9), (32, 7), (37, 15), (23, 15))}
_GLUE_FRACTIONS |= {np.float32(7 / 3), np.float32(10 / 3)}
"""The scores of STS-B's own rows that have more than three decimals, as means over annotators."""

OFFICIAL_FINGERPRINTS = Path(__file__).with_name("official.json")
"""Task -> split -> `split_fingerprint` of GLUE's own; made by `scripts/fingerprint_glue.py`."""


@dataclass(frozen=True)
class Split:
    """One split."""

    texts: tuple[tuple[str, ...], ...]
    """One tuple per text column, each with one string per row."""
    labels: Labels | None
    """[num_rows] class ids (int64) or scores (float32); None for a test set without labels."""

    @property
    def num_rows(self) -> int:
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
    """SHA-256 over every split's texts and the labels that were read, in row order."""
    official_split: bool
    official_basis: str
    """`fingerprint`, `row count` or both, for an official split; else what differs."""
    notes: tuple[str, ...] = ()
    """What is unusual about the rows, and training or scores may suffer from."""


def load_task_data(
    task: Task, source: str, *, offline: bool = False, split: float | None = None
) -> TaskData:
    """Load and validate a task's data.

    Args:
        task: the task.
        source: `hub` (nyu-mll/glue), `mini` (the small set inside the package) or a folder: hub
            layout, GLUE's TSV layout, or CSV/JSON lines.
        offline: use the hub's cache without asking the hub.
        split: share of train that becomes dev, if the source has no dev set.

    Raises:
        UserError: train or dev is missing, or a file is not what the task needs; the message
            names file, row and column.
    """
    made = () if split is None else task.dev_splits
    origin, tables = read_source(task, source, offline=offline, without=made)
    splits = {key: validated_split(task, key, shards) for key, shards in tables.items()}
    if split is not None:
        held_out = _stratified(task, splits["train"], split)
        divided = _divided(splits["train"], held_out, task.dev_splits[0], f"--split {split:g}")
        splits = divided | {key: rows for key, rows in splits.items() if key != "train"}
    fingerprints = {
        key: split_fingerprint(rows, exact_scores=not task.in_glue) for key, rows in splits.items()
    }
    official_split, official_basis = _officialness(task, splits, fingerprints)
    if split is not None:
        official_split, official_basis = False, f"validation is {split:g} of train (--split)"
    identity: dict[str, object] = {"task": task.name, "splits": fingerprints}
    if not task.in_glue:  # whose name does not say what it is
        identity |= {"labels": task.labels, "metrics": task.metrics, "range": task.label_range}
    return _noted(
        TaskData(
            task=task,
            source=origin,
            splits=MappingProxyType(splits),
            fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
            official_split=official_split,
            official_basis=official_basis,
        )
    )


def limited(data: TaskData, num_rows: int | None) -> TaskData:
    """Return the data with only the first rows of train; dev is never cut."""
    if num_rows is None:
        return data
    train = data.splits["train"].head(num_rows)
    return _noted(replace(data, splits={**data.splits, "train": train}))


HOLDOUT = "holdout"


def hold_out(data: TaskData, share: float) -> TaskData:
    """Return the data with a random slice of train in place of dev, and no test sets.

    The slice depends on the number of rows alone, so that every method and seed is judged on the
    same one.

    Raises:
        UserError: the slice would be empty, or all there is.
    """
    train = data.splits["train"]
    held_out = np.zeros(train.num_rows, dtype=bool)
    order = np.random.default_rng(0).permutation(train.num_rows)
    held_out[order[: round(share * train.num_rows)]] = True
    return _noted(
        replace(
            data,
            task=replace(data.task, dev_splits=(HOLDOUT,), test_sets=()),
            splits=_divided(train, held_out, HOLDOUT, f"holdout = {share:g}"),
            official_split=False,
            official_basis="a held-out slice of train",
        )
    )


def _stratified(task: Task, train: Split, share: float) -> NDArray[np.bool_]:
    """Draw a share of the rows, of each class alike; the draw depends on the labels alone."""
    assert train.labels is not None
    rng = np.random.default_rng(0)
    groups = np.zeros_like(train.labels) if task.is_regression else train.labels
    held_out = np.zeros(train.num_rows, dtype=bool)
    for group in np.unique(groups):
        rows = rng.permutation(np.flatnonzero(groups == group))
        held_out[rows[: round(share * len(rows))]] = True
    return held_out


def _divided(train: Split, held_out: NDArray[np.bool_], key: str, setting: str) -> dict[str, Split]:
    """Return the rows of train that stay, and as another split those that are held out."""
    if not held_out.any() or held_out.all():
        raise UserError(
            f"{setting}: train has {train.num_rows} rows, which leaves {held_out.sum()} to hold out"
        )
    rows = {"train": np.flatnonzero(~held_out), key: np.flatnonzero(held_out)}
    return {name: train.take(numbers) for name, numbers in rows.items()}


def _noted(data: TaskData) -> TaskData:
    """Return the data with what is unusual about its rows."""
    task, notes = data.task, []
    for key, split in data.splits.items():
        if split.labels is None:
            continue
        present = np.unique(split.labels)
        if task.is_regression:
            if len(present) == 1:
                notes.append(f"every score of {key} is {present[0]:g}")
            continue
        absent = [name for number, name in enumerate(task.labels) if number not in present]
        only = f": every label is {task.labels[present[0]]}" if len(present) == 1 else ""
        if absent:
            notes.append(f"{key} has no example of {', '.join(absent)}{only}")
    for key, file in task.files.items():
        if key in data.splits and file.label_column in file.text_columns:
            notes.append(f"the label of {key}, {file.label_column!r}, is also one of its texts")
    evaluated = [key for key in data.splits if key not in ("train", HOLDOUT)]
    if evaluated and not data.official_split:  # GLUE's own rows are as they are
        train = set(zip(*data.splits["train"].texts, strict=True))
        for key in evaluated:
            rows = list(zip(*data.splits[key].texts, strict=True))
            if repeated := sum(row in train for row in rows):
                notes.append(f"{repeated:,} of {len(rows):,} rows of {key} are also in train")
    return replace(data, notes=tuple(notes))


def split_fingerprint(split: Split, *, exact_scores: bool = False) -> str:
    """SHA-256 of one split's texts and labels, in row order; the same for every file format.

    Each text column is hashed as its byte lengths, then its UTF-8 bytes. Scores are hashed as text:
    with three decimals if these give the score back, or if it is GLUE's own; else, and with
    `exact_scores`, with nine digits.
    """
    labels = split.labels
    sha = hashlib.sha256()
    shape = {"columns": len(split.texts), "rows": split.num_rows, "labelled": labels is not None}
    sha.update(json.dumps(shape, sort_keys=True).encode())
    for column in split.texts:
        encoded = [text.encode() for text in column]
        sha.update(np.fromiter(map(len, encoded), dtype="<u8", count=len(encoded)).tobytes())
        sha.update(b"".join(encoded))
    if labels is not None:
        text = str if labels.dtype.kind != "f" else "{:.9g}".format if exact_scores else _decimals
        sha.update(",".join(map(text, labels)).encode())
    return sha.hexdigest()


def _decimals(score: np.float32) -> str:
    text = f"{score:.3f}"
    return text if score == np.float32(text) or score in _GLUE_FRACTIONS else f"{score:.9g}"


@cache
def official_fingerprints() -> Mapping[str, Mapping[str, str]]:
    """Return the known fingerprints: task -> split -> SHA-256; not every split has one."""
    known: dict[str, dict[str, str]] = json.loads(OFFICIAL_FINGERPRINTS.read_text("utf-8"))
    return known


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
            for row, cell in enumerate(cells):
                if problem := text_problem(cell, may_be_empty=may_be_empty):
                    raise UserError(f"{shard.where(row, name)}: {problem}")
    texts = tuple(
        tuple(cell for shard in shards for cell in shard.cells[index])
        for index in range(len(task.text_columns))
    )
    if task.templates:
        texts = tuple(zip(*map(task.compose, zip(*texts, strict=True)), strict=True))
    if may_be_empty and not any(text.strip() for column in texts for text in column):
        raise UserError(f"{shards[0].path}: every text of {key} is empty")
    read = _scores if task.is_regression else _class_ids
    if any(shard.columns.label is None for shard in shards) or _is_hidden(task, shards):
        return Split(texts=texts, labels=None)
    labels: Labels = np.concatenate([read(task, shard) for shard in shards])
    labels.setflags(write=False)
    return Split(texts=texts, labels=labels)


def _is_hidden(task: Task, shards: Sequence[Table]) -> bool:
    """Tell whether a test set has one placeholder, such as -1, in place of every label."""
    if not shards[0].columns.label_is_optional:
        return False
    first, *others = {str(cell): cell for shard in shards for cell in shard.cells[-1]}.values()
    if others:
        return False
    if not task.is_regression:
        return bool(_class_problem(task, _class_text(first), first))
    return _score_problem(task, _number(first), first) != ""


def _label_error(task: Task, table: Table, row: int, problem: str) -> UserError:
    if task.label_range is not None:
        valid = "a number from {:g} to {:g}".format(*task.label_range)
    elif task.is_regression:
        valid = "a finite number"
    else:
        *names, last = (f"{index} ({name})" for index, name in enumerate(task.labels))
        valid = f"{', '.join(names)} or {last}"
    where = table.where(row, str(table.columns.label))
    return UserError(f"{where}: {problem}; {task.name} takes {valid}")


def _class_ids(task: Task, table: Table) -> NDArray[np.int64]:
    """Return the ids of a label column that holds ids or class names."""
    labels = [_class_text(cell) for cell in table.cells[-1]]
    ids: dict[str | None, int] = {}
    for label in dict.fromkeys(labels):
        row = labels.index(label)
        problem = _class_problem(task, label, table.cells[-1][row])
        if problem:
            raise _label_error(task, table, row, problem)
        ids[label] = task.labels.index(label) if label in task.labels else int(label or "")
    return np.fromiter((ids[label] for label in labels), dtype=np.int64, count=len(labels))


def _class_text(cell: Cell) -> str | None:
    """Return the cell of a class as text; None if it is neither an integer nor text."""
    return str(cell) if type(cell) in (int, str, bool) else None


def _class_problem(task: Task, label: str | None, cell: Cell) -> str:
    """Say what is wrong with a label; empty if nothing is."""
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
    """Return the scores of a regression's label column."""
    scores = []
    for row, cell in enumerate(table.cells[-1]):
        score = _number(cell)
        if problem := _score_problem(task, score, cell):
            raise _label_error(task, table, row, problem)
        scores.append(score)
    return np.asarray(scores, dtype=np.float32)


def _score_problem(task: Task, score: float | None, cell: Cell) -> str:
    """Say what is wrong with a score; empty if nothing is."""
    if score is None:
        return "no score" if cell in (None, "") else f"score {str(cell)[:40]!r} is no number"
    low, high = task.label_range or (-_LARGEST_SCORE, _LARGEST_SCORE)
    if low <= score <= high:
        return ""
    if score == -1:
        return "score -1: this looks like a test split, whose scores are not public"
    return f"score {score:g} is out of range"


def _number(cell: Cell) -> float | None:
    """Read a finite or infinite number; None for anything else."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str) or "_" in str(cell):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number

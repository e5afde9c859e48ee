"""The table of trials: what was tried on held-out train before a setting was chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from spafit_bench.record import RunRecord
from spafit_bench.tables.cells import (
    Cell,
    Column,
    Marks,
    Measurement,
    ResultTable,
    Row,
    Sample,
    cell_of,
    marks_of,
    measurement,
    sample_of,
    shorten_labels,
)
from spafit_bench.tables.heads import UNIT
from spafit_bench.tables.settings import Group
from spafit_bench.tasks import Task

_AS_SET = "as set"
"""Heading where a method was tried with one value alone."""


def trials_table(group: Group) -> ResultTable:
    """Lay out a row for each task and method, a column for each value that was tried.

    Args:
        group: trials, as `settings.group_trials` parts them.
    """
    values = sorted({setting.difference for setting in group.rows}, key=_natural)
    methods = list(dict.fromkeys(setting.method for setting in group.rows))
    rows, notes = shorten_labels(
        [
            Row(
                label=method,
                name=method,
                group=task.title,
                cells=_cells(task, method, values, group),
            )
            for task in group.tasks
            for method in methods
            if any(s.method == method and task.name in cells for s, cells in group.rows.items())
        ]
    )
    return ResultTable(
        kind="trials",
        title=f"Trials on held-out train: {group.model}, {group.data}",
        model=group.model,
        data=group.data,
        caption="Scores times 100 on the slice of train that was kept for the choice.",
        columns=tuple(Column(key=value, title=value or _AS_SET, unit=UNIT) for value in values),
        rows=tuple(rows),
        notes=(*notes, *_notes(group, rows)),
        measurements=tuple(_measurements(group)),
    )


def _natural(text: str) -> list[tuple[bool, float, str]]:
    """Sort numbers within a text by their size."""
    words = re.split(r"[ ,]+", text)
    return [(True, float(w), "") if _is_number(w) else (False, 0.0, w) for w in words]


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", word) is not None


def _cells(task: Task, method: str, values: Sequence[str], group: Group) -> tuple[Cell, ...]:
    """Score every value; the best of those that never collapsed is bold, as `sweep` chooses."""
    tried = {s.difference: cells for s, cells in group.rows.items() if s.method == method}
    runs = [tried.get(value, {}).get(task.name, ()) for value in values]
    means = [cell_of(_scores(found), "{:.2f}".format, _marks(found)) for found in runs]
    sound = [cell.value for cell in means if cell.value is not None and not cell.marks]
    best = max(sound, default=None)
    return tuple(
        replace(cell, bold=cell.value is not None and not cell.marks and cell.value == best)
        for cell in means
    )


def _marks(runs: Sequence[RunRecord]) -> Marks:
    """Leave out what the title says of all: that no trial is on the official split."""
    return tuple(mark for mark in marks_of(runs) if mark.name == "collapsed")


def _scores(runs: Iterable[RunRecord]) -> Sample:
    return sample_of(runs, lambda run: None if run.score is None else 100 * run.score)


def _notes(group: Group, rows: Sequence[Row]) -> Iterator[str]:
    if any(cell.marks for row in rows for cell in row.cells):
        yield "†: collapsed; such a value is not chosen."
    yield "A sweep chooses the best mean of a row. The dev set has no part in it."
    if group.left_out:
        names = ", ".join(sorted({_named(run) for run in group.left_out}))
        yield f"No result, so not chosen: {names}."


def _named(run: RunRecord) -> str:
    return f"{run.task} {run.method} at {run.config['train']['learning_rate']:g} ({run.status})"


def _measurements(group: Group) -> Iterator[Measurement]:
    for setting, cells in group.rows.items():
        for task, runs in cells.items():
            where = (task, "holdout")
            yield measurement(setting, where, ("score", UNIT), _scores(runs), _marks(runs))

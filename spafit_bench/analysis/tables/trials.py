"""The table of trials: what was tried on held-out train before a setting was chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from spafit_bench.analysis.tables.cells import (
    POINTS,
    Cell,
    Column,
    Measurement,
    ResultTable,
    Row,
    Sample,
    label_notes,
    mark_notes,
    marks_of,
    mean_cell,
    measurement,
    sample_of,
)
from spafit_bench.analysis.tables.settings import RunGroup
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import RunRecord

_AS_SET = "as set"
"""Heading where a method was tried with one value alone."""


def trials_table(group: RunGroup) -> ResultTable:
    """Lay out a row for each task and method, a column for each value that was tried.

    Args:
        group: trials, as `settings.group_trials` parts them.
    """
    values = sorted({setting.difference for setting in group.rows}, key=_natural)
    methods = list(dict.fromkeys(setting.method for setting in group.rows))
    rows = [
        Row(
            label=group.short(method),
            name=method,
            group=task.title,
            cells=_cells(task, method, values, group),
        )
        for task in group.tasks
        for method in methods
        if any(s.method == method and task.name in cells for s, cells in group.rows.items())
    ]
    return ResultTable(
        kind="trials",
        title=f"Trials on held-out train: {group.model}, {group.data}",
        model=group.model,
        data=group.data,
        caption="Scores times 100 on the slice of train that was kept for the choice.",
        columns=tuple(Column(key=v or _AS_SET, title=v or _AS_SET, unit=POINTS) for v in values),
        rows=tuple(rows),
        notes=(*label_notes(methods, group), *_notes(rows)),
        measurements=tuple(_measurements(group)),
    )


def _natural(text: str) -> list[tuple[bool, float, str]]:
    """Sort numbers within a text by their size."""
    words = re.split(r"[ ,]+", text)
    return [(True, float(w), "") if _is_number(w) else (False, 0.0, w) for w in words]


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", word) is not None


def _cells(task: Task, method: str, values: Sequence[str], group: RunGroup) -> tuple[Cell, ...]:
    """Score every value; bold is the best of those that never collapsed or failed."""
    tried = {s.difference: cells for s, cells in group.rows.items() if s.method == method}
    runs = [tried.get(value, {}).get(task.name, ()) for value in values]
    cells = [_cell(found) for found in runs]
    if sum(map(bool, runs)) < 2 or any("," in value for value in tried):
        return tuple(cells)  # nothing was chosen; or within each point of a grid, not in the row
    best = max((cell.value or 0.0 for cell in cells if cell.is_rankable), default=None)
    return tuple(replace(cell, bold=cell.is_rankable and cell.value == best) for cell in cells)


def _cell(runs: Sequence[RunRecord]) -> Cell:
    """Average over seeds; a value that failed with one of them has no score."""
    if lost := {run.status for run in runs if run.status != "done"}:
        return Cell(text="/".join(sorted(lost)))
    marks = tuple(mark for mark in marks_of(runs) if mark.name != "unofficial")  # no trial is
    return replace(mean_cell(_scores(runs), "{:.2f}".format), marks=marks)


def _scores(runs: Iterable[RunRecord]) -> Sample:
    done = [run for run in runs if run.status == "done"]
    return sample_of(done, lambda run: None if run.score is None else 100 * run.score)


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "A sweep chooses the best mean of a row (the first of equals) among values that neither "
        "collapsed nor failed with any seed. The dev set has no part in it."
    )
    if edges := [f"{row.group} {row.label}" for row in rows if _is_at_an_edge(row.cells)]:
        yield f"Best at an end of what was tried; more beyond it may be better: {', '.join(edges)}."
    yield from mark_notes([mark for row in rows for cell in row.cells for mark in cell.marks])


def _is_at_an_edge(cells: Sequence[Cell]) -> bool:
    tried = [cell.bold for cell in cells if cell != Cell()]
    return len(tried) > 1 and (tried[0] or tried[-1])


def _measurements(group: RunGroup) -> Iterator[Measurement]:
    for setting, cells in group.rows.items():
        for task, runs in cells.items():
            if sample := _scores(runs):
                where = (task, "holdout")
                yield measurement(setting, where, ("score", POINTS), sample, _cell(runs).marks)

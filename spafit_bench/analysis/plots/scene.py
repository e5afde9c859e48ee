"""What all figures of one table's runs share: which rows are shown, how, with what caveats."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from spafit_bench.analysis.plots.drawing import LineStyle, line_styles
from spafit_bench.analysis.stats import average_by_seed
from spafit_bench.analysis.tables.cells import (
    MARKS,
    label_notes,
    marks_of,
    mean_of,
    score_sample,
    sd_of,
)
from spafit_bench.analysis.tables.settings import RunGroup, Setting, TaskRuns
from spafit_bench.base.escaping import printable
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import RunRecord

MOST_SHOWN = 8
"""Rows of a figure: more cannot be told apart, and a table holds them better."""
NOT_COUNTED = "(WNLI and tasks beyond GLUE not counted)"
Rows = Mapping[Setting, TaskRuns]


@dataclass(frozen=True)
class Average:
    """A mean over tasks of a row's scores, times 100."""

    mean: float
    sd: float | None
    """Over the seeds' averages; None for one seed, or unlike seeds on the tasks."""
    sound: bool
    """Whether no run of it collapsed: what did is shown, but never the best."""


@dataclass(frozen=True)
class Scene:
    """The runs of one table."""

    group: RunGroup
    baseline: Setting
    """The row that others are compared with: always shown."""

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks with runs, in the tables' order."""
        return self.group.tasks

    @cached_property
    def averaged(self) -> tuple[Task, ...]:
        """Tasks that averages are over: those that most rows have, without misleading dev sets.

        All of the table's where two rows or more have them all, else those that every row has.
        A task that is in no average is all the same shown where it is alone.
        """
        alone = self.tasks if len(self.tasks) == 1 else ()
        plain = [task for task in self.tasks if not task.note] or list(alone)
        complete = [
            cells for cells in self.group.rows.values() if all(t.name in cells for t in plain)
        ]
        if len(complete) > 1 or len(self.group.rows) == 1:
            return tuple(plain)
        rows = self.group.rows.values()
        return tuple(task for task in plain if all(task.name in cells for cells in rows))

    def average(self, row: Setting) -> Average | None:
        """Average a row over `averaged`; None where it lacks one of them."""
        cells = self.group.rows[row]
        samples = [score_sample(task, cells.get(task.name, ())) for task in self.averaged]
        if not samples or not all(samples):
            return None
        sound = not any(run.collapsed for run in self.runs([row], self.averaged))
        if len({frozenset(sample) for sample in samples}) > 1:
            return Average(statistics.fmean(map(mean_of, samples)), None, sound)
        by_seed = average_by_seed(samples)
        return Average(mean_of(by_seed), sd_of(by_seed), sound)

    @cached_property
    def shown(self) -> tuple[Setting, ...]:
        """At most `MOST_SHOWN` rows in the table's order: the best of those with most tasks."""

        def merit(row: Setting) -> tuple[bool, int, float]:
            average = self.average(row)
            num_tasks = len(self.group.rows[row])
            return row == self.baseline, num_tasks, average.mean if average else 0.0

        best = sorted(self.group.rows, key=merit, reverse=True)[:MOST_SHOWN]
        return tuple(row for row in self.group.rows if row in best)

    @cached_property
    def styles(self) -> Mapping[Setting, LineStyle]:
        """How each shown row looks, in all figures alike."""
        return dict(zip(self.shown, line_styles(len(self.shown)), strict=True))

    @cached_property
    def labels(self) -> Mapping[Setting, str]:
        """Name of each row, short enough to stand beside a line."""
        return {row: printable(self.group.short(row.label)) for row in self.group.rows}

    def runs(self, rows: Iterable[Setting], tasks: Iterable[Task]) -> list[RunRecord]:
        """Runs of some rows on some tasks."""
        names = [task.name for task in tasks]
        return [run for row in rows for name in names for run in self.group.rows[row].get(name, ())]

    def subtitle(self, rows: Sequence[Setting], tasks: Sequence[Task]) -> str:
        """Say which runs a figure is of, and how many."""
        runs = self.runs(rows, tasks)
        seeds = {len(found) for row in rows for t in tasks if (found := self.runs([row], [t]))}
        named = ", ".join(task.title for task in tasks)
        what = named if len(tasks) == 1 else f"{len(tasks)} tasks ({named})"
        low, high = min(seeds, default=0), max(seeds, default=0)
        count = f"{low} seed{'s' * (low != 1)}" if low == high else f"{low} to {high} seeds"
        where = printable(f"{self.group.model}, {self.group.data}")
        return f"{where} · {what}, {count} each; {len(runs)} runs"

    def caveats(self, rows: Sequence[Setting], tasks: Sequence[Task]) -> Iterator[str]:
        """Say everything that the tables mark, of the runs of a figure, and what it leaves out."""
        runs = self.runs(rows, tasks)
        for mark in marks_of(runs):
            meaning = MARKS[mark.name][1]
            count = f"{mark.share.replace('/', ' of ')} runs" if mark.share else "all runs"
            yield f"{meaning[0].upper()}{meaning[1:]}: {count}."
        official = {run.task for run in runs if run.official_split}
        yield from (f"{t.title}: {t.note}." for t in tasks if t.note and t.name in official)
        yield from map(printable, label_notes((row.label for row in rows), self.group))
        lost = len(self.group.left_out)
        if lost:
            yield f"{lost} run{'s' * (lost != 1)} without a result left out."

    def left_out(self, rows: Sequence[Setting]) -> Iterator[str]:
        """Say which rows of the table a figure of `shown` rows does not show."""
        why = "the others have too few runs for it"
        if len(self.group.rows) > MOST_SHOWN:
            why = "those with the most tasks and highest averages, which favours them"
        yield from self.without(rows, why, most_named=4 * (len(self.group.rows) <= MOST_SHOWN))

    def without(self, rows: Sequence[Setting], why: str, *, most_named: int = 4) -> Iterator[str]:
        """Name the rows of the table that are not among these, or count them and say why."""
        missing = [self.labels[row] for row in self.group.rows if row not in rows]
        if len(missing) > most_named:
            count = f"{len(rows)} of {len(self.group.rows)} settings are shown"
            yield f"{count}, {why}; the tables have all."
        elif missing:
            yield f"Not shown: {', '.join(missing)}."


def joined(*sentences: str) -> str:
    """Make one caption of sentences."""
    return " ".join(sentence for sentence in sentences if sentence)

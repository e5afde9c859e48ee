"""The types of a result table, and how runs become one of its cells.

A mean is over seeds alone, a spread is the sample standard deviation (n - 1), and one seed has
no spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from spafit_bench.analysis.tables.settings import RunGroup, Setting, slug
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import RunRecord

Kind = Literal["scores", "parameters", "cost", "trials"]
MarkName = Literal[
    "unofficial",
    "limited",
    "selected",
    "collapsed",
    "near_collapsed",
    "unlike",
    "better",
    "worse",
]
Sample = Mapping[int, float]
"""Seed -> value."""

MISSING = "—"
MARKS: Mapping[MarkName, tuple[str, str]] = MappingProxyType(
    {
        "unofficial": ("*", "not the official GLUE data"),
        "limited": ("‡", "trained on only part of the training set"),
        "selected": ("§", "checkpoint chosen by its dev score, which flatters that score"),
        "collapsed": ("†", "collapsed: the model gives every example the same prediction"),
        "near_collapsed": ("¶", "nearly collapsed: at least 98 % of its predictions are one class"),
        "unlike": ("≠", "published for something unlike ours: see the row's note"),
        "better": ("↑", "separably better than the baseline"),
        "worse": ("↓", "separably worse than the baseline"),
    }
)
"""Mark -> symbol, meaning."""
_NEARLY_ALL = 0.98
_MOST_LABELS = 0.95
"""Of dev labels, more than this of one class make predictions of nearly one class no fault."""
PUBLISHED = "Published"
"""Heading of the rows that are not ours."""
POINTS = "x100"
"""Unit of scores."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a reader must know about a value."""

    name: MarkName
    share: str = ""
    """`1/3` where it holds for one of three seeds; empty where for all."""

    @property
    def symbol(self) -> str:
        """The sign that the legend explains."""
        return MARKS[self.name][0] + self.share


Marks = tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value of a table."""

    value: float | None = None
    """In the unit of the column."""
    sd: float | None = None
    """Sample standard deviation over seeds, same unit."""
    n: int = 0
    """Seeds behind the value; 0 where it is not a mean over seeds."""
    text: str = MISSING
    """The value as people read it."""
    spread: str = ""
    """The standard deviation as people read it."""
    aside: str = ""
    """`n=2` where the number of seeds is not the one the caption names."""
    marks: Marks = ()
    bold: bool = False
    """Best of its column."""
    underline: bool = False
    """Second best of its column."""

    @property
    def is_rankable(self) -> bool:
        """Whether it has a value, to which nothing collapsed contributes."""
        return self.value is not None and all(mark.name != "collapsed" for mark in self.marks)

    @property
    def symbols(self) -> str:
        """The signs of its marks."""
        return "".join(mark.symbol for mark in self.marks)


@dataclass(frozen=True, kw_only=True)
class Column:
    """Heading of a column."""

    key: str
    title: str
    subtitle: str = ""
    """Metric or unit of `Cell.text`."""
    unit: str = ""
    """Unit of `Cell.value`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method, or one method on one task where `group` names the task."""

    label: str
    name: str
    """The label in full; `label` may be an abbreviation that a note explains."""
    cells: tuple[Cell, ...]
    group: str = ""
    baseline: bool = False
    """Not a method: it takes no part in the ranking."""
    source: str = ""
    """Where a published row's scores are from; empty for ours."""

    @property
    def is_method(self) -> bool:
        """Whether it is of our runs."""
        return not self.baseline and not self.source


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number in full precision: a line of the long form."""

    method: str
    setting: str
    task: str
    split: str
    metric: str
    unit: str
    mean: float
    sd: float | None
    n: int
    seeds: tuple[int, ...]
    marks: tuple[str, ...]
    source: str = ""
    """Of a published number."""


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """A table whose numbers are computed and whose form is open."""

    kind: Kind
    title: str
    model: str
    data: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    measurements: tuple[Measurement, ...]

    @property
    def slug(self) -> str:
        """Model and data as part of a file's name."""
        return slug(f"{self.model} {self.data}")

    @property
    def lead_titles(self) -> tuple[str, ...]:
        """Headings of the columns of text that `leads` fills."""
        return ("Task", "Method") if any(row.group for row in self.rows) else ("Method",)

    def leads(self, row: Row) -> tuple[str, ...]:
        """Text that says what a row is about."""
        return (row.group, row.label) if len(self.lead_titles) > 1 else (row.label,)

    def divided_rows(self) -> Iterator[tuple[str | None, Row]]:
        """Give each row with what parts it from the one before: nothing, a rule (""), a heading."""
        before = None
        for row in self.rows:
            part = row.group, row.baseline, bool(row.source)
            divider = PUBLISHED if row.source else ""
            yield (None if before in (None, part) else divider), row
            before = part

    def ranking_note(self, best: str, second: str) -> tuple[str, ...]:
        """Explain a form's signs for best and second best, where the table has them."""
        cells = [cell for row in self.rows for cell in row.cells]
        if not any(cell.bold for cell in cells):
            return ()
        return (best + (f"; {second}." if any(cell.underline for cell in cells) else "."),)


# Samples and averages


def sample_of(runs: Iterable[RunRecord], value: Callable[[RunRecord], float | None]) -> Sample:
    """Take one value of each run; runs that lack it are left out."""
    found = {run.seed: value(run) for run in runs}
    return {seed: number for seed, number in found.items() if number is not None}


def score_sample(task: Task, runs: Iterable[RunRecord]) -> Sample:
    """Take the task's score of each run, times 100."""
    sample = sample_of(runs, lambda run: task.score(run.metrics))
    return {seed: 100 * value for seed, value in sample.items()}


def mean_of(sample: Sample) -> float:
    """Mean over seeds."""
    return statistics.fmean(sample.values())


def sd_of(sample: Sample) -> float | None:
    """Sample standard deviation over seeds; None for a single one."""
    return statistics.stdev(sample.values()) if len(sample) > 1 else None


# Cells


def mean_cell(sample: Sample, text: Callable[[float], str], marks: Marks = ()) -> Cell:
    """Make a cell of a mean over seeds, without spread in its text."""
    if not sample:
        return Cell()
    mean = mean_of(sample)
    return Cell(value=mean, sd=sd_of(sample), n=len(sample), text=text(mean), marks=marks)


def measurement(
    setting: Setting,
    where: tuple[str, str],
    what: tuple[str, str],
    sample: Sample,
    marks: Marks = (),
) -> Measurement:
    """Make a line of the long form.

    Args:
        setting: the row.
        where: task, split.
        what: metric, unit.
        sample: values by seed, not empty.
        marks: of the cell.
    """
    return Measurement(
        method=setting.method,
        setting=setting.difference,
        task=where[0],
        split=where[1],
        metric=what[0],
        unit=what[1],
        mean=mean_of(sample),
        sd=sd_of(sample),
        n=len(sample),
        seeds=tuple(sorted(sample)),
        marks=marks_text(marks),
    )


def marks_text(marks: Marks) -> tuple[str, ...]:
    """Write marks as words, for programs."""
    return tuple(f"{mark.name} {mark.share}".strip() for mark in marks)


def marks_of(runs: Sequence[RunRecord]) -> Marks:
    """Find what a reader must know about the runs of a cell."""
    tests: dict[MarkName, Callable[[RunRecord], bool]] = {
        "unofficial": lambda run: not (run.official_split or _has_no_official_data(run)),
        "limited": lambda run: run.train_limit is not None,
        "selected": lambda run: run.select == "best",
        "collapsed": lambda run: run.collapsed,
        "near_collapsed": _is_nearly_collapsed,
    }
    counts = {name: sum(test(run) for run in runs) for name, test in tests.items()}
    return tuple(
        Mark(name=name, share="" if count == len(runs) else f"{count}/{len(runs)}")
        for name, count in counts.items()
        if count
    )


def _is_nearly_collapsed(run: RunRecord) -> bool:
    """Tell whether nearly all predictions of a dev split are one class, and the labels are not."""
    for split in run.task_facts.dev_splits:
        if run.collapsed or run.confusion is None or split not in run.confusion:
            continue
        counts = run.confusion[split].counts
        total = sum(map(sum, counts))
        predicted = [sum(column) / total for column in zip(*counts, strict=True)]
        most = max(predicted)
        if most >= _NEARLY_ALL and sum(counts[predicted.index(most)]) / total < _MOST_LABELS:
            return True
    return False


def _has_no_official_data(run: RunRecord) -> bool:
    return run.task_definition is not None and not run.task_definition.rows


def mark_notes(marks: Sequence[Mark]) -> Iterator[str]:
    """Explain the signs of the marks that are used."""
    names = {mark.name for mark in marks}
    shared = {mark.name for mark in marks if mark.share}
    for name, (symbol, meaning) in MARKS.items():
        if name in names:
            example = f" ({symbol}1/3: in 1 of 3 seeds)" if name in shared else ""
            yield f"{symbol} {meaning}{example}."


# Whole tables


def rank_columns(rows: Sequence[Row], majority: Row) -> list[Row]:
    """Set the best method of each column in bold and underline the second.

    Values that read alike rank alike: ties for best are all bold and leave no second. A lone
    method, or methods that all tie, are not ranked; of two methods none is second. What collapsed
    is left out, for its score is that of one prediction, and so is what the majority class beats.
    """
    columns = zip(*(row.cells for row in rows), majority.cells, strict=True)
    ranked = zip(*(_rank_column(cells, floor) for *cells, floor in columns), strict=True)
    return [replace(row, cells=cells) for row, cells in zip(rows, ranked, strict=True)]


def _rank_column(cells: Sequence[Cell], majority: Cell) -> list[Cell]:
    values = sorted((float(c.text) for c in cells if c.is_rankable), reverse=True)
    if len(values) < 2 or values[0] == values[-1]:
        return list(cells)
    second = values[1] if len(values) > 2 and values[1] < values[0] else None
    return [
        replace(cell, bold=float(cell.text) == values[0], underline=float(cell.text) == second)
        if cell.is_rankable and not is_below(cell, majority)
        else cell
        for cell in cells
    ]


def is_below(cell: Cell, other: Cell) -> bool:
    """Tell whether one score reads as less than another, if there are both."""
    both = cell.value is not None and other.value is not None
    return both and float(cell.text) < float(other.text)


def label_notes(labels: Iterable[str], group: RunGroup) -> Iterator[str]:
    """Explain the short forms of labels."""
    for label in dict.fromkeys(labels):
        if label in group.shorts:
            yield f"{group.shorts[label]} is {label}."

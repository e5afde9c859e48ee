"""Published scores beside ours: which are like ours, and the rows and notes they become.

A published score is like ours if it is of the same model, on a dev set, and ours on that task is of
the official data. Where a source gives one metric of several, a column of that metric is added,
so that like stands beside like there as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spafit_bench.analysis.references import MEAN, Reference, References
from spafit_bench.analysis.tables.cells import POINTS, Cell, Mark, Measurement, Row
from spafit_bench.analysis.tables.settings import RunGroup, short_name
from spafit_bench.base.errors import UserError
from spafit_bench.data.tasks import TASKS, mean_or_none

if TYPE_CHECKING:
    from spafit_bench.analysis.tables.scores import ScoreColumn


@dataclass(frozen=True, kw_only=True)
class _Line:
    """The scores that become one row."""

    name: str
    entries: tuple[Reference, ...]

    def given(self, task: str, split: str) -> Mapping[str, Reference]:
        """Metric -> its score on a dev set."""
        return {e.metric: e for e in self.entries if (e.task, e.dev_split) == (task, split)}


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What of a file of published scores stands beside the runs of a group."""

    where: str = ""
    shown: tuple[Reference, ...] = ()
    refused: tuple[Reference, ...] = ()
    """On tasks that were run here, but unlike ours."""
    differences: Mapping[Reference, str]
    """How a score is unlike ours; only of those that are."""

    @property
    def lines(self) -> list[_Line]:
        """The shown scores by row, in the order of the file."""
        return _lines(self.shown)

    @property
    def singles(self) -> set[tuple[str, str]]:
        """(task, metric) of the metrics that need a column of their own."""
        return {
            (entry.task, entry.metric)
            for line in self.lines
            for entry in line.entries
            if entry.metric != MEAN and not _gives_score(line.given(entry.task, entry.dev_split))
        }


def beside(references: References | None, group: RunGroup, *, unlike: bool) -> Beside:
    """Part published scores into those that may stand beside a group's runs and the others.

    Args:
        references: of a file; None for no file.
        group: our runs.
        unlike: whether scores unlike ours are shown as well.
    """
    if references is None:
        return Beside(differences={})
    tasks = {run.task for run in group.records}
    known = [entry for entry in references.entries if entry.task in tasks]
    differences = {entry: text for entry in known if (text := _difference(entry, group))}
    return Beside(
        where=references.where,
        shown=tuple(entry for entry in known if unlike or entry not in differences),
        refused=() if unlike else tuple(differences),
        differences=differences,
    )


def check_any_shown(references: References, found: Sequence[Beside]) -> None:
    """Refuse a file of which nothing is like ours.

    Raises:
        UserError: no table shows any of it; the message says why.
    """
    if any(part.shown for part in found):
        return
    reasons = [reason for part in found for reason in _refusals(part)]
    if not reasons:
        tasks = ", ".join(dict.fromkeys(TASKS[e.task].title for e in references.entries))
        raise UserError(f"--reference {references.where}: no run here is on {tasks}")
    listed = "".join(f"\n  {reason}" for reason in dict.fromkeys(reasons))
    raise UserError(
        f"--reference {references.where}: nothing in it is like the runs here:{listed}\n"
        "To see it beside them nevertheless, marked: --unlike"
    )


def _difference(entry: Reference, group: RunGroup) -> str:
    """Say how a published score is unlike ours; empty where it is like them."""
    ours = {short_name(run.model) for run in group.records}
    runs = [run for run in group.records if run.task == entry.task]
    parts = []
    if short_name(entry.model) not in ours:
        parts.append(f"model {entry.model}, ours {group.model}")
    if not entry.is_dev:
        parts.append("test set, ours dev")
    if not all(run.official_split for run in runs):
        sources = {short_name(run.data.source) for run in runs if not run.official_split}
        parts.append(f"official GLUE, ours {' and '.join(sorted(sources))}")
    return "; ".join(parts)


def _lines(entries: Iterable[Reference]) -> list[_Line]:
    by_row: dict[tuple[str, str, bool], list[Reference]] = defaultdict(list)
    for entry in entries:
        by_row[entry.name, entry.model, entry.is_dev].append(entry)
    return [
        _Line(name=name if is_dev else f"{name}, test", entries=tuple(found))
        for (name, _, is_dev), found in by_row.items()
    ]


def _gives_score(given: Mapping[str, Reference]) -> bool:
    """Whether the metrics given on a dev set make the task's score."""
    task = TASKS[next(iter(given.values())).task]
    return MEAN in given or all(metric in given for metric in task.metrics)


def published_rows(
    part: Beside, heads: Sequence[ScoreColumn], around: tuple[int, int]
) -> Iterator[Row]:
    """Make a row of each source's shown scores.

    Args:
        part: what is shown.
        heads: the columns of scores.
        around: number of columns before and after those; they stay empty.
    """
    for line in part.lines:
        cells = (
            *[Cell()] * around[0],
            *(_cell(part, line, head) for head in heads),
            *[Cell()] * around[1],
        )
        source = "; ".join(dict.fromkeys(entry.source for entry in line.entries))
        yield Row(label=line.name, name=line.name, cells=cells, source=source)


def _cell(part: Beside, line: _Line, head: ScoreColumn) -> Cell:
    given = line.given(head.task.name, head.split)
    wanted = (MEAN,) if head.is_task_score and MEAN in given else head.metrics
    entries = [given[metric] for metric in wanted if metric in given]
    value = mean_or_none([entry.value for entry in entries])
    if value is None or len(entries) < len(wanted):
        return Cell()
    text = f"{value:.1f}" if round(value, 1) == round(value, 6) else f"{value:.2f}"
    marks = []
    if any(entry.collapsed for entry in entries):
        marks.append(Mark(name="collapsed"))
    if any(entry in part.differences for entry in entries):
        marks.append(Mark(name="unlike"))
    return Cell(value=value, text=text, marks=tuple(marks))


def published_notes(part: Beside) -> Iterator[str]:
    """Give each row's sources, and say what is not shown and why."""
    for line in part.lines:
        sources: dict[str, list[str]] = defaultdict(list)
        for entry in line.entries:
            text = entry.source + (f" ({entry.note})" if entry.note else "")
            sources[text].append(TASKS[entry.task].title)
        several = len(sources) > 1
        listed = [
            f"{', '.join(dict.fromkeys(titles))}: {text}" if several else text
            for text, titles in sources.items()
        ]
        yield f"{line.name}: {'; '.join(listed)}."
        for text, titles in _by_difference(part, line.entries):
            yield f"{line.name} is unlike ours{titles}: {text}."
    if any(entry.value is None for entry in part.shown):
        yield f"—, published: not known here; fill it in from the source, in {part.where}."
    yield from (f"Not shown of {part.where}: {reason}." for reason in _refusals(part))


def _refusals(part: Beside) -> Iterator[str]:
    for line in _lines(part.refused):
        for text, titles in _by_difference(part, line.entries):
            yield f"{line.name}{titles}: {text}"


def _by_difference(part: Beside, entries: Sequence[Reference]) -> Iterator[tuple[str, str]]:
    """Give each difference with the tasks it is of, where these are not all."""
    tasks: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        tasks[part.differences.get(entry, "")].append(TASKS[entry.task].title)
    for text, titles in tasks.items():
        if text:
            yield text, f" ({', '.join(dict.fromkeys(titles))})" if len(tasks) > 1 else ""


def published_measurements(part: Beside) -> Iterator[Measurement]:
    """List the shown scores for programs, each with its own split, metric and source."""
    for line in part.lines:
        for entry in line.entries:
            if entry.value is None:
                continue
            marks = ("collapsed",) if entry.collapsed else ()
            if entry in part.differences:
                marks = (*marks, f"unlike: {part.differences[entry]}")
            yield Measurement(
                method=line.name,
                setting="published",
                task=entry.task,
                split=entry.split,
                metric=entry.metric,
                unit=POINTS,
                mean=entry.value,
                sd=None,
                n=0,
                seeds=(),
                marks=marks,
                source=entry.source + (f" ({entry.note})" if entry.note else ""),
            )

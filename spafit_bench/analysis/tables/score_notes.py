"""What the scores table says around its numbers: the caption and the notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spafit_bench.analysis.tables.cells import MARKS, MISSING, Row
from spafit_bench.analysis.tables.heads import metrics_title
from spafit_bench.analysis.tables.settings import Group
from spafit_bench.data.tasks import TASKS, Task, mean_or_none
from spafit_bench.results.record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Average:
    """A column that averages tasks."""

    key: str
    title: str
    tasks: tuple[Task, ...]

    @property
    def coverage(self) -> str:
        """Say how many of the tasks that could be in it are."""
        possible = len(TASKS) if self.key == "avg" else sum(not t.note for t in TASKS.values())
        count = len(self.tasks)
        return f"{count} tasks" if count == possible else f"{count} of {possible}"


def scores_caption(group: Group, rows: Sequence[Row], usual: int) -> str:
    """Say what a number of the table is, and over how many seeds."""
    selects = {run.select for run in group.records}
    if len(selects) > 1:
        when = "at the last evaluation, or where marked § at the best"
    else:
        when = "at the best evaluation (§)" if "best" in selects else "at the last evaluation"
    varied = any(cell.aside for row in rows for cell in row.cells)
    if usual == 1 and not varied:
        return f"Dev scores times 100 {when}; one seed, so no spread."
    seeds = f"{usual} seed{'s' * (usual != 1)}{', or n where given' * varied}"
    return f"Dev scores times 100 {when}: mean ± sample sd over {seeds}."


def scores_notes(
    group: Group, rows: Sequence[Row], averages: Sequence[Average], tasks: Sequence[Task]
) -> Iterator[str]:
    """Explain marks, metrics and averages, and count what is left out."""
    cells = [cell for row in rows for cell in row.cells]
    used = {mark.name: mark for cell in cells for mark in cell.marks}
    shared = {mark.name for cell in cells for mark in cell.marks if mark.share}
    for name, (symbol, meaning) in MARKS.items():
        if name in used:
            yield f"{symbol} {meaning}" + (
                f" ({symbol}1/3: in 1 of 3 seeds)." if name in shared else "."
            )
    methods = [row.cells for row in rows if row.is_method]
    found = [cell for row in methods for cell in row if cell.value is not None]
    if len(methods) > 1 and not all(cell.is_rankable for cell in found):
        yield "Not ranked: scores marked †, and averages over them."
    yield from _collapse_notes(group)
    pairs = [
        metrics_title(metrics)
        for metrics in dict.fromkeys(task.metrics for task in tasks if len(task.metrics) > 1)
    ]
    if pairs:
        two = "two " * all(len(task.metrics) <= 2 for task in tasks)
        yield f"{' and '.join(pairs)}: the mean of the {two}metrics."
    yield from _average_notes(tasks, rows, averages)
    official = {run.task for run in group.records if run.official_split}  # the note is about GLUE
    yield from (
        f"{t.title}: {t.note}." for t in tasks if t.note and t.in_glue and t.name in official
    )
    yield from _other_tasks_notes(group)
    yield (
        "Params: what trains, adapters and classifier included, in millions; %: of the base model, "
        "adapters not counted in it."
    )
    yield from left_out_notes(group.left_out)
    if group.repeated:
        count = len(group.repeated)
        runs = "1 earlier run" if count == 1 else f"{count} earlier runs"
        yield f"Left out: {runs} of a seed that a later run of the same setting repeats."


def _collapse_notes(group: Group) -> Iterator[str]:
    """Where only some seeds of a cell collapsed, give its mean with and without them."""
    for setting, cells in group.rows.items():
        for task in group.tasks:
            runs = cells.get(task.name, ())
            sound = [run for run in runs if not run.collapsed]
            means = [mean_score(task, found) for found in (runs, sound)]
            if len(sound) < len(runs) and None not in means:
                yield (
                    f"{setting.label} on {task.title}: {len(runs) - len(sound)} of {len(runs)} "
                    f"seeds collapsed; mean {means[0]:.2f} with them, {means[1]:.2f} without."
                )


def mean_score(task: Task, runs: Sequence[RunRecord]) -> float | None:
    """Mean of the task's score over runs, times 100; None for no run."""
    mean = mean_or_none([task.score(run.metrics) for run in runs])
    return None if mean is None else 100 * mean


def _average_notes(
    tasks: Sequence[Task], rows: Sequence[Row], averages: Sequence[Average]
) -> Iterator[str]:
    methods = [row for row in rows if row.is_method]
    tail = [cell for row in methods for cell in row.cells[len(row.cells) - len(averages) :]]
    if averages:
        tasks = [task for task in tasks if task.in_glue]
        present = {task.name for task in tasks}
        absent = [task.title for name, task in TASKS.items() if name not in present]
        covered = f"{len(tasks)} of {len(TASKS)} tasks; missing {', '.join(absent)}"
        text = f"Avg: mean over {covered if absent else f'all {len(tasks)} tasks'}"
        several = [task.title for task in tasks if len(task.dev_splits) > 1]
        yield text + "".join(f"; {title} counts once" for title in several) + "."
    tests = ("better", "worse")
    if averages and any(mark.name not in tests for cell in tail for mark in cell.marks):
        yield "A mark on an average holds for at least one of its scores."
    if any(cell.value is not None and cell.sd is None and cell.n > 1 for cell in tail):
        yield "An average has no spread where its tasks ran different seeds."
    if any(cell.text == MISSING for row in methods for cell in row.cells):
        rule = "; a row that lacks a task has no average" if averages else ""
        yield f"—: no finished run{rule}."


def _other_tasks_notes(group: Group) -> Iterator[str]:
    for task in group.tasks:
        if not task.in_glue:
            found = {r.data.official_basis for r in group.records if r.task == task.name}
            bases = " and ".join(sorted(found))
            yield f"{task.title} is in no average: {task.note}. Its data: {bases}."


def left_out_notes(left_out: Sequence[RunRecord]) -> Iterator[str]:
    """Count runs that ended without a result."""
    lost = Counter((run.status, run.method, run.task_facts.title) for run in left_out)
    for (status, method, title), count in sorted(lost.items()):
        runs = "run" if count == 1 else "runs"
        yield f"Left out: {count} {status} {runs} of {method} on {title}."

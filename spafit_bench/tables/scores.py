"""The scores table: methods by tasks, with averages and the majority class.

A task's score is the mean of its metrics, MNLI's the mean over its two dev sets, and an average
the mean over tasks of those scores (GLUE, arXiv:1804.07461). All are times 100.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from spafit_bench.record import RunRecord
from spafit_bench.tables.cells import (
    MARKS,
    Cell,
    Column,
    Mark,
    Measurement,
    ResultTable,
    Row,
    Sample,
    cell_of,
    marks_of,
    marks_text,
    mean_of,
    measurement,
    rank_columns,
    sample_of,
    shorten_labels,
)
from spafit_bench.tables.settings import Cells, Group, Setting
from spafit_bench.tasks import TASKS, Task, get_task, mean_or_none

_METRIC_TITLES: Mapping[str, str] = MappingProxyType(
    {
        "matthews_correlation": "MCC",
        "accuracy": "Acc",
        "f1": "F1",
        "pearson": "Pear",
        "spearman": "Spear",
    }
)
_UNIT = "x100"
MAJORITY = "majority class"


@dataclass(frozen=True, kw_only=True)
class _Average:
    """A column that averages tasks."""

    key: str
    title: str
    tasks: tuple[Task, ...]


def _tasks_of(group: Group) -> tuple[Task, ...]:
    present = {get_task(run.task).name for run in group.records}
    return tuple(task for task in TASKS.values() if task.name in present)


def _averages(tasks: Sequence[Task]) -> tuple[_Average, ...]:
    """Choose the averages to show: all tasks, and all but those whose dev set misleads (WNLI)."""
    plain = tuple(task for task in tasks if not task.note)
    noted = [task for task in tasks if task.note]
    averages = [_Average(key="avg", title="Avg", tasks=tuple(tasks))]
    if noted:
        key = "avg_without_" + "_".join(task.name for task in noted)
        title = "Avg w/o " + ", ".join(task.title for task in noted)
        averages.append(_Average(key=key, title=title, tasks=plain))
    return tuple(average for average in averages if len(average.tasks) > 1)


def _heads(tasks: Sequence[Task]) -> Iterator[tuple[Task, str, Column]]:
    """Head each dev split; a task with several takes the GLUE server's names for them."""
    for task in tasks:
        metrics = "/".join(_METRIC_TITLES.get(name, name) for name in task.metrics)
        several = len(task.dev_splits) > 1
        for index, split in enumerate(task.dev_splits):
            key = f"{task.name}_{split.removeprefix('validation_')}" if several else task.name
            title = task.test_sets[index].submission if several else task.title
            yield task, split, Column(key=key, title=title, subtitle=metrics, unit=_UNIT)


def _split_sample(task: Task, split: str, runs: Iterable[RunRecord]) -> Sample:
    return _percent(sample_of(runs, lambda run: task.split_score(run.metrics, split)))


def _task_sample(task: Task, runs: Iterable[RunRecord]) -> Sample:
    return _percent(sample_of(runs, lambda run: task.score(run.metrics)))


def _percent(sample: Sample) -> Sample:
    return {seed: 100 * value for seed, value in sample.items()}


def _score_cell(sample: Sample, runs: Sequence[RunRecord]) -> Cell:
    cell = cell_of(sample, "{:.2f}".format, marks_of(runs))
    return replace(cell, spread="" if cell.sd is None else f"{cell.sd:.2f}")


def _average_cell(average: _Average, cells: Cells) -> Cell:
    """Average the tasks of one row, if it has them all.

    The spread is that of the seeds' averages, so it needs the same seeds on every task.
    """
    samples = [_task_sample(task, cells.get(task.name, ())) for task in average.tasks]
    if not all(samples):
        return Cell()
    runs = [run for task in average.tasks for run in cells[task.name]]
    marks = tuple(Mark(name=mark.name) for mark in marks_of(runs))
    if len({frozenset(sample) for sample in samples}) == 1:
        by_seed = {seed: statistics.fmean(s[seed] for s in samples) for seed in samples[0]}
        return replace(_score_cell(by_seed, runs), marks=marks)
    mean = statistics.fmean(mean_of(sample) for sample in samples)
    fewest = min(len(sample) for sample in samples)
    return Cell(value=mean, n=fewest, text=f"{mean:.2f}", marks=marks)


def scores_table(group: Group) -> ResultTable:
    """Compute mean and spread of every method on every task of a group, ranked by column."""
    tasks = _tasks_of(group)
    heads, averages = tuple(_heads(tasks)), _averages(tasks)
    rows = rank_columns(
        [
            Row(
                label=setting.label,
                name=setting.label,
                cells=(
                    *(
                        _score_cell(_split_sample(task, split, runs), runs)
                        for task, split, _ in heads
                        for runs in [cells.get(task.name, ())]
                    ),
                    *(_average_cell(average, cells) for average in averages),
                ),
            )
            for setting, cells in group.rows.items()
        ]
    )
    usual = _usual_n(rows)
    rows, label_notes = shorten_labels([_with_asides(row, usual) for row in rows])
    rows.append(_majority_row(group, tasks, averages))
    return ResultTable(
        kind="scores",
        title=f"GLUE dev scores: {group.model}, {group.data}",
        model=group.model,
        data=group.data,
        caption=_scores_caption(group, rows, usual),
        columns=(
            *(column for _, _, column in heads),
            *(
                Column(key=a.key, title=a.title, subtitle=_coverage(a), unit=_UNIT)
                for a in averages
            ),
        ),
        rows=tuple(rows),
        notes=(*label_notes, *_scores_notes(group, rows, averages)),
        measurements=tuple(_measurements(group, averages)),
    )


def _usual_n(rows: Sequence[Row]) -> int:
    """Number of seeds of most cells; the larger where two are as frequent."""
    counts = Counter(cell.n for row in rows for cell in row.cells if cell.n)
    return max(counts, key=lambda n: (counts[n], n), default=0)


def _with_asides(row: Row, usual: int) -> Row:
    cells = [
        replace(cell, aside=f"n={cell.n}") if cell.n not in (0, usual) else cell
        for cell in row.cells
    ]
    return replace(row, cells=tuple(cells))


def _majority_run(runs: Sequence[RunRecord]) -> RunRecord:
    """Choose whose training set decides the majority class: the largest."""
    return max(runs, key=lambda run: (run.train_limit is None, run.train_limit or 0))


def _majority_row(group: Group, tasks: Sequence[Task], averages: Sequence[_Average]) -> Row:
    chosen = {
        task.name: _majority_run([run for run in group.records if run.task == task.name])
        for task in tasks
    }

    def cell(value: float | None, runs: Sequence[RunRecord]) -> Cell:
        if value is None:
            return Cell()
        about_data = ("unofficial", "limited")
        marks = [Mark(name=mark.name) for mark in marks_of(runs) if mark.name in about_data]
        return Cell(value=100 * value, text=f"{100 * value:.2f}", marks=tuple(marks))

    cells = [
        cell(task.split_score(chosen[task.name].majority, split), [chosen[task.name]])
        for task, split, _ in _heads(tasks)
    ]
    for average in averages:
        runs = [chosen[task.name] for task in average.tasks]
        scores = [task.score(run.majority) for task, run in zip(average.tasks, runs, strict=True)]
        cells.append(cell(mean_or_none(scores), runs))
    return Row(label=MAJORITY, name=MAJORITY, cells=tuple(cells), baseline=True)


def _coverage(average: _Average) -> str:
    """Say how many of the tasks that could be in an average are."""
    possible = len(TASKS) if average.key == "avg" else sum(not t.note for t in TASKS.values())
    count = len(average.tasks)
    return f"{count} tasks" if count == possible else f"{count} of {possible}"


def _scores_caption(group: Group, rows: Sequence[Row], usual: int) -> str:
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


def _scores_notes(group: Group, rows: Sequence[Row], averages: Sequence[_Average]) -> Iterator[str]:
    tasks = _tasks_of(group)
    cells = [cell for row in rows for cell in row.cells]
    used = {mark.name: mark for cell in cells for mark in cell.marks}
    shared = {mark.name for cell in cells for mark in cell.marks if mark.share}
    for name, (symbol, meaning) in MARKS.items():
        if name in used:
            yield f"{symbol} {meaning}" + (
                f" ({symbol}1/3: in 1 of 3 seeds)." if name in shared else "."
            )
    pairs = [
        "/".join(_METRIC_TITLES.get(metric, metric) for metric in metrics)
        for metrics in dict.fromkeys(task.metrics for task in tasks if len(task.metrics) > 1)
    ]
    if pairs:
        yield f"{' and '.join(pairs)}: the mean of the two metrics."
    yield from _average_notes(tasks, rows, averages)
    yield from (f"{task.title}: {task.note}." for task in tasks if task.note)
    yield from _left_out_notes(group)


def _average_notes(
    tasks: Sequence[Task], rows: Sequence[Row], averages: Sequence[_Average]
) -> Iterator[str]:
    methods = [row for row in rows if not row.baseline]
    tail = [cell for row in methods for cell in row.cells[len(row.cells) - len(averages) :]]
    if averages:
        absent = [task.title for task in TASKS.values() if task not in tasks]
        covered = f"{len(tasks)} of {len(TASKS)} tasks; missing {', '.join(absent)}"
        text = f"Avg: mean over {covered if absent else f'all {len(tasks)} tasks'}"
        several = [task.title for task in tasks if len(task.dev_splits) > 1]
        yield text + "".join(f"; {title} counts once" for title in several) + "."
    if averages and any(cell.marks for cell in tail):
        yield "A mark on an average holds for at least one of its scores."
    if any(cell.value is not None and cell.sd is None and cell.n > 1 for cell in tail):
        yield "An average has no spread where its tasks ran different seeds."
    if any(cell.value is None for row in methods for cell in row.cells):
        rule = "; a row that lacks a task has no average" if averages else ""
        yield f"—: no finished run{rule}."


def _left_out_notes(group: Group) -> Iterator[str]:
    """Count the runs that the table does not show."""
    lost = Counter((run.status, run.method, run.task) for run in group.left_out)
    for (status, method, task), count in sorted(lost.items()):
        runs = "run" if count == 1 else "runs"
        title = TASKS[task].title if task in TASKS else task
        yield f"Left out: {count} {status} {runs} of {method} on {title}."
    if group.repeated:
        count = len(group.repeated)
        runs = "1 earlier run" if count == 1 else f"{count} earlier runs"
        yield f"Left out: {runs} of a seed that a later run of the same setting repeats."


def _measurements(group: Group, averages: Sequence[_Average]) -> Iterator[Measurement]:
    """List every metric of every split, each task's score, and the averages."""
    for setting, cells in group.rows.items():
        for task in _tasks_of(group):
            yield from _task_measurements(setting, task, cells.get(task.name, ()))
        for average in averages:
            cell = _average_cell(average, cells)
            if cell.value is not None:
                line = measurement(setting, (average.key, "dev"), ("score", _UNIT), {0: cell.value})
                seeds = {frozenset(run.seed for run in cells[task.name]) for task in average.tasks}
                common = tuple(sorted(seeds.pop())) if len(seeds) == 1 else ()
                yield replace(
                    line, sd=cell.sd, n=cell.n, seeds=common, marks=marks_text(cell.marks)
                )
    for task in _tasks_of(group):
        run = _majority_run([run for run in group.records if run.task == task.name])
        for line in _task_measurements(
            Setting(method=MAJORITY),
            task,
            [run.model_copy(update={"metrics": run.majority, "collapsed": False})],
        ):
            yield replace(line, n=0, seeds=())


def _task_measurements(
    setting: Setting, task: Task, runs: Sequence[RunRecord]
) -> Iterator[Measurement]:
    marks = marks_of(runs)
    names = dict.fromkeys(
        (split, name) for run in runs for split, found in run.metrics.items() for name in found
    )
    for split, name in names:
        sample = _percent(sample_of(runs, _metric(split, name)))
        yield measurement(setting, (task.name, split), (name, _UNIT), sample, marks)
    if sample := _task_sample(task, runs):
        yield measurement(setting, (task.name, "dev"), ("score", _UNIT), sample, marks)


def _metric(split: str, name: str) -> Callable[[RunRecord], float | None]:
    return lambda run: run.metrics.get(split, {}).get(name)

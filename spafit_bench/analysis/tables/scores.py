"""The scores table: methods by tasks, with averages and the majority class.

A task's score is the mean of its metrics, MNLI's the mean over its two dev sets, and an average
the mean over tasks of those scores (GLUE, arXiv:1804.07461). All are times 100.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from spafit_bench.analysis.seed_tests import average_by_seed
from spafit_bench.analysis.tables.baseline import Against, compare_with
from spafit_bench.analysis.tables.cells import (
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
from spafit_bench.analysis.tables.costs import size_cells, size_columns
from spafit_bench.analysis.tables.heads import UNIT, Head, score_heads
from spafit_bench.analysis.tables.published import (
    Beside,
    published_measurements,
    published_notes,
    published_rows,
)
from spafit_bench.analysis.tables.score_notes import Average, scores_caption, scores_notes
from spafit_bench.analysis.tables.settings import Cells, Group, Setting
from spafit_bench.data.tasks import Task, mean_or_none
from spafit_bench.results.record import RunRecord

MAJORITY = "majority class"


def _averages(tasks: Sequence[Task]) -> tuple[Average, ...]:
    """Choose GLUE's averages to show: all tasks, and all but those that mislead (WNLI)."""
    tasks = [task for task in tasks if task.in_glue]
    plain = tuple(task for task in tasks if not task.note)
    noted = [task for task in tasks if task.note]
    averages = [Average(key="avg", title="Avg", tasks=tuple(tasks))]
    if noted:
        key = "avg_without_" + "_".join(task.name for task in noted)
        title = "Avg w/o " + ", ".join(task.title for task in noted)
        averages.append(Average(key=key, title=title, tasks=plain))
    return tuple(average for average in averages if len(average.tasks) > 1)


def _head_sample(head: Head, runs: Iterable[RunRecord]) -> Sample:
    return _percent(sample_of(runs, lambda run: head.score(run.metrics)))


def _task_sample(task: Task, runs: Iterable[RunRecord]) -> Sample:
    return _percent(sample_of(runs, lambda run: task.score(run.metrics)))


def _percent(sample: Sample) -> Sample:
    return {seed: 100 * value for seed, value in sample.items()}


def _score_cell(sample: Sample, runs: Sequence[RunRecord]) -> Cell:
    cell = cell_of(sample, "{:.2f}".format, marks_of(runs))
    return replace(cell, spread="" if cell.sd is None else f"{cell.sd:.2f}")


def _average_samples(average: Average, cells: Cells) -> list[Sample]:
    return [_task_sample(task, cells.get(task.name, ())) for task in average.tasks]


def _by_seed(samples: Sequence[Sample]) -> Sample:
    """Average tasks seed by seed; empty unless each has the same seeds."""
    alike = len({frozenset(sample) for sample in samples}) == 1
    return average_by_seed(samples) if alike else {}


def _average_cell(average: Average, cells: Cells) -> Cell:
    """Average the tasks of one row, if it has them all.

    The spread is that of the seeds' averages, so it needs the same seeds on every task.
    """
    samples = _average_samples(average, cells)
    if not all(samples):
        return Cell()
    runs = [run for task in average.tasks for run in cells[task.name]]
    marks = tuple(Mark(name=mark.name) for mark in marks_of(runs))
    if by_seed := _by_seed(samples):
        return replace(_score_cell(by_seed, runs), marks=marks)
    mean = statistics.fmean(mean_of(sample) for sample in samples)
    fewest = min(len(sample) for sample in samples)
    return Cell(value=mean, n=fewest, text=f"{mean:.2f}", marks=marks)


def scores_table(group: Group, part: Beside, baseline: Setting | None = None) -> ResultTable:
    """Compute mean and spread of every method on every task of a group, ranked by column.

    Args:
        group: our runs.
        part: published scores to show below them.
        baseline: a row that every other is tested against.
    """
    tasks = group.tasks
    heads, averages = tuple(score_heads(tasks, part.singles)), _averages(tasks)
    ranked = rank_columns(
        [_scored_row(setting, cells, heads, averages) for setting, cells in group.rows.items()]
    )
    usual = _usual_n(ranked)
    against = _against(baseline, group, ranked, (heads, averages))
    methods = list(_finished_rows(group, ranked, against, usual))
    sizes = size_columns(group)
    shortened, label_notes = shorten_labels(methods)
    rows = (
        *shortened,
        _majority_row(group, heads, averages),
        *published_rows(part, heads, (len(sizes), len(averages))),
    )
    return ResultTable(
        kind="scores",
        title=f"{'GLUE dev' if any(t.in_glue for t in tasks) else 'Dev'} scores: "
        f"{group.model}, {group.data}",
        model=group.model,
        data=group.data,
        caption=scores_caption(group, methods, usual),
        columns=(
            *sizes,
            *(head.column for head in heads),
            *(Column(key=a.key, title=a.title, subtitle=a.coverage, unit=UNIT) for a in averages),
        ),
        rows=rows,
        notes=(
            *label_notes,
            *scores_notes(group, rows, averages, tasks),
            *(against.notes() if against else ()),
            *published_notes(part),
        ),
        measurements=(
            *_measurements(group, averages),
            *(against.measurements(_places(heads, averages)) if against else ()),
            *published_measurements(part),
        ),
    )


def _finished_rows(
    group: Group, ranked: Sequence[Row], against: Against | None, usual: int
) -> Iterator[Row]:
    """Add the marks of tests, other numbers of seeds, and the sizes."""
    for row, (setting, cells) in zip(ranked, group.rows.items(), strict=True):
        scored = against.marked(setting, row.cells) if against else row.cells
        yield replace(row, cells=(*size_cells(group, cells), *_with_asides(scored, usual)))


def _against(
    baseline: Setting | None,
    group: Group,
    rows: Sequence[Row],
    columns: tuple[Sequence[Head], Sequence[Average]],
) -> Against | None:
    if baseline is None:
        return None
    heads, averages = columns
    samples = {
        setting: [
            *(_head_sample(head, cells.get(head.task.name, ())) for head in heads),
            *(average_by_seed(_average_samples(average, cells)) for average in averages),
        ]
        for setting, cells in group.rows.items()
    }
    shown = {setting: row.cells for setting, row in zip(group.rows, rows, strict=True)}
    whole = [head.is_task_score for head in heads] + [True] * len(averages)
    tested = [column for column, is_whole in enumerate(whole) if is_whole]
    return compare_with(baseline, samples, shown, tested, len(heads))


def _places(heads: Sequence[Head], averages: Sequence[Average]) -> list[tuple[str, str, str]]:
    """Name key, task and split of each column of scores."""
    tasks = [(head.column.key, head.task.name, head.split) for head in heads]
    return [*tasks, *((average.key, average.key, "dev") for average in averages)]


def _scored_row(
    setting: Setting, cells: Cells, heads: Sequence[Head], averages: Sequence[Average]
) -> Row:
    scored = []
    for head in heads:
        runs = cells.get(head.task.name, ())
        scored.append(_score_cell(_head_sample(head, runs), runs))
    means = [_average_cell(average, cells) for average in averages]
    return Row(label=setting.label, name=setting.label, cells=(*scored, *means))


def _usual_n(rows: Sequence[Row]) -> int:
    """Number of seeds of most cells; the larger where two are as frequent."""
    counts = Counter(cell.n for row in rows for cell in row.cells if cell.n)
    return max(counts, key=lambda n: (counts[n], n), default=0)


def _with_asides(cells: Iterable[Cell], usual: int) -> Iterator[Cell]:
    for cell in cells:
        yield replace(cell, aside=f"n={cell.n}") if cell.n not in (0, usual) else cell


def _majority_run(runs: Sequence[RunRecord]) -> RunRecord:
    """Choose whose training set decides the majority class: the largest."""
    return max(runs, key=lambda run: (run.train_limit is None, run.train_limit or 0))


def _majority_row(group: Group, heads: Sequence[Head], averages: Sequence[Average]) -> Row:
    chosen = {
        task.name: _majority_run([run for run in group.records if run.task == task.name])
        for task in group.tasks
    }

    def cell(value: float | None, runs: Sequence[RunRecord]) -> Cell:
        if value is None:
            return Cell()
        about_data = ("unofficial", "limited")
        marks = [Mark(name=mark.name) for mark in marks_of(runs) if mark.name in about_data]
        return Cell(value=100 * value, text=f"{100 * value:.2f}", marks=tuple(marks))

    cells = [Cell(), Cell()]
    for head in heads:
        run = chosen[head.task.name]
        cells.append(cell(head.score(run.majority), [run]))
    for average in averages:
        runs = [chosen[task.name] for task in average.tasks]
        scores = [task.score(run.majority) for task, run in zip(average.tasks, runs, strict=True)]
        cells.append(cell(mean_or_none(scores), runs))
    return Row(label=MAJORITY, name=MAJORITY, cells=tuple(cells), baseline=True)


def _measurements(group: Group, averages: Sequence[Average]) -> Iterator[Measurement]:
    """List every metric of every split, each task's score, and the averages."""
    for setting, cells in group.rows.items():
        for task in group.tasks:
            yield from _task_measurements(setting, task, cells.get(task.name, ()))
        for average in averages:
            cell = _average_cell(average, cells)
            if cell.value is not None:
                line = measurement(setting, (average.key, "dev"), ("score", UNIT), {0: cell.value})
                seeds = {frozenset(run.seed for run in cells[task.name]) for task in average.tasks}
                common = tuple(sorted(seeds.pop())) if len(seeds) == 1 else ()
                yield replace(
                    line, sd=cell.sd, n=cell.n, seeds=common, marks=marks_text(cell.marks)
                )
    for task in group.tasks:
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
        yield measurement(setting, (task.name, split), (name, UNIT), sample, marks)
    if sample := _task_sample(task, runs):
        yield measurement(setting, (task.name, "dev"), ("score", UNIT), sample, marks)
    sound = _task_sample(task, [run for run in runs if not run.collapsed])
    if sound and len(sound) < len(sample):
        yield measurement(setting, (task.name, "dev"), ("score_without_collapsed", UNIT), sound)


def _metric(split: str, name: str) -> Callable[[RunRecord], float | None]:
    return lambda run: run.metrics.get(split, {}).get(name)

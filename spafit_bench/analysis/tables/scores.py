"""The scores table: methods by tasks, with averages and the majority class.

A task's score is the mean of its metrics, MNLI's the mean over its two dev sets, and an average
the mean over tasks of those scores (GLUE, arXiv:1804.07461). All are times 100.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from spafit_bench.analysis.stats import average_by_seed
from spafit_bench.analysis.tables.baseline import Against, compare_scores
from spafit_bench.analysis.tables.cells import (
    MISSING,
    POINTS,
    Cell,
    Column,
    Mark,
    Measurement,
    ResultTable,
    Row,
    Sample,
    is_below,
    label_notes,
    mark_notes,
    marks_of,
    marks_text,
    mean_cell,
    mean_of,
    measurement,
    rank_columns,
    sample_of,
    score_sample,
)
from spafit_bench.analysis.tables.costs import size_cells, size_columns
from spafit_bench.analysis.tables.published import (
    Beside,
    published_measurements,
    published_notes,
    published_rows,
)
from spafit_bench.analysis.tables.settings import RunGroup, Setting, TaskRuns
from spafit_bench.data.tasks import TASKS, Task, mean_or_none
from spafit_bench.results.record import RunRecord, SplitMetrics

MAJORITY = "majority class"
_METRIC_TITLES: Mapping[str, str] = MappingProxyType(
    {
        "matthews_correlation": "MCC",
        "accuracy": "Acc",
        "f1": "F1",
        "f1_macro": "macro F1",
        "pearson": "Pear",
        "spearman": "Spear",
    }
)


@dataclass(frozen=True, kw_only=True)
class ScoreColumn:
    """A column of one dev set: the task's score, or one metric of it."""

    task: Task
    split: str
    metrics: tuple[str, ...]
    """The column shows their mean."""
    column: Column

    @property
    def is_task_score(self) -> bool:
        """Whether it shows the task's score, rather than one metric of it."""
        return self.metrics == self.task.metrics

    def score(self, metrics: SplitMetrics) -> float | None:
        """Mean of its metrics, native scale; None where one is missing."""
        return mean_or_none([metrics.get(self.split, {}).get(name) for name in self.metrics])

    def sample(self, runs: Sequence[RunRecord]) -> Sample:
        """Score of each run, times 100."""
        sample = sample_of(runs, lambda run: self.score(run.metrics))
        return {seed: 100 * value for seed, value in sample.items()}


@dataclass(frozen=True, kw_only=True)
class Average:
    """A column that averages tasks."""

    column: Column
    tasks: tuple[Task, ...]

    def samples(self, runs: TaskRuns) -> list[Sample]:
        """Score of each run, times 100, task by task."""
        return [score_sample(task, runs.get(task.name, ())) for task in self.tasks]


def scores_table(group: RunGroup, part: Beside, baseline: Setting | None = None) -> ResultTable:
    """Compute mean and spread of every method on every task of a group, ranked by column.

    Args:
        group: our runs.
        part: published scores to show below them.
        baseline: a row that every other is tested against.
    """
    tasks = group.tasks
    heads, averages = tuple(_score_columns(tasks, part.singles)), _averages(tasks)
    majority = _majority_row(group, heads, averages)
    ranked = rank_columns(
        [
            Row(
                label=group.short(setting.label),
                name=setting.label,
                cells=(
                    *(_score_cell(head, runs.get(head.task.name, ())) for head in heads),
                    *(_average_cell(average, runs) for average in averages),
                ),
            )
            for setting, runs in group.rows.items()
        ],
        majority,
    )
    against = baseline and _against(baseline, group, ranked, heads, averages)
    counts = Counter(cell.n for row in ranked for cell in row.cells if cell.n)
    usual = max(counts, key=lambda n: (counts[n], n), default=0)
    methods = []
    for row, (setting, runs) in zip(ranked, group.rows.items(), strict=True):
        cells = against.marked(setting, row.cells) if against else row.cells
        cells = tuple(
            replace(cell, aside=f"n={cell.n}") if cell.n not in (0, usual) else cell
            for cell in cells
        )
        methods.append(replace(row, cells=(*size_cells(group, runs), *cells)))
    sizes = size_columns(group)
    rows = (
        *methods,
        replace(majority, cells=(*[Cell()] * len(sizes), *majority.cells)),
        *published_rows(part, heads, (len(sizes), len(averages))),
    )
    places = [(head.column.key, head.task.name, head.split) for head in heads]
    places += [(average.column.key, average.column.key, "dev") for average in averages]
    return ResultTable(
        kind="scores",
        title=f"{'GLUE dev' if any(t.in_glue for t in tasks) else 'Dev'} scores: "
        f"{group.model}, {group.data}",
        model=group.model,
        data=group.data,
        caption=_caption(group, methods, usual),
        columns=(
            *sizes,
            *(head.column for head in heads),
            *(average.column for average in averages),
        ),
        rows=rows,
        notes=(
            *label_notes((row.label for row in group.rows), group),
            *_notes(group, rows, averages),
            *(against.notes() if against else ()),
            *published_notes(part),
        ),
        measurements=(
            *_measurements(group, averages),
            *(against.measurements(places) if against else ()),
            *published_measurements(part),
        ),
    )


# Columns


def _score_columns(
    tasks: Sequence[Task], singles: Collection[tuple[str, str]]
) -> Iterator[ScoreColumn]:
    """Head each dev set; a task with several takes the GLUE server's names for them.

    Accuracy and F1 stand beside their mean where a task has both.

    Args:
        tasks: in the table's order.
        singles: (task, metric) pairs that get a column of their own besides.
    """
    for task in tasks:
        several = len(task.dev_splits) > 1
        both = {name for name in task.metrics if name == "accuracy" or name.startswith("f1")}
        shown = both if len(both) > 1 else set()
        alone = [(m,) for m in task.metrics if m in shown or (task.name, m) in singles]
        for index, split in enumerate(task.dev_splits):
            key = f"{task.name}_{split.removeprefix('validation_')}" if several else task.name
            title = task.test_sets[index].submission if several else task.title
            for metrics in (task.metrics, *alone):
                column = Column(
                    key=key if metrics == task.metrics else f"{key}_{metrics[0]}",
                    title=title,
                    subtitle=_metrics_title(metrics),
                    unit=POINTS,
                )
                yield ScoreColumn(task=task, split=split, metrics=metrics, column=column)


def _metrics_title(metrics: Sequence[str]) -> str:
    return "/".join(_METRIC_TITLES.get(name, name) for name in metrics)


def _averages(tasks: Sequence[Task]) -> list[Average]:
    """Choose GLUE's averages to show: all tasks, and all but those that mislead (WNLI)."""

    def average(key: str, title: str, members: Sequence[Task], possible: int) -> Average:
        count = f"{len(members)} tasks" if len(members) == possible else ""
        subtitle = count or f"{len(members)} of {possible}"
        column = Column(key=key, title=title, subtitle=subtitle, unit=POINTS)
        return Average(column=column, tasks=tuple(members))

    tasks = [task for task in tasks if task.in_glue]
    averages = [average("avg", "Avg", tasks, len(TASKS))]
    if noted := [task for task in tasks if task.note]:
        key = "avg_without_" + "_".join(task.name for task in noted)
        title = "Avg w/o " + ", ".join(task.title for task in noted)
        plain = [task for task in tasks if not task.note]
        averages.append(average(key, title, plain, sum(not t.note for t in TASKS.values())))
    return [average for average in averages if len(average.tasks) > 1]


# Cells


def _score_cell(head: ScoreColumn, runs: Sequence[RunRecord]) -> Cell:
    return _with_spread(mean_cell(head.sample(runs), "{:.2f}".format, marks_of(runs)))


def _with_spread(cell: Cell) -> Cell:
    return replace(cell, spread="" if cell.sd is None else f"{cell.sd:.2f}")


def _average_cell(average: Average, runs: TaskRuns) -> Cell:
    """Average the tasks of one row, if it has them all.

    The spread is that of the seeds' averages, so it needs the same seeds on every task.
    """
    samples = average.samples(runs)
    if not all(samples):
        return Cell()
    every = marks_of([run for task in average.tasks for run in runs[task.name]])
    marks = tuple(Mark(name=mark.name) for mark in every)
    if len({frozenset(sample) for sample in samples}) == 1:
        return _with_spread(mean_cell(average_by_seed(samples), "{:.2f}".format, marks))
    mean = statistics.fmean(map(mean_of, samples))
    return Cell(value=mean, n=min(map(len, samples)), text=f"{mean:.2f}", marks=marks)


def _against(
    baseline: Setting,
    group: RunGroup,
    rows: Sequence[Row],
    heads: Sequence[ScoreColumn],
    averages: Sequence[Average],
) -> Against:
    """Test every task's score and every average against the baseline's."""
    samples = {
        setting: [
            *(head.sample(runs.get(head.task.name, ())) for head in heads),
            *(average_by_seed(average.samples(runs)) for average in averages),
        ]
        for setting, runs in group.rows.items()
    }
    shown = {setting: row.cells for setting, row in zip(group.rows, rows, strict=True)}
    whole = [head.is_task_score for head in heads] + [True] * len(averages)
    tested = [column for column, is_whole in enumerate(whole) if is_whole]
    return compare_scores(baseline, samples, shown, tested, len(heads))


def _majority_run(group: RunGroup, task: Task) -> RunRecord:
    """Choose whose training set decides the majority class: the largest."""
    runs = [run for run in group.records if run.task == task.name]
    return max(runs, key=lambda run: (run.train_limit is None, run.train_limit or 0))


def _majority_row(
    group: RunGroup, heads: Sequence[ScoreColumn], averages: Sequence[Average]
) -> Row:
    chosen = {task.name: _majority_run(group, task) for task in group.tasks}

    def cell(value: float | None, runs: Sequence[RunRecord]) -> Cell:
        if value is None:
            return Cell()
        about_data = ("unofficial", "limited")
        marks = [Mark(name=mark.name) for mark in marks_of(runs) if mark.name in about_data]
        return Cell(value=100 * value, text=f"{100 * value:.2f}", marks=tuple(marks))

    cells = []
    for head in heads:
        run = chosen[head.task.name]
        cells.append(cell(head.score(run.majority), [run]))
    for average in averages:
        scores = [task.score(chosen[task.name].majority) for task in average.tasks]
        cells.append(cell(mean_or_none(scores), [chosen[task.name] for task in average.tasks]))
    return Row(label=MAJORITY, name=MAJORITY, cells=tuple(cells), baseline=True)


# Caption and notes


def _caption(group: RunGroup, rows: Sequence[Row], usual: int) -> str:
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


def _notes(group: RunGroup, rows: Sequence[Row], averages: Sequence[Average]) -> Iterator[str]:
    """Explain marks, metrics and averages, and count what is left out."""
    tasks = group.tasks
    yield from mark_notes([mark for row in rows for cell in row.cells for mark in cell.marks])
    methods = [row.cells for row in rows if row.is_method]
    scored = [cell for cells in methods for cell in cells if cell.value is not None]
    (majority,) = (row.cells for row in rows if row.baseline)
    unranked = ["scores marked †, and averages over them"]
    unranked *= not all(cell.is_rankable for cell in scored)
    if any(is_below(*pair) for cells in methods for pair in zip(cells, majority, strict=True)):
        unranked.append("scores below the majority class")
    if len(methods) > 1 and unranked:
        yield f"Not ranked: {'; '.join(unranked)}."
    yield from _collapse_notes(group)
    several = dict.fromkeys(task.metrics for task in tasks if len(task.metrics) > 1)
    if several:
        two = "two " * all(len(task.metrics) <= 2 for task in tasks)
        yield f"{' and '.join(map(_metrics_title, several))}: the mean of the {two}metrics."
    yield from _average_notes(tasks, methods, averages)
    official = {run.task for run in group.records if run.official_split}  # the note is about GLUE
    for task in tasks:
        if task.note and task.in_glue and task.name in official:
            yield f"{task.title}: {task.note}."
    for task in tasks:
        if not task.in_glue:
            bases = {run.data.official_basis for run in group.records if run.task == task.name}
            text = " and ".join(sorted(bases))
            yield f"{task.title} is in no average: {task.note}. Its data: {text}."
    yield (
        "Params (M): trainable parameters in millions, with adapters and classifier. %: their "
        "share of the base model's parameters, which do not include adapters."
    )
    yield from left_out_notes(group.left_out)
    if group.repeated:
        count = len(group.repeated)
        runs = "1 earlier run" if count == 1 else f"{count} earlier runs"
        yield f"Left out: {runs} of a seed that a later run of the same setting repeats."


def _collapse_notes(group: RunGroup) -> Iterator[str]:
    """Where only some seeds of a cell collapsed, give its mean with and without them."""
    for setting, runs_of in group.rows.items():
        for task in group.tasks:
            runs = runs_of.get(task.name, ())
            sound = [run for run in runs if not run.collapsed]
            every, kept = score_sample(task, runs), score_sample(task, sound)
            if len(sound) < len(runs) and kept:
                yield (
                    f"{setting.label} on {task.title}: {len(runs) - len(sound)} of {len(runs)} "
                    f"seeds collapsed; mean {mean_of(every):.2f} with them, "
                    f"{mean_of(kept):.2f} without."
                )


def _average_notes(
    tasks: Sequence[Task], methods: Sequence[Sequence[Cell]], averages: Sequence[Average]
) -> Iterator[str]:
    means = [cell for cells in methods for cell in cells[len(cells) - len(averages) :]]
    if averages:
        counted = [task for task in tasks if task.in_glue]
        present = {task.name for task in counted}
        absent = [task.title for name, task in TASKS.items() if name not in present]
        covered = f"{len(counted)} of {len(TASKS)} tasks; missing {', '.join(absent)}"
        text = f"Avg: mean over {covered if absent else f'all {len(counted)} tasks'}"
        several = [task.title for task in counted if len(task.dev_splits) > 1]
        yield text + "".join(f"; {title} counts once" for title in several) + "."
    tests = ("better", "worse")
    if averages and any(mark.name not in tests for cell in means for mark in cell.marks):
        yield "A mark on an average means that at least one of its scores has this mark."
    if any(cell.value is not None and cell.sd is None and cell.n > 1 for cell in means):
        yield "An average has no spread if its tasks ran different seeds."
    if any(cell.text == MISSING for cells in methods for cell in cells):
        rule = "; a row that lacks a task has no average" if averages else ""
        yield f"—: no finished run{rule}."


def left_out_notes(left_out: Sequence[RunRecord]) -> Iterator[str]:
    """Count runs that ended without a result."""
    lost = Counter((run.status, run.method, run.task_facts.title) for run in left_out)
    for (status, method, title), count in sorted(lost.items()):
        runs = "run" if count == 1 else "runs"
        yield f"Left out: {count} {status} {runs} of {method} on {title}."


# The long form


def _measurements(group: RunGroup, averages: Sequence[Average]) -> Iterator[Measurement]:
    """List every metric of every split, each task's score, and the averages."""
    for setting, runs in group.rows.items():
        for task in group.tasks:
            yield from _task_measurements(setting, task, runs.get(task.name, ()))
        for average in averages:
            cell = _average_cell(average, runs)
            if cell.value is None:
                continue
            seeds = {tuple(run.seed for run in runs[task.name]) for task in average.tasks}
            yield Measurement(
                method=setting.method,
                setting=setting.difference,
                task=average.column.key,
                split="dev",
                metric="score",
                unit=POINTS,
                mean=cell.value,
                sd=cell.sd,
                n=cell.n,
                seeds=seeds.pop() if len(seeds) == 1 else (),
                marks=marks_text(cell.marks),
            )
    for task in group.tasks:
        run = _majority_run(group, task)
        constant = run.model_copy(update={"metrics": run.majority, "collapsed": False})
        for line in _task_measurements(Setting(method=MAJORITY), task, [constant]):
            yield replace(line, n=0, seeds=())


def _task_measurements(
    setting: Setting, task: Task, runs: Sequence[RunRecord]
) -> Iterator[Measurement]:
    marks = marks_of(runs)
    names = dict.fromkeys(
        (split, name) for run in runs for split, found in run.metrics.items() for name in found
    )
    for split, name in names:
        sample = sample_of(runs, _metric(split, name))
        yield measurement(setting, (task.name, split), (name, POINTS), sample, marks)
    if sample := score_sample(task, runs):
        yield measurement(setting, (task.name, "dev"), ("score", POINTS), sample, marks)
    sound = score_sample(task, [run for run in runs if not run.collapsed])
    if sound and len(sound) < len(sample):
        yield measurement(setting, (task.name, "dev"), ("score_without_collapsed", POINTS), sound)


def _metric(split: str, name: str) -> Callable[[RunRecord], float | None]:
    def value(run: RunRecord) -> float | None:
        found = run.metrics.get(split, {}).get(name)
        return None if found is None else 100 * found

    return value

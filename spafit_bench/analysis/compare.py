"""Is A better than B? Paired tests between rows of one table, from records and predictions.

Over seeds: would another training run change the order? On predictions: would another dev set, for
these trained models? The two answer for different noise and are never pooled. Over tasks: would the
order hold on other tasks? The formulas are in `stats.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import factorial
from pathlib import Path

import numpy as np

from spafit_bench.analysis import stats
from spafit_bench.analysis.selection import Selection, read_runs
from spafit_bench.analysis.stats import (
    ALPHA,
    UNTESTED,
    Interval,
    OverSeeds,
    Resamples,
    Significance,
    Tested,
    average_by_seed,
    family,
    over_seeds,
)
from spafit_bench.analysis.tables.cells import Mark, Sample, marks_of, mean_of, score_sample, sd_of
from spafit_bench.analysis.tables.scores import left_out_notes
from spafit_bench.analysis.tables.settings import RunGroup, Setting, group_runs, matching_rows
from spafit_bench.base.errors import DamagedError, UnreadableError, UserError, nearest
from spafit_bench.data.metrics import score
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_rows
from spafit_bench.results.store import Store

SEED = 0
"""Of every bootstrap and randomisation, together with the names of what is compared."""
_TOLERANCE = 1e-5
"""Largest gap between a recorded metric and the same from the kept predictions, native scale:
scores of regression tasks pass through 32-bit floats."""

Pair = tuple[Setting, Setting]
DevAnswers = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Dev split -> labels and a model's predictions, each (n,)."""


# What a comparison says: the keys of `compare --json`


@dataclass(frozen=True, kw_only=True)
class Side:
    """One method on one task."""

    label: str
    seeds: tuple[int, ...]
    mean: float
    """Of the task's score, times 100, as in the tables."""
    sd: float | None
    t_interval: Interval | None
    bootstrap_interval: Interval | None
    marks: tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True)
class SeedPair:
    """McNemar's test of the accuracy of one pair of models."""

    runs: tuple[str, str]
    only_first: int
    only_second: int
    tested: Tested


@dataclass(frozen=True, kw_only=True)
class OnPredictions:
    """A difference between the same trained models over dev examples."""

    pairs: int
    """Pairs of models whose predictions were used."""
    difference: float | None = None
    interval: Interval | None = None
    """95 %, as if it were the only one."""
    corrected_interval: Interval | None = None
    """At the level at which the difference was tested in its family, which `tested.alpha` is."""
    mcnemar: tuple[SeedPair, ...] = ()
    missing: tuple[str, ...] = ()
    """Predictions that could not be used, and why."""
    tested: Tested = UNTESTED

    @property
    def shown_interval(self) -> Interval | None:
        """The corrected interval, or that of 95 % where nothing was tested."""
        return self.corrected_interval or self.interval


@dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """Two methods on one task."""

    task: str
    title: str
    note: str
    """Why the task is in no average, if so."""
    first: Side
    second: Side
    over_seeds: OverSeeds
    on_predictions: OnPredictions
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Overall:
    """Two methods on the tasks that both have, but those whose dev set misleads (WNLI)."""

    tasks: tuple[str, ...]
    over_seeds: OverSeeds
    on_predictions: OnPredictions
    ahead: int
    """Tasks on which the first is ahead."""
    over_tasks: Tested
    verdict: str


@dataclass(frozen=True, kw_only=True)
class PairComparison:
    """Two methods on every task that both have."""

    first: str
    second: str
    tasks: tuple[TaskComparison, ...]
    overall: Overall | None
    """None for a single task."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Three or more methods over tasks: the data of a critical-difference diagram."""

    tasks: tuple[str, ...]
    mean_ranks: Mapping[str, float]
    """Method -> mean rank, 1 the best, best first."""
    chi_square: float
    critical_difference: float
    cliques: tuple[tuple[str, ...], ...]
    """Methods that Nemenyi's test does not tell apart."""
    tested: Tested


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every pair of the chosen methods in one table."""

    model: str
    data: str
    methods: tuple[str, ...]
    pairs: tuple[PairComparison, ...]
    ranking: Ranking | None
    resamples: int
    """Draws of each bootstrap and randomisation."""
    families: Mapping[str, int]
    """Family -> number of tests that Holm's correction is for."""
    notes: tuple[str, ...] = ()
    """Tables that were not compared, and runs without a result."""
    alpha: float = ALPHA
    seed: int = SEED
    confidence: float = 0.95


# Which rows


def compare(
    store: Store, names: Sequence[str], selection: Selection | None = None
) -> tuple[Comparison, ...]:
    """Compare rows in every table (same weights, same data) that has them all, largest first.

    A table in which a name stands for several rows is left out, and the notes say so.

    Args:
        store: the results.
        names: two or more rows as the tables name them; a method's name where it has one row.
        selection: which runs (default: all).

    Raises:
        UserError: fewer than two rows; a name that is no row's, or several rows'; or no table that
            has them all; or no task in common.
    """
    if len(names) < 2:
        raise UserError(
            "compare needs two methods or more, as in `spafit-bench compare spafit lora`"
        )
    groups = group_runs(read_runs(store, selection))
    matches = [[matching_rows(group, name) for name in names] for group in groups]
    benches = [
        _Bench(store, group, [row for (row,) in rows])
        for group, rows in zip(groups, matches, strict=True)
        if all(len(found) == 1 for found in rows)
    ]
    ambiguous = [
        (group, name, found)
        for group, rows in zip(groups, matches, strict=True)
        if all(rows)
        for name, found in zip(names, rows, strict=True)
        if len(found) > 1
    ]
    if not benches:
        raise _not_found(groups, names, ambiguous)
    if any(len(set(bench.rows)) < len(names) for bench in benches):
        raise UserError(f"compare {' '.join(names)}: a method is named twice; name each once")
    if not any(shared for bench in benches for shared in bench.shared.values()):
        raise UserError(
            f"{', '.join(names)} have no scored task in common; run them on the same tasks with "
            f"`spafit-bench run --task all --method {','.join(names)}`"
        )
    skipped = tuple(
        f"Not compared: {group.model}, {group.data}, where {name!r} is {len(rows)} rows "
        f"({', '.join(repr(row.label) for row in rows)}); name one of them."
        for group, name, rows in ambiguous
    )
    first, *others = map(_compare, benches)
    return (replace(first, notes=(*skipped, *first.notes)), *others)


def _not_found(
    groups: Sequence[RunGroup],
    names: Sequence[str],
    ambiguous: Sequence[tuple[RunGroup, str, Sequence[Setting]]],
) -> UserError:
    if ambiguous:
        _, name, rows = ambiguous[0]
        listed = "".join(f"\n  {row.label!r}" for row in rows)
        return UserError(f"{name!r} is {len(rows)} rows of the table; name one of them:{listed}")
    if not groups:
        return UserError(
            "no run has finished, so there is nothing to compare: make runs with "
            f"`spafit-bench run --task mrpc --method {','.join(names)} --seed 0,1,2`"
        )
    labels = sorted({row.label for group in groups for row in group.rows})
    for name in names:
        if not any(matching_rows(group, name) for group in groups):
            return UserError(f"no finished run of {name!r}: {nearest(name, labels)}")
    tables = "".join(
        f"\n  {group.model}, {group.data}: {', '.join(row.label for row in group.rows)}"
        for group in groups
    )
    return UserError(
        f"no table (same weights, same data) has all of {', '.join(names)}; the tables are:{tables}"
    )


def compare_with(
    store: Store,
    group: RunGroup,
    baseline: Setting,
    rows: Sequence[Setting],
    ranked: Sequence[Setting],
) -> Comparison | None:
    """Compare rows of one table with one of them.

    Args:
        store: the results.
        group: the table's runs.
        baseline: the second of each pair.
        rows: the first of each pair; the baseline may be among them.
        ranked: what is ranked over the tasks that they share.

    Returns:
        None where no row has a scored task in common with the baseline.
    """
    bench = _Bench(store, group, tuple(dict.fromkeys((*rows, baseline))), against=baseline)
    if not any(bench.shared.values()):
        return None
    return replace(_compare(bench), ranking=_ranking(_Bench(store, group, ranked)))


# Differences and tests


class _Bench:
    """Rows of one table that are compared in pairs; the predictions of a run are read once."""

    def __init__(
        self, store: Store, group: RunGroup, rows: Sequence[Setting], against: Setting | None = None
    ) -> None:
        """Pair all rows, or each with `against` alone, which comes second."""
        self.group, self.rows = group, tuple(rows)
        self._store = store
        self._read: dict[str, DevAnswers | str] = {}
        pairs = list(combinations(rows, 2))
        if against is not None:
            pairs = [(row, against) for row in rows if row != against]
        self.shared = {pair: self.shared_tasks(pair) for pair in pairs}
        # so many draws that the smallest p-value withstands Holm's correction
        self.resamples = max(stats.RESAMPLES, 40 * sum(map(len, self.shared.values())))

    def shared_tasks(self, rows: Sequence[Setting]) -> tuple[Task, ...]:
        """Tasks on which every row has a score."""
        return tuple(t for t in self.group.tasks if all(self.sample(row, t) for row in rows))

    def runs(self, row: Setting, task: Task) -> dict[int, RunRecord]:
        """Scored runs of a row, by seed."""
        runs = self.group.rows[row].get(task.name, ())
        return {run.seed: run for run in runs if task.score(run.metrics) is not None}

    def sample(self, row: Setting, task: Task) -> Sample:
        """Score of each seed, times 100."""
        return score_sample(task, self.runs(row, task).values())

    def answers(self, run: RunRecord, task: Task) -> DevAnswers | str:
        """Read what a run answered on the dev splits, or say why that cannot be used."""
        if run.run_id not in self._read:
            path = self._store.runs / run.run_id / "predictions.parquet"
            self._read[run.run_id] = _read_answers(path, run, task)
        return self._read[run.run_id]


@dataclass(frozen=True)
class _Found:
    """A difference and its tests, which have not met their families yet."""

    samples: tuple[Sample, Sample]
    """Points of each seed, of the first and the second."""
    over_seeds: OverSeeds
    seeds: Significance | None
    on_predictions: OnPredictions
    resamples: Resamples | None
    collapsed: tuple[str, ...] = ()
    """Of which methods some runs predict a constant."""


def _compare(bench: _Bench) -> Comparison:
    found = {
        (pair, task.name): _differ(bench, pair, task)
        for pair, shared in bench.shared.items()
        for task in shared
    }
    counted = {
        pair: [task for task in shared if not task.note] for pair, shared in bench.shared.items()
    }
    averaged = {pair: tasks for pair, tasks in counted.items() if len(tasks) > 1}
    judged = _judged(found)
    judged_averages = _judged(
        {
            (pair, ""): _average(bench, pair, tasks, [found[pair, task.name] for task in tasks])
            for pair, tasks in averaged.items()
        }
    )
    differences = {
        pair: np.array([found[pair, task.name].over_seeds.difference for task in tasks])
        for pair, tasks in averaged.items()
    }
    over_tasks = family({pair: stats.wilcoxon(d) for pair, d in differences.items()}, "tasks")

    pairs = []
    for pair, shared in bench.shared.items():
        tasks = []
        for task in shared:
            over, on, verdict = judged[pair, task.name]
            tasks.append(
                TaskComparison(
                    task=task.name,
                    title=task.title,
                    note=task.note,
                    first=_side(bench, pair[0], task),
                    second=_side(bench, pair[1], task),
                    over_seeds=over,
                    on_predictions=on,
                    verdict=verdict,
                )
            )
        overall = None
        if pair in averaged:
            over, on, verdict = judged_averages[pair, ""]
            overall = Overall(
                tasks=tuple(task.name for task in averaged[pair]),
                over_seeds=over,
                on_predictions=on,
                ahead=int(np.sum(differences[pair] > 0)),
                over_tasks=over_tasks[pair],
                verdict=verdict,
            )
        first, second = (row.label for row in pair)
        pairs.append(
            PairComparison(first=first, second=second, tasks=tuple(tasks), overall=overall)
        )
    methods = {row.method for row in bench.rows}
    lost = [run for run in bench.group.left_out if run.method in methods]
    return Comparison(
        model=bench.group.model,
        data=bench.group.data,
        methods=tuple(row.label for row in bench.rows),
        pairs=tuple(pairs),
        ranking=_ranking(bench),
        resamples=bench.resamples,
        families=_families(pairs),
        notes=tuple(left_out_notes(lost)),
    )


def _side(bench: _Bench, row: Setting, task: Task) -> Side:
    sample = bench.sample(row, task)
    values = np.array(list(sample.values()))
    bounded = len(values) >= stats.LEAST_SEEDS and not stats.is_constant(values)
    draws = _stream(task.name, row.label)
    return Side(
        label=row.label,
        seeds=tuple(sorted(sample)),
        mean=mean_of(sample),
        sd=sd_of(sample),
        t_interval=stats.t_interval(values) if bounded else None,
        bootstrap_interval=stats.bootstrap_interval(values, seed=draws) if bounded else None,
        marks=marks_of(list(bench.runs(row, task).values())),
    )


def _differ(bench: _Bench, pair: Pair, task: Task) -> _Found:
    """Compare two rows on one task: over seeds, and on predictions of as many models of each."""
    samples = bench.sample(pair[0], task), bench.sample(pair[1], task)
    means, seeds = over_seeds(*samples)
    usable, missing = _usable(bench, pair, task)
    found = _Found(
        samples,
        means,
        seeds,
        OnPredictions(pairs=0, missing=missing),
        None,
        tuple(
            row.label for row in pair if any(r.collapsed for r in bench.runs(row, task).values())
        ),
    )
    if not usable:
        return found
    sign = 1 if pair[0].label <= pair[1].label else -1
    parts = []
    for split in task.dev_splits:
        # in an order that naming does not change
        first, second = (
            np.stack([models[i][split][1] for _, models in usable]) for i in (0, 1)[::sign]
        )
        parts.append(
            stats.resample_predictions(
                usable[0][1][0][split][0],
                (first, second),
                task.metrics,
                seed=_stream(task.name, split, *sorted(row.label for row in pair)),
                resamples=bench.resamples,
            )
        )
    together = stats.mean_resamples(parts)
    resamples = replace(
        together, observed=sign * together.observed, bootstrap=sign * together.bootstrap
    )
    on_predictions = replace(
        _on_predictions(resamples, len(usable)), mcnemar=_mcnemar(usable, task), missing=missing
    )
    return replace(found, on_predictions=on_predictions, resamples=resamples)


Usable = list[tuple[tuple[RunRecord, RunRecord], tuple[DevAnswers, DevAnswers]]]


def _usable(bench: _Bench, pair: Pair, task: Task) -> tuple[Usable, tuple[str, ...]]:
    """Pair the models of two rows, those of common seeds first; say which cannot be used."""
    sides = [bench.runs(row, task) for row in pair]
    common = sides[0].keys() & sides[1].keys()
    ordered = [
        [runs[seed] for seed in sorted(runs, key=lambda seed: (seed not in common, seed))]
        for runs in sides
    ]
    usable: Usable = []
    missing: dict[str, None] = {}
    for first, second in zip(*ordered, strict=False):
        left, right = bench.answers(first, task), bench.answers(second, task)
        for run, answers in ((first, left), (second, right)):
            if isinstance(answers, str):
                missing[f"{run.run_id}: {answers}"] = None
        if isinstance(left, str) or isinstance(right, str):
            continue
        known = usable[0][1][0] if usable else left
        if _same_labels(left, known) and _same_labels(right, known):
            usable.append(((first, second), (left, right)))
        else:
            missing[f"{first.run_id}: its dev labels are not those of the other runs"] = None
    return usable, tuple(missing)


def _same_labels(left: DevAnswers, right: DevAnswers) -> bool:
    return all(np.array_equal(left[split][0], right[split][0]) for split in left)


def _read_answers(path: Path, run: RunRecord, task: Task) -> DevAnswers | str:
    """Read a run's dev predictions and make sure that they are those which its record scores.

    Returns:
        A sentence that says what is wrong where they are missing, damaged, or of another run.
    """
    try:
        frame = read_rows(path, ("index", "label", "prediction"), task.dev_splits)
    except DamagedError:
        return "predictions.parquet is damaged"
    except UnreadableError:
        return "predictions.parquet cannot be read"
    if frame is None:
        return "no predictions.parquet"
    answers = {}
    for split in task.dev_splits:
        rows = frame[frame["split"] == split].sort_values("index")
        labels, predictions = (
            rows[name].to_numpy(dtype=np.float64, na_value=np.nan)
            for name in ("label", "prediction")
        )
        whole = np.array_equal(rows["index"], np.arange(len(rows))) and len(rows) > 0
        if not whole or not np.isfinite([labels, predictions]).all():
            return f"predictions.parquet lacks examples of {split}"
        answers[split] = labels, predictions
        for metric in task.metrics:
            value = score(metric, predictions, labels)
            recorded = run.metrics.get(split, {}).get(metric)
            if recorded is None or abs(value - recorded) > _TOLERANCE:
                return (
                    f"predictions.parquet gives {split} {metric} {value:.4f}, its record "
                    f"{'none' if recorded is None else f'{recorded:.4f}'}"
                )
    return answers


def _mcnemar(usable: Usable, task: Task) -> tuple[SeedPair, ...]:
    """Test the accuracy of each pair of models; a family of their own."""
    if "accuracy" not in task.metrics:
        return ()
    found = {}
    for runs, models in usable:
        right = [
            np.concatenate([answers[s][1] == answers[s][0] for s in task.dev_splits])
            for answers in models
        ]
        found[runs[0].run_id, runs[1].run_id] = stats.mcnemar(right[0], right[1])
    tested = family({key: test for key, (_, _, test) in found.items()}, "differing examples")
    return tuple(
        SeedPair(runs=key, only_first=b, only_second=c, tested=tested[key])
        for key, (b, c, _) in found.items()
    )


def _on_predictions(resamples: Resamples, pairs: int) -> OnPredictions:
    return OnPredictions(
        pairs=pairs, difference=100 * resamples.observed, interval=_in_points(resamples, ALPHA)
    )


def _in_points(resamples: Resamples, alpha: float) -> Interval:
    interval = stats.percentile_interval(resamples, alpha)
    return Interval(100 * interval.low, 100 * interval.high)


def _average(bench: _Bench, pair: Pair, tasks: Sequence[Task], found: Sequence[_Found]) -> _Found:
    """Compare averages over tasks, over the seeds that the tasks share."""
    samples = [[bench.sample(row, task) for task in tasks] for row in pair]
    averages = average_by_seed(samples[0]), average_by_seed(samples[1])
    alike = len({frozenset(sample) for side in samples for sample in side}) == 1
    if alike or min(map(len, averages)) >= stats.LEAST_SEEDS:
        means, seeds = over_seeds(*averages)
    else:
        mean = float(np.mean([part.over_seeds.difference for part in found]))
        means, seeds = stats.unpaired_difference(mean), None
    lacking = [t.name for t, part in zip(tasks, found, strict=True) if part.resamples is None]
    if lacking:
        missing = (f"none of {', '.join(lacking)}",)
        return _Found(averages, means, seeds, OnPredictions(pairs=0, missing=missing), None)
    resamples = stats.mean_resamples([part.resamples for part in found if part.resamples])
    fewest = min(part.on_predictions.pairs for part in found)
    return _Found(averages, means, seeds, _on_predictions(resamples, fewest), resamples)


# Verdicts


def _judged(
    found: Mapping[tuple[Pair, str], _Found],
) -> dict[tuple[Pair, str], tuple[OverSeeds, OnPredictions, str]]:
    """Correct the tests within their families, and say in words what they come to."""
    by_seed = family({key: one.seeds for key, one in found.items()}, "seeds")
    drawn = {
        key: stats.randomization(one.resamples) if one.resamples else None
        for key, one in found.items()
    }
    by_example = family(drawn, "differing examples")
    judged = {}
    for key, one in found.items():
        over = replace(one.over_seeds, tested=by_seed[key])
        if over.tested.alpha:
            interval = over_seeds(*one.samples, over.tested.alpha)[0].interval
            over = replace(over, corrected_interval=interval)
        on = replace(one.on_predictions, tested=by_example[key])
        if one.resamples and on.tested.alpha:
            on = replace(on, corrected_interval=_in_points(one.resamples, on.tested.alpha))
        judged[key] = over, on, _verdict(key[0], over, on, one.collapsed)
    return judged


def _verdict(pair: Pair, over: OverSeeds, on: OnPredictions, collapsed: Sequence[str] = ()) -> str:
    """Sum up two tests: only what is separable in both is better.

    What holds on predictions alone is about these trained models, not about the methods.
    """
    if collapsed:
        return f"no verdict: {' and '.join(collapsed)} collapsed"
    shift = over.difference if on.difference is None else on.difference
    first, second = pair[over.difference < 0].label, pair[shift < 0].label
    seeds, examples = over.tested.separable, on.tested.separable
    if seeds and examples and first == second:
        return f"{first} is better"
    if seeds == examples and not seeds:
        return "not tested" if seeds is None else "not separable"

    def said(test: bool | None, leader: str, where: str) -> str:
        if test is None:
            return f"{where.rsplit(maxsplit=1)[-1]} untested"
        return f"{leader} is ahead {where}" if test else f"not separable {where}"

    parts = [(seeds, first, "over seeds"), (examples, second, "on these predictions")]
    parts.sort(key=lambda part: (not part[0], part[0] is None))  # what was found comes first
    return ", ".join(said(*part) for part in parts)


def _families(pairs: Sequence[PairComparison]) -> dict[str, int]:
    overall = [pair.overall for pair in pairs if pair.overall]
    tasks = [task for pair in pairs for task in pair.tasks]

    def count(tests: Iterable[Tested]) -> int:
        return sum(test.p is not None for test in tests)

    return {
        "tasks over seeds": count(task.over_seeds.tested for task in tasks),
        "tasks on predictions": count(task.on_predictions.tested for task in tasks),
        "average over seeds": count(one.over_seeds.tested for one in overall),
        "average on predictions": count(one.on_predictions.tested for one in overall),
        "over tasks": count(one.over_tasks for one in overall),
    }


def _ranking(bench: _Bench) -> Ranking | None:
    """Rank three or more methods on the tasks that all have."""
    rows = bench.rows
    tasks = [task for task in bench.shared_tasks(rows) if not task.note]
    if len(rows) < 3 or len(tasks) < 2:
        return None
    scores = np.array([[mean_of(bench.sample(row, task)) for row in rows] for task in tasks])
    found = stats.friedman(scores, seed=_stream(*sorted(row.label for row in rows)))
    tested = family({"": found.significance}, "tasks")[""]
    if tested.p is None:
        least = next(m for m in range(2, 99) if factorial(len(rows)) ** (1 - m) <= ALPHA)
        tested = replace(tested, needs=least)
    difference = stats.critical_difference(len(rows), len(tasks), ALPHA)
    order = sorted(range(len(rows)), key=lambda i: found.mean_ranks[i])
    groups = stats.cliques(found.mean_ranks, difference) if tested.separable else (tuple(order),)
    return Ranking(
        tasks=tuple(task.name for task in tasks),
        mean_ranks={rows[i].label: found.mean_ranks[i] for i in order},
        chi_square=found.chi_square,
        critical_difference=difference,
        cliques=tuple(tuple(rows[i].label for i in group) for group in groups),
        tested=tested,
    )


def _stream(*names: str) -> int:
    """Seed of what is called so: adding another method or task does not change it."""
    return zlib.crc32("|".join((str(SEED), *names)).encode())

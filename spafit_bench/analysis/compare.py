"""Is A better than B? Paired tests between rows of one table, from records and predictions.

*Over seeds* asks whether another training run would change the order, *on predictions* whether
another dev set would, for these trained models. They answer for different noise and are never
pooled. *Over tasks* asks whether the order would hold on other tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import factorial
from typing import TypeVar

import numpy as np

from spafit_bench.analysis import stats
from spafit_bench.analysis.compare_inputs import Chosen, choose_rows
from spafit_bench.analysis.compare_measure import (
    SEED,
    Bench,
    Evidence,
    OnPredictions,
    Rows,
    TaskComparison,
    describe_predictions,
    stream,
)
from spafit_bench.analysis.seed_tests import (
    ALPHA,
    UNTESTED,
    OverSeeds,
    Tested,
    average_by_seed,
    family,
    over_seeds,
)
from spafit_bench.analysis.tables.cells import Sample, mean_of
from spafit_bench.analysis.tables.score_notes import left_out_notes
from spafit_bench.analysis.tables.settings import Group, Setting, group_runs
from spafit_bench.base.errors import UserError
from spafit_bench.data.tasks import Task
from spafit_bench.results.store import Store


@dataclass(frozen=True, kw_only=True)
class Overall:
    """Two methods on the tasks that both have, but those whose dev set misleads (WNLI)."""

    tasks: tuple[str, ...]
    over_seeds: OverSeeds
    on_predictions: OnPredictions
    ahead: int
    """Tasks on which the first is ahead."""
    over_tasks: Tested = UNTESTED
    verdict: str = ""


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


Found = TypeVar("Found", TaskComparison, Overall)


def compare(store: Store, names: Sequence[str]) -> tuple[Comparison, ...]:
    """Compare rows in every table (same weights, same data) that has them all, largest first.

    Args:
        store: the results.
        names: two or more rows as the tables name them; a method's name where it has one row.

    Raises:
        UserError: fewer than two rows; a name that is no row's, or several rows'; or no table that
            has them all; or no task in common.
    """
    benches = [Bench(store, rows) for rows in choose_rows(group_runs(store.records()), names)]
    if not any(shared for bench in benches for shared in bench.shared.values()):
        raise UserError(
            f"{', '.join(names)} have no scored task in common; run them on the same tasks with "
            f"`spafit-bench run --task all --method {','.join(names)}`"
        )
    return tuple(_compare(bench) for bench in benches)


def compare_with(
    store: Store,
    group: Group,
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
    chosen = Chosen(group, tuple(dict.fromkeys((*rows, baseline))))
    bench = Bench(store, chosen, against=baseline)
    if not any(bench.shared.values()):
        return None
    ranking = _ranking(Bench(store, Chosen(group, tuple(ranked))))
    return replace(_compare(bench), ranking=ranking)


def _compare(bench: Bench) -> Comparison:
    tasks = {
        (pair, task.name): bench.measure(pair, task)
        for pair, shared in bench.shared.items()
        for task in shared
    }
    overall = {}
    for pair, shared in bench.shared.items():
        counted = [task for task in shared if not task.note]
        if len(counted) > 1:
            overall[pair] = _overall(bench, pair, [(t, tasks[pair, t.name]) for t in counted])
    by_seed = family({key: found.seeds for key, (_, found) in tasks.items()}, "seeds")
    by_example = family(
        {key: found.predictions for key, (_, found) in tasks.items()}, "differing examples"
    )
    averages = _tested_overall(overall)
    compared = {
        key: _judged(comparison, _names(key[0]), by_seed[key], by_example[key])
        for key, (comparison, _) in tasks.items()
    }
    pairs = tuple(
        PairComparison(
            first=pair[0].label,
            second=pair[1].label,
            tasks=tuple(compared[pair, task.name] for task in shared),
            overall=averages.get(pair),
        )
        for pair, shared in bench.shared.items()
    )
    group = bench.chosen.group
    return Comparison(
        model=group.model,
        data=group.data,
        methods=tuple(row.label for row in bench.chosen.rows),
        pairs=pairs,
        ranking=_ranking(bench),
        resamples=bench.resamples,
        families=_families(pairs),
        notes=(*bench.chosen.notes, *_left_out(bench.chosen)),
    )


def _left_out(chosen: Chosen) -> Iterator[str]:
    """Count runs of the compared methods that ended without a result: means are of the others."""
    methods = {row.method for row in chosen.rows}
    return left_out_notes([run for run in chosen.group.left_out if run.method in methods])


def _overall(
    bench: Bench, pair: Rows, found: Sequence[tuple[Task, tuple[TaskComparison, Evidence]]]
) -> tuple[Overall, Evidence]:
    tasks = [task for task, _ in found]
    differences = np.array([comparison.over_seeds.difference for _, (comparison, _) in found])
    samples = [[bench.sample(row, task) for task in tasks] for row in pair]
    means, seeds = _average(samples[0], samples[1], differences)
    parts = [evidence.resamples for _, (_, evidence) in found]
    known = [part for part in parts if part is not None]
    if len(known) == len(parts):
        resamples = stats.mean_resamples(known)
        fewest = min(comparison.on_predictions.pairs for _, (comparison, _) in found)
        on_predictions = describe_predictions(resamples, fewest, (), ())
    else:
        resamples = None
        lacking = [task.name for task, part in zip(tasks, parts, strict=True) if part is None]
        on_predictions = OnPredictions(pairs=0, missing=(f"none of {', '.join(lacking)}",))
    overall = Overall(
        tasks=tuple(task.name for task in tasks),
        over_seeds=means,
        on_predictions=on_predictions,
        ahead=int(np.sum(differences > 0)),
    )
    return overall, Evidence(seeds, resamples, stats.wilcoxon(differences))


def _average(
    first: Sequence[Sample], second: Sequence[Sample], differences: np.ndarray
) -> tuple[OverSeeds, stats.Significance | None]:
    """Compare averages over tasks, over the seeds that the tasks share."""
    averages = [average_by_seed(samples) for samples in (first, second)]
    alike = len({frozenset(sample) for sample in (*first, *second)}) == 1
    if alike or min(map(len, averages)) >= stats.LEAST_SEEDS:
        return over_seeds(averages[0], averages[1])
    mean = float(differences.mean())
    return OverSeeds(
        paired=False, seeds=(), difference=mean, interval=None, effect=None, ahead=0
    ), None


def _tested_overall(found: Mapping[Rows, tuple[Overall, Evidence]]) -> dict[Rows, Overall]:
    by_seed = family({pair: e.seeds for pair, (_, e) in found.items()}, "seeds")
    by_example = family(
        {pair: e.predictions for pair, (_, e) in found.items()}, "differing examples"
    )
    by_task = family({pair: e.tasks for pair, (_, e) in found.items()}, "tasks")
    return {
        pair: replace(
            _judged(overall, _names(pair), by_seed[pair], by_example[pair]),
            over_tasks=by_task[pair],
        )
        for pair, (overall, _) in found.items()
    }


def _names(pair: Rows) -> tuple[str, str]:
    return pair[0].label, pair[1].label


def _judged(found: Found, names: tuple[str, str], seeds: Tested, examples: Tested) -> Found:
    """Enter the corrected tests, and say in words what they come to."""
    over, on = found.over_seeds, found.on_predictions
    shift = over.difference if on.difference is None else on.difference
    leaders = names[over.difference < 0], names[shift < 0]
    return replace(
        found,
        over_seeds=replace(over, tested=seeds),
        on_predictions=replace(on, tested=examples),
        verdict=_verdict(leaders, seeds.separable, examples.separable),
    )


def _verdict(leaders: tuple[str, str], seeds: bool | None, examples: bool | None) -> str:
    """Sum up two tests (None: not made); `leaders` are ahead over seeds and on predictions."""
    first, second = leaders
    if seeds and examples:
        same = f"{first} is better"
        return same if first == second else f"{first} better over seeds, {second} on predictions"
    if seeds:
        return f"{first} better over seeds, {_missed('on predictions', examples)}"
    if examples:
        return f"{second} better on predictions, {_missed('over seeds', seeds)}"
    if seeds == examples:
        return "not tested" if seeds is None else "not separable"
    if examples is None:
        return "not separable over seeds, predictions untested"
    return "not separable on predictions, seeds untested"


def _missed(where: str, test: bool | None) -> str:
    """Say that a test found nothing, or was not made."""
    return f"not {where}" if test is not None else f"{where.split()[1]} untested"


def _families(pairs: Sequence[PairComparison]) -> dict[str, int]:
    overall = [pair.overall for pair in pairs if pair.overall]
    tasks = [task for pair in pairs for task in pair.tasks]
    members = {
        "tasks over seeds": [task.over_seeds.tested for task in tasks],
        "tasks on predictions": [task.on_predictions.tested for task in tasks],
        "average over seeds": [one.over_seeds.tested for one in overall],
        "average on predictions": [one.on_predictions.tested for one in overall],
        "over tasks": [one.over_tasks for one in overall],
    }
    return {name: sum(t.p is not None for t in tests) for name, tests in members.items()}


def _ranking(bench: Bench) -> Ranking | None:
    """Rank three or more methods on the tasks that all have."""
    rows = bench.chosen.rows
    tasks = [task for task in bench.shared_tasks(rows) if not task.note]
    if len(rows) < 3 or len(tasks) < 2:
        return None
    scores = np.array([[mean_of(bench.sample(row, task)) for row in rows] for task in tasks])
    found = stats.friedman(scores, seed=stream(*sorted(row.label for row in rows)))
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

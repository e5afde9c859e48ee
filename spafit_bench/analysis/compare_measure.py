"""Two rows of a table on one task: how far apart, and against which noise."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from spafit_bench.analysis import stats
from spafit_bench.analysis.compare_inputs import (
    Chosen,
    Predictions,
    UnusablePredictionsError,
    read_predictions,
)
from spafit_bench.analysis.seed_tests import UNTESTED, OverSeeds, Tested, family, over_seeds
from spafit_bench.analysis.stats import Interval, Resamples, Significance
from spafit_bench.analysis.tables.cells import Mark, Sample, marks_of, mean_of, sample_of, sd_of
from spafit_bench.analysis.tables.settings import Setting
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store

SEED = 0
"""Of every bootstrap and randomisation, together with the names of what is compared."""

Rows = tuple[Setting, Setting]
RunPair = tuple[RunRecord, RunRecord]
Models = tuple[Predictions, Predictions]


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
    mcnemar: tuple[SeedPair, ...] = ()
    missing: tuple[str, ...] = ()
    """Predictions that could not be used, and why."""
    tested: Tested = UNTESTED


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
    verdict: str = ""


@dataclass(frozen=True)
class Evidence:
    """What tests say before they have met their families."""

    seeds: Significance | None
    resamples: Resamples | None
    tasks: Significance | None = None

    @property
    def predictions(self) -> Significance | None:
        """The test that the resamples make."""
        return None if self.resamples is None else stats.randomization(self.resamples)


class Bench:
    """Measures pairs of rows, reading each run's predictions once."""

    def __init__(self, store: Store, chosen: Chosen, against: Setting | None = None) -> None:
        """Pair all chosen rows, or each with `against` alone, which comes second."""
        self.chosen = chosen
        self._store = store
        self._read: dict[str, Predictions | str] = {}
        pairs = list(combinations(chosen.rows, 2))
        if against is not None:
            pairs = [(row, against) for row in chosen.rows if row != against]
        self.shared = {pair: self.shared_tasks(pair) for pair in pairs}
        # so many draws that the smallest p-value withstands Holm's correction
        self.resamples = max(stats.RESAMPLES, 40 * sum(map(len, self.shared.values())))

    def shared_tasks(self, rows: Sequence[Setting]) -> tuple[Task, ...]:
        """Tasks on which every row has a score."""
        tasks = self.chosen.group.tasks
        return tuple(task for task in tasks if all(self.sample(row, task) for row in rows))

    def runs(self, row: Setting, task: Task) -> dict[int, RunRecord]:
        """Scored runs of a row, by seed."""
        runs = self.chosen.group.rows[row].get(task.name, ())
        return {run.seed: run for run in runs if task.score(run.metrics) is not None}

    def sample(self, row: Setting, task: Task) -> Sample:
        """Score of each seed, times 100."""
        found = sample_of(self.runs(row, task).values(), lambda run: task.score(run.metrics))
        return {seed: 100 * value for seed, value in found.items()}

    def measure(self, pair: Rows, task: Task) -> tuple[TaskComparison, Evidence]:
        """Compare two rows on one task."""
        means, seeds = over_seeds(*(self.sample(row, task) for row in pair))
        on_predictions, resamples = self._on_predictions(pair, task)
        comparison = TaskComparison(
            task=task.name,
            title=task.title,
            note=task.note,
            first=self._side(pair[0], task),
            second=self._side(pair[1], task),
            over_seeds=means,
            on_predictions=on_predictions,
        )
        return comparison, Evidence(seeds, resamples)

    def _side(self, row: Setting, task: Task) -> Side:
        sample = self.sample(row, task)
        values = np.array(list(sample.values()))
        bounded = len(values) >= stats.LEAST_SEEDS and not stats.is_constant(values)
        draws = stream(task.name, row.label)
        return Side(
            label=row.label,
            seeds=tuple(sorted(sample)),
            mean=mean_of(sample),
            sd=sd_of(sample),
            t_interval=stats.t_interval(values) if bounded else None,
            bootstrap_interval=stats.bootstrap_interval(values, seed=draws) if bounded else None,
            marks=marks_of(list(self.runs(row, task).values())),
        )

    def _on_predictions(self, pair: Rows, task: Task) -> tuple[OnPredictions, Resamples | None]:
        """Resample the dev set under as many models of each, those of common seeds first."""
        sides = [self.runs(row, task) for row in pair]
        common = sides[0].keys() & sides[1].keys()
        picked = [
            [runs[s] for s in sorted(runs, key=lambda s: (s not in common, s))] for runs in sides
        ]
        usable, missing = self._usable(list(zip(*picked, strict=False)), task)
        if not usable:
            return OnPredictions(pairs=0, missing=missing), None
        sign = 1 if pair[0].label <= pair[1].label else -1
        parts = [
            stats.resample_predictions(
                usable[0][1][0].labels[split],
                _stacked([models for _, models in usable], split, sign),
                task.metrics,
                seed=stream(task.name, split, *sorted(row.label for row in pair)),
                resamples=self.resamples,
            )
            for split in task.dev_splits
        ]
        together = stats.mean_resamples(parts)
        resamples = replace(
            together, observed=sign * together.observed, bootstrap=sign * together.bootstrap
        )
        mcnemar = _mcnemar(usable, task)
        return describe_predictions(resamples, len(usable), mcnemar, missing), resamples

    def _usable(
        self, pairs: Sequence[RunPair], task: Task
    ) -> tuple[list[tuple[RunPair, Models]], tuple[str, ...]]:
        usable: list[tuple[RunPair, Models]] = []
        missing: dict[str, None] = {}
        for pair in pairs:
            found = [self._predictions(run, task) for run in pair]
            models = [item for item in found if isinstance(item, Predictions)]
            missing |= {
                f"{run.run_id}: {why}": None
                for run, why in zip(pair, found, strict=True)
                if isinstance(why, str)
            }
            if len(models) == 2 and not all(
                _same_labels(m, usable[0][1][0] if usable else models[0]) for m in models
            ):
                missing[f"{pair[0].run_id}: its dev labels are not those of the other runs"] = None
            elif len(models) == 2:
                usable.append((pair, (models[0], models[1])))
        return usable, tuple(missing)

    def _predictions(self, run: RunRecord, task: Task) -> Predictions | str:
        if run.run_id not in self._read:
            try:
                self._read[run.run_id] = read_predictions(self._store.runs, run, task)
            except UnusablePredictionsError as error:
                self._read[run.run_id] = str(error)
        return self._read[run.run_id]


def describe_predictions(
    resamples: Resamples, pairs: int, mcnemar: tuple[SeedPair, ...], missing: tuple[str, ...]
) -> OnPredictions:
    """Write resampled differences in points."""
    interval = stats.percentile_interval(resamples)
    return OnPredictions(
        pairs=pairs,
        difference=100 * resamples.observed,
        interval=Interval(100 * interval.low, 100 * interval.high),
        mcnemar=mcnemar,
        missing=missing,
    )


def _mcnemar(usable: Sequence[tuple[RunPair, Models]], task: Task) -> tuple[SeedPair, ...]:
    """Test the accuracy of each pair of models; a family of their own."""
    if "accuracy" not in task.metrics:
        return ()
    found = {}
    for pair, models in usable:
        right = [
            np.concatenate([m.predictions[s] == m.labels[s] for s in task.dev_splits])
            for m in models
        ]
        found[pair[0].run_id, pair[1].run_id] = stats.mcnemar(right[0], right[1])
    tested = family({key: test for key, (_, _, test) in found.items()}, "differing examples")
    return tuple(
        SeedPair(runs=key, only_first=b, only_second=c, tested=tested[key])
        for key, (b, c, _) in found.items()
    )


def _same_labels(left: Predictions, right: Predictions) -> bool:
    return all(np.array_equal(left.labels[s], right.labels[s]) for s in left.labels)


def _stacked(models: Sequence[Models], split: str, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Stack the models of each method (num_models, n), in an order that naming does not change."""
    first, second = (np.stack([pair[i].predictions[split] for pair in models]) for i in (0, 1))
    return (first, second) if sign > 0 else (second, first)


def stream(*names: str) -> int:
    """Seed of what is called so: adding another method or task does not change it."""
    return zlib.crc32("|".join((str(SEED), *names)).encode())

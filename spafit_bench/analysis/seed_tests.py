"""Means over training runs: how far apart, which test, and its place among the others."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from spafit_bench.analysis import stats
from spafit_bench.analysis.stats import Interval, Significance

ALPHA = 0.05
"""Rate of false alarms in each family of tests."""

Unit = Literal["seeds", "differing examples", "tasks"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A test within its family, or why there is none."""

    test: str = ""
    n: int = 0
    unit: Unit = "seeds"
    p: float | None = None
    """None where the sample could not have reached significance."""
    holm: float | None = None
    """Adjusted for the tests of the family."""
    separable: bool | None = None
    needs: int | None = None
    """How many of the unit would allow a test, where there is none; None where no number would."""


UNTESTED = Tested()


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """A difference between means over training runs."""

    paired: bool
    seeds: tuple[int, ...]
    """The pairs; empty where the runs are not paired."""
    difference: float
    """First minus second, in points (score times 100)."""
    interval: Interval | None
    effect: tuple[float, Interval] | None
    """Hedges' g of the paired differences."""
    ahead: int
    """Pairs in which the first is ahead."""
    tested: Tested = UNTESTED


def over_seeds(
    first: Mapping[int, float], second: Mapping[int, float]
) -> tuple[OverSeeds, Significance | None]:
    """Compare means over runs: paired where the seeds are the same, else Welch's test on all.

    So the difference that is tested is always that of the two means.

    Args:
        first: seed -> points.
        second: likewise.
    """
    if first.keys() == second.keys():
        seeds = tuple(sorted(first))
        d = np.array([first[seed] - second[seed] for seed in seeds])
        testable = len(d) >= stats.LEAST_SEEDS and not stats.is_constant(d)
        paired = OverSeeds(
            paired=True,
            seeds=seeds,
            difference=float(d.mean()),
            interval=stats.t_interval(d) if testable else None,
            effect=stats.hedges_g(d),
            ahead=int(np.sum(d > 0)),
        )
        return paired, stats.paired_t(d)
    a, b = np.array(list(first.values())), np.array(list(second.values()))
    difference = float(a.mean() - b.mean())
    unpaired = OverSeeds(
        paired=False, seeds=(), difference=difference, interval=None, effect=None, ahead=0
    )
    n = min(len(a), len(b))
    if n < stats.LEAST_SEEDS or (stats.is_constant(a) and stats.is_constant(b)):
        return unpaired, Significance("Welch t", n, 1.0, 1.0)
    significance, interval = stats.welch(a, b)
    return replace(unpaired, interval=interval), significance


def average_by_seed(samples: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Average tasks seed by seed, over the seeds that all have.

    Args:
        samples: of each task, seed -> points; one or more.
    """
    shared = set.intersection(*(set(sample) for sample in samples))
    return {seed: statistics.fmean(s[seed] for s in samples) for seed in sorted(shared)}


def family(evidence: Mapping[Key, Significance | None], unit: Unit) -> dict[Key, Tested]:
    """Give each test its place in a family: shown if it could be significant, and Holm-adjusted.

    Whether it could is decided by the smallest p-values of the family alone, never by p-values.
    """
    hopeful = {key: test.floor for key, test in evidence.items() if test and test.floor <= ALPHA}
    lowest = dict(zip(hopeful, stats.holm(list(hopeful.values())), strict=True))
    shown = {
        key: test.p for key, test in evidence.items() if test and lowest.get(key, 1.0) <= ALPHA
    }
    adjusted = dict(zip(shown, stats.holm(list(shown.values())), strict=True))
    return {
        key: Tested(
            test=test.test if test else "",
            n=test.n if test else 0,
            unit=unit,
            p=shown.get(key),
            holm=adjusted.get(key),
            separable=adjusted[key] <= ALPHA if key in shown else None,
            needs=None if key in shown else _needed(test, len(evidence)),
        )
        for key, test in evidence.items()
    }


def _needed(test: Significance | None, num_tests: int) -> int | None:
    """Say how large a sample would be tested: even as the first of its family, for sign flips.

    None for seeds that have no spread: more of the same would not do.
    """
    if test is None or (test.test.endswith(" t") and test.n < stats.LEAST_SEEDS):
        return stats.LEAST_SEEDS
    if test.test.endswith(" t") or (test.test == "sign flips" and not test.n):
        return None
    return stats.least_n(ALPHA / num_tests)

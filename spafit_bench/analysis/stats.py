"""Statistics: intervals, paired tests, families of tests, resampled predictions, ranks over tasks.

Every test returns the smallest p-value (`floor`) that its sample could have given, so that a caller
can tell "no difference found" from "no difference could have been found".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
from scipy import special
from scipy import stats as scipy_stats
from scipy.optimize import brentq

from spafit_bench.data.metrics import METRICS

ALPHA = 0.05
"""Rate of false alarms in each family of tests."""
LEAST_SEEDS = 3
"""Fewest seeds of a t test. Two would do for the formula, but leave one degree of freedom: the
interval is 9 standard deviations to each side (2.5 for three), and two numbers cannot contradict
the normal distribution that the test rests on."""
RESAMPLES = 1999
"""Draws of a bootstrap or randomisation: a p-value near 0.05 is then good to 0.01 (2 sd)."""
_CHUNK = 100_000  # weights held at once: few enough for a processor's cache
_MOST_EXACT = 14  # sign patterns are enumerated up to 2^14, and drawn beyond
_TINY = 1e-12

Unit = Literal["seeds", "differing examples", "tasks"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of the estimate."""

    low: float
    high: float


@dataclass(frozen=True)
class Significance:
    """A two-sided test."""

    test: str
    n: int
    """What the sample size counts: seeds, tasks or examples that differ."""
    p: float
    floor: float
    """Smallest p-value that a sample of this size could have given."""


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
    alpha: float | None = None
    """Level of the step of Holm's procedure that decides it: separable is p <= alpha."""
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
    """95 %, as if it were the only one."""
    effect: tuple[float, Interval] | None
    """Hedges' g of the paired differences."""
    ahead: int
    """Pairs in which the first is ahead."""
    tested: Tested = UNTESTED
    corrected_interval: Interval | None = None
    """At the level at which the difference was tested in its family, which `tested.alpha` is."""

    @property
    def shown_interval(self) -> Interval | None:
        """The corrected interval, or that of 95 % where nothing was tested."""
        return self.corrected_interval or self.interval


@dataclass(frozen=True)
class Friedman:
    """Methods ranked on each task, rank 1 the best."""

    mean_ranks: tuple[float, ...]
    chi_square: float
    significance: Significance


@dataclass(frozen=True)
class Resamples:
    """What resampling the examples makes of a difference between two methods' scores."""

    observed: float
    bootstrap: np.ndarray
    """(resamples,) differences on examples drawn with replacement."""
    null: np.ndarray
    """(resamples,) differences after swapping the methods on a random half of the examples."""
    num_differing: int
    """Examples that a swap changes."""


def _standard_error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def t_interval(values: np.ndarray, alpha: float = ALPHA) -> Interval:
    """Student's interval for a mean of two or more: mean +- t(n-1) * sd / sqrt(n) (1908)."""
    half = scipy_stats.t.ppf(1 - alpha / 2, len(values) - 1) * _standard_error(values)
    return Interval(float(np.mean(values) - half), float(np.mean(values) + half))


def bootstrap_interval(values: np.ndarray, *, seed: int) -> Interval | None:
    """Expanded 95 % percentile bootstrap interval for a mean (Efron 1979; Hesterberg 2015).

    Plain percentiles are too narrow for few values, by sqrt((n - 1) / n) and by normal instead of
    t quantiles; a tail of Phi(-sqrt(n / (n - 1)) * t(n-1)) mends both (arXiv:1411.5279).
    None where even the range of the values, which no bootstrap leaves, would cover the
    centre of a symmetric distribution too rarely: 1 - 2 / 2^n is 95 % from six values.
    """
    n = len(values)
    if n < least_n(0.05):
        return None
    tail = float(scipy_stats.norm.cdf(math.sqrt(n / (n - 1)) * scipy_stats.t.ppf(0.025, n - 1)))
    draws = np.random.default_rng(seed).integers(0, n, size=(4 * RESAMPLES, n))
    low, high = np.quantile(np.asarray(values)[draws].mean(axis=1), [tail, 1 - tail])
    return Interval(float(low), float(high))


def is_constant(values: np.ndarray) -> bool:
    """Whether values agree up to rounding, so that they have no spread to test against."""
    return float(np.ptp(values)) <= 1e-9 * max(1.0, float(np.max(np.abs(values))))


def paired_t(differences: np.ndarray) -> Significance:
    """Student's paired t test: t(n-1) = mean / (sd / sqrt(n)).

    Differences that are all the same have no spread; then `sign_flip` is used, which needs none.
    """
    n = len(differences)
    if n < LEAST_SEEDS:
        return Significance("paired t", n, 1.0, 1.0)
    if is_constant(differences):
        return sign_flip(differences)
    t = np.mean(differences) / _standard_error(differences)
    return Significance("paired t", n, float(2 * scipy_stats.t.sf(abs(t), n - 1)), 0.0)


def welch(
    first: np.ndarray, second: np.ndarray, alpha: float = ALPHA
) -> tuple[Significance, Interval]:
    """Welch's t test and interval for two means (1947), each of two values or more."""
    left, right = _standard_error(first) ** 2, _standard_error(second) ** 2
    df = (left + right) ** 2 / (left**2 / (len(first) - 1) + right**2 / (len(second) - 1))
    difference, error = float(np.mean(first) - np.mean(second)), math.sqrt(left + right)
    half = float(scipy_stats.t.ppf(1 - alpha / 2, df)) * error
    p, n = float(2 * scipy_stats.t.sf(abs(difference) / error, df)), min(len(first), len(second))
    significance = Significance("Welch t", n, p, 0.0 if n >= LEAST_SEEDS else 1.0)
    return significance, Interval(difference - half, difference + half)


def sign_flip(differences: np.ndarray, *, test: str = "sign flips", seed: int = 0) -> Significance:
    """Exact test of a mean of zero: p is the share of the 2^n sign patterns at least as extreme.

    Assumes that each difference is as likely as its negative (Fisher 1935, section 21). Zeros say
    nothing; k others cannot give less than 2 / 2^k. Beyond 2^14 patterns, a random sample of them.
    """
    kept = np.asarray(differences, dtype=np.float64)
    kept = kept[np.abs(kept) > 1e-9]
    n = len(kept)
    least = abs(kept.sum()) * (1 - 1e-9)
    if n <= _MOST_EXACT:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        p = float(np.mean(np.abs(signs @ kept) >= least))
        return Significance(test, n, p, smallest_p(n))
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(4 * RESAMPLES, n))
    p, floor = _monte_carlo(np.abs(signs @ kept) >= least)
    return Significance(test, n, p, max(smallest_p(n), floor))


def _monte_carlo(extreme: np.ndarray) -> tuple[float, float]:
    """P-value (r + 1) / (R + 1) of R draws with r extreme, and the least there can be.

    Never zero, which no sample of draws can show (Phipson and Smyth 2010).
    """
    draws = len(extreme) + 1
    return (int(np.sum(extreme)) + 1) / draws, 1 / draws


def wilcoxon(differences: np.ndarray) -> Significance:
    """Wilcoxon's signed-rank test, exact, zeros as in Pratt 1959; over tasks as in Demsar 2006.

    Ranks of |difference| (ties share their mean rank, zeros are ranked and then dropped) take the
    signs of the differences; p follows from flipping those signs. Differences within 1e-9 are tied.
    """
    rounded = np.round(differences, 9)
    ranks = scipy_stats.rankdata(np.abs(rounded)) * np.sign(rounded)
    return sign_flip(ranks, test="Wilcoxon")


def smallest_p(n: int) -> float:
    """Smallest two-sided p-value from flipping the signs of n differences: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - n))


def least_n(level: float) -> int:
    """Fewest differences with which flipping signs can reach `level`: six for 0.05."""
    return math.ceil(1 - math.log2(level) - 1e-9)


def hedges_g(differences: np.ndarray) -> tuple[float, Interval] | None:
    """Effect size of paired differences, mean / sd less its small-sample bias, and interval.

    g = J * mean / sd, J = Gamma(m / 2) / (sqrt(m / 2) * Gamma((m - 1) / 2)), m = n - 1 (Hedges
    1981). The interval inverts the noncentral t distribution of sqrt(n) * mean / sd (Steiger and
    Fouladi 1997). None for fewer than three differences or without spread.
    """
    n = len(differences)
    if n < LEAST_SEEDS or is_constant(differences):
        return None
    df, root = n - 1, math.sqrt(n)
    t = float(np.mean(differences)) / _standard_error(differences)
    j = math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2)

    def excess(noncentrality: float, tail: float) -> float:
        cdf = scipy_stats.nct.cdf(abs(t), df, noncentrality)
        return (float(cdf) if np.isfinite(cdf) else float(noncentrality < abs(t))) - tail

    reach = 10 + 5 * abs(t)
    ends = [brentq(excess, abs(t) - reach, abs(t) + reach, args=(q,)) for q in (0.975, 0.025)]
    low, high = sorted(math.copysign(1, t) * float(end) / root for end in ends)
    return j * t / root, Interval(low, high)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, Significance]:
    """McNemar's test (1947) of two classifiers on the same examples, exact for any number.

    Of k examples that only one has right, the first has Binomial(k, 1/2), which the usual
    chi-square approximates. `first` and `second` (n,) say whether each is right. Returns the number
    that the first alone and the second alone has right, and the test.
    """
    b, c = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p = float(scipy_stats.binomtest(b, b + c).pvalue) if b + c else 1.0
    return b, c, Significance("McNemar", b + c, p, smallest_p(b + c))


def over_seeds(
    first: Mapping[int, float], second: Mapping[int, float], alpha: float = ALPHA
) -> tuple[OverSeeds, Significance | None]:
    """Compare means over runs: paired where the seeds are the same, else Welch's test on all.

    So the difference that is tested is always that of the two means.

    Args:
        first: seed -> points.
        second: likewise.
        alpha: share of such intervals that miss the difference.
    """
    if first.keys() == second.keys():
        seeds = tuple(sorted(first))
        d = np.array([first[seed] - second[seed] for seed in seeds])
        testable = len(d) >= LEAST_SEEDS and not is_constant(d)
        paired = OverSeeds(
            paired=True,
            seeds=seeds,
            difference=float(d.mean()),
            interval=t_interval(d, alpha) if testable else None,
            effect=hedges_g(d),
            ahead=int(np.sum(d > 0)),
        )
        return paired, paired_t(d)
    a, b = np.array(list(first.values())), np.array(list(second.values()))
    unpaired = unpaired_difference(float(a.mean() - b.mean()))
    n = min(len(a), len(b))
    if n < LEAST_SEEDS or (is_constant(a) and is_constant(b)):
        return unpaired, Significance("Welch t", n, 1.0, 1.0)
    significance, interval = welch(a, b, alpha)
    return replace(unpaired, interval=interval), significance


def unpaired_difference(difference: float) -> OverSeeds:
    """Return a difference, in points, that has no pairs and no interval."""
    return OverSeeds(
        paired=False, seeds=(), difference=difference, interval=None, effect=None, ahead=0
    )


def average_by_seed(samples: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Average tasks seed by seed, over the seeds that all have.

    Args:
        samples: of each task, seed -> points; one or more.
    """
    shared = set.intersection(*(set(sample) for sample in samples))
    return {seed: statistics.fmean(s[seed] for s in samples) for seed in sorted(shared)}


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number: max over j <= i of (m - j + 1) * p(j) (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = len(order) - np.arange(len(order))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    return [float(p) for p in adjusted]


def family(evidence: Mapping[Key, Significance | None], unit: Unit) -> dict[Key, Tested]:
    """Give each test its place in a family: shown if it could be significant, and Holm-adjusted.

    Whether it could is decided by the smallest p-values of the family alone, never by p-values.
    """
    hopeful = {key: test.floor for key, test in evidence.items() if test and test.floor <= ALPHA}
    lowest = dict(zip(hopeful, holm(list(hopeful.values())), strict=True))
    shown = {
        key: test.p for key, test in evidence.items() if test and lowest.get(key, 1.0) <= ALPHA
    }
    adjusted = dict(zip(shown, holm(list(shown.values())), strict=True))
    # Holm tests at alpha / m, alpha / (m - 1), ... and stops at the first that is not separable
    ordered = sorted(shown, key=lambda key: shown[key])
    passed = sum(value <= ALPHA for value in adjusted.values())
    levels = {key: ALPHA / (len(shown) - min(at, passed)) for at, key in enumerate(ordered)}
    return {
        key: Tested(
            test=test.test if test else "",
            n=test.n if test else 0,
            unit=unit,
            p=shown.get(key),
            holm=adjusted.get(key),
            separable=adjusted[key] <= ALPHA if key in shown else None,
            alpha=levels.get(key),
            needs=None if key in shown else _needed(test, len(evidence)),
        )
        for key, test in evidence.items()
    }


def _needed(test: Significance | None, num_tests: int) -> int | None:
    """Say how large a sample would be tested: even as the first of its family, for sign flips.

    None for seeds that have no spread: more of the same would not do.
    """
    if test is None or (test.test.endswith(" t") and test.n < LEAST_SEEDS):
        return LEAST_SEEDS
    if test.test.endswith(" t") or (test.test == "sign flips" and not test.n):
        return None
    return least_n(ALPHA / num_tests)


def friedman(scores: np.ndarray, *, seed: int) -> Friedman:
    """Friedman's test (1937) that methods rank alike, as Demsar 2006 advises for data sets.

    The statistic has the usual correction for ties. The p-value is that of ranks shuffled within
    each task, since chi-square is poor for few tasks; it cannot be below 1 / (k!)^(m - 1).
    `scores` (m, k) are higher for better methods; `seed` is that of the shuffles.
    """
    m, k = scores.shape
    ranks = scipy_stats.rankdata(-np.round(scores, 9), axis=1)
    spread = float(np.sum((ranks - (k + 1) / 2) ** 2))

    def chi_square(ranked: np.ndarray) -> np.ndarray:
        sums = (ranked - (k + 1) / 2).sum(axis=-2)
        return (k - 1) * (sums**2).sum(axis=-1) / max(spread, _TINY)

    observed = float(chi_square(ranks))
    everywhere = np.broadcast_to(ranks, (4 * RESAMPLES, m, k))
    shuffled = chi_square(np.random.default_rng(seed).permuted(everywhere, axis=2))
    p, least = _monte_carlo(shuffled >= observed - 1e-9)
    floor = max(math.factorial(k) ** (1.0 - m), least)
    significance = Significance("Friedman", m, p, floor)
    return Friedman(tuple(ranks.mean(axis=0).tolist()), observed, significance)


def critical_difference(num_methods: int, num_tasks: int, alpha: float) -> float:
    """Nemenyi's least significant difference of mean ranks: q * sqrt(k (k + 1) / (6 m)).

    q is the studentized range for k methods and infinite degrees of freedom over sqrt(2) (Nemenyi
    1963; Demsar 2006, section 3.2.2).
    """
    q = float(scipy_stats.studentized_range.ppf(1 - alpha, num_methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(num_methods * (num_methods + 1) / (6 * num_tasks))


def cliques(mean_ranks: Sequence[float], difference: float) -> tuple[tuple[int, ...], ...]:
    """Find the bars of a critical-difference diagram: largest sets of methods not told apart.

    Each is a tuple of two or more positions in `mean_ranks`, best first.
    """
    order = sorted(range(len(mean_ranks)), key=lambda i: mean_ranks[i])
    runs = [
        tuple(j for j in order[at:] if mean_ranks[j] - mean_ranks[i] <= difference)
        for at, i in enumerate(order)
    ]
    new = [runs[0], *(run for last, run in pairwise(runs) if run[-1] != last[-1])]
    return tuple(run for run in new if len(run) > 1)


def resample_predictions(
    labels: np.ndarray,
    models: tuple[np.ndarray, np.ndarray],
    metrics: Sequence[str],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Resamples:
    """Resample the examples of a dev set under two methods' trained models.

    A method's score is the mean of `metrics` over its models. All models see the same resample, so
    that their common examples are not counted as independent evidence. The interval comes from the
    paired bootstrap (Efron and Tibshirani 1993; Berg-Kirkpatrick et al. 2012), the
    p-value from approximate randomisation (Noreen 1989; Yeh 2000, arXiv:cs/0008005): swapping the
    methods on random examples, which for the accuracy of one pair of models is McNemar's test.

    Args:
        labels: (n,).
        models: predictions (num_models, n) of the first method, and as many of the second.
        metrics: names in `METRICS`.
        seed: of the draws.
        resamples: number of draws.
    """
    first, second = models
    if tuple(metrics) == ("accuracy",):  # the number of models that are right says it all
        first, second = np.sort(first == labels, axis=0), np.sort(second == labels, axis=0)
        labels = np.ones(len(labels))
    s = len(first)
    rows, counts = np.unique(np.vstack([labels, first, second]).T, axis=0, return_counts=True)
    y, a, b = rows[:, 0], rows[:, 1 : 1 + s].T, rows[:, 1 + s :].T
    twice, ab, ba = np.tile(y, 2), np.hstack([a, b]), np.hstack([b, a])

    def score(weights: np.ndarray, models: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return np.mean([METRICS[name](weights, models, truth) for name in metrics], axis=0)

    rng, n = np.random.default_rng(seed), len(labels)
    bootstrap, null = [], []
    step = max(1, _CHUNK // len(rows))
    for size in (min(step, resamples - at) for at in range(0, resamples, step)):
        drawn = rng.multinomial(n, counts / n, size=size).astype(np.float64)
        bootstrap.append(score(drawn, a, y) - score(drawn, b, y))
        kept = rng.binomial(counts, 0.5, size=(size, len(rows)))
        halves = np.hstack([kept, counts - kept]).astype(np.float64)
        null.append(score(halves, ab, twice) - score(halves, ba, twice))
    all_ = counts[None].astype(np.float64)
    return Resamples(
        observed=float((score(all_, a, y) - score(all_, b, y))[0]),
        bootstrap=np.concatenate(bootstrap),
        null=np.concatenate(null),
        num_differing=int(counts[np.any(a != b, axis=0)].sum()),
    )


def mean_resamples(parts: Sequence[Resamples]) -> Resamples:
    """Average differences over independent dev sets, each resampled by itself."""
    return Resamples(
        observed=float(np.mean([part.observed for part in parts])),
        bootstrap=np.mean([part.bootstrap for part in parts], axis=0),
        null=np.mean([part.null for part in parts], axis=0),
        num_differing=sum(part.num_differing for part in parts),
    )


def randomization(resamples: Resamples) -> Significance:
    """Test a difference by how rarely swapping the methods gives one as large."""
    k = resamples.num_differing
    p, floor = _monte_carlo(np.abs(resamples.null) >= abs(resamples.observed) - _TINY)
    return Significance("randomization", k, p, max(smallest_p(k), floor))


def percentile_interval(resamples: Resamples, alpha: float = ALPHA) -> Interval:
    """Percentile interval of the paired bootstrap."""
    low, high = np.quantile(resamples.bootstrap, [alpha / 2, 1 - alpha / 2])
    return Interval(float(low), float(high))

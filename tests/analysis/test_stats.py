"""Statistics: against scipy, against enumeration, and by simulation where nothing differs."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference
from sklearn import metrics as sklearn_metrics

from spafit_bench.analysis import stats

RNG = np.random.default_rng


def test_t_interval_and_paired_t_agree_with_scipy() -> None:
    """Interval, p-value and their agreement with scipy's paired test."""
    a, b = RNG(0).normal(80, 1, (2, 7))
    expected = reference.ttest_rel(a, b)
    found = stats.paired_t(a - b)
    assert (found.test, found.n, found.floor) == ("paired t", 7, 0.0)
    assert found.p == pytest.approx(expected.pvalue)
    interval = stats.t_interval(a - b)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_welch_agrees_with_scipy() -> None:
    """Unequal variances and sample sizes."""
    a, b = RNG(1).normal(80, 1, 5), RNG(2).normal(81, 3, 8)
    expected = reference.ttest_ind(a, b, equal_var=False)
    found, interval = stats.welch(a, b)
    assert (found.n, found.p) == (5, pytest.approx(expected.pvalue))
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize("n", [1, 2])
def test_t_test_needs_three_seeds(n: int) -> None:
    """Fewer seeds give a floor of one: no such test is to be shown."""
    assert stats.paired_t(np.array([1.0, 3.0])[:n]).floor == 1.0


def test_equal_differences_are_tested_by_their_signs() -> None:
    """Differences without spread would give t infinite and p zero; signs give 2 / 2^n."""
    found = stats.paired_t(np.full(4, 1.41) + np.array([0, 1e-15, 0, -1e-15]))
    assert (found.test, found.p, found.floor) == ("sign flips", 0.125, 0.125)
    assert stats.paired_t(np.zeros(4)).p == 1.0


@pytest.mark.parametrize("n", [3, 6, 9])
def test_sign_flip_agrees_with_scipys_exact_permutation_test(n: int) -> None:
    """Enumerated by hand and by scipy."""
    d = RNG(n).normal(0.5, 1, n)
    expected = reference.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    found = stats.sign_flip(d)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.floor == 2 / 2**n


def test_sign_flip_draws_beyond_enumeration() -> None:
    """For many values, the sampled p-value is near the normal one and never zero."""
    d = RNG(3).normal(0.3, 1, 60)
    assert stats.sign_flip(d).p == pytest.approx(reference.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert stats.sign_flip(d + 5).p == stats.sign_flip(d + 5).floor > 0


@pytest.mark.parametrize("n", [5, 8, 9])
def test_wilcoxon_agrees_with_scipys_exact_test(n: int) -> None:
    """Without ties or zeros, scipy has the exact distribution."""
    d = RNG(n).normal(0.4, 1, n)
    assert stats.wilcoxon(d).p == pytest.approx(reference.wilcoxon(d, method="exact").pvalue)


def test_wilcoxon_with_ties_and_zeros_agrees_with_enumeration() -> None:
    """Pratt's ranks, every sign pattern counted one by one; rounding noise does not break ties."""
    d = np.array([0.0, 0.5, -0.5, 1.5, 2.0, 2.0 + 1e-13, 3.0])
    ranks = np.array([2.5, -2.5, 4, 5.5, 5.5, 7])
    sums = [
        abs(sum(s * abs(r) for s, r in zip(signs, ranks, strict=True)))
        for signs in itertools.product((-1, 1), repeat=6)
    ]
    found = stats.wilcoxon(d)
    assert found.p == np.mean(np.array(sums) >= abs(ranks.sum()))
    assert (found.n, found.floor) == (6, 2 / 2**6)


def test_least_n_is_the_first_to_reach_a_level() -> None:
    """Six pairs reach 0.05, eight reach a sixth of it."""
    assert [stats.least_n(level) for level in (0.05, 0.05 / 6, 0.125)] == [6, 8, 4]
    for level in (0.05, 0.01, 0.002):
        n = stats.least_n(level)
        assert stats.smallest_p(n) <= level < stats.smallest_p(n - 1)


def test_bootstrap_interval_agrees_with_scipy() -> None:
    """The expanded percentile level, applied by scipy's bootstrap, gives the same interval."""
    values = RNG(5).gamma(2, 1, 12)
    tail = reference.norm.cdf(math.sqrt(12 / 11) * reference.t.ppf(0.025, 11))
    expected = reference.bootstrap(
        (values,),
        np.mean,
        confidence_level=1 - 2 * tail,
        method="percentile",
        n_resamples=20_000,
        rng=RNG(0),
    ).confidence_interval
    found = stats.bootstrap_interval(values, seed=0)
    assert found is not None
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.05 * width)
    assert found == stats.bootstrap_interval(values, seed=0)
    assert stats.bootstrap_interval(values[:5], seed=0) is None


def test_bootstrap_interval_covers_the_mean_at_its_rate() -> None:
    """Eight normal values: plain percentiles cover 90 %, the expanded ones 95 %."""
    covered = 0
    for trial in range(400):
        found = stats.bootstrap_interval(RNG(trial).normal(0, 1, 8), seed=trial)
        assert found is not None
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_hedges_g_and_its_interval_cover_the_effect() -> None:
    """Over samples of six with effect 1: the mean of g is 1 and 95 % of the intervals hold it."""
    found = [stats.hedges_g(RNG(trial).normal(1, 1, 6)) for trial in range(500)]
    known = [one for one in found if one is not None]
    assert len(known) == 500
    assert np.mean([g for g, _ in known]) == pytest.approx(1, abs=0.08)
    assert 0.925 <= np.mean([i.low <= 1 <= i.high for _, i in known]) <= 0.975
    assert stats.hedges_g(np.ones(5)) is None
    assert stats.hedges_g(np.array([1.0, 2.0])) is None


def test_mcnemar_agrees_with_the_sum_of_binomial_terms() -> None:
    """Nine examples against two: twice the tail of Binomial(11, 1/2)."""
    first = np.array([True] * 9 + [False] * 2 + [True] * 30)
    second = np.array([False] * 9 + [True] * 2 + [True] * 30)
    b, c, found = stats.mcnemar(first, second)
    assert (b, c, found.n) == (9, 2, 11)
    assert found.p == pytest.approx(2 * sum(math.comb(11, i) for i in range(3)) / 2**11)
    assert stats.mcnemar(first, first)[2].p == 1.0
    assert stats.mcnemar(first[:5], second[:5])[2].floor == 2 / 2**5


def test_holm_on_a_worked_example() -> None:
    """Step-down factors, monotone, in the order given."""
    assert stats.holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert stats.holm([]) == []


def test_friedman_agrees_with_scipy() -> None:
    """Statistic with ties; with many tasks the shuffled p-value is near chi-square's."""
    scores = np.round(RNG(0).normal(0, 1, (40, 4)) + np.array([0.0, 0.15, 0.3, 0.45]), 1)
    expected = reference.friedmanchisquare(*scores.T)
    found = stats.friedman(scores, seed=0)
    assert found.chi_square == pytest.approx(expected.statistic)
    assert found.significance.p == pytest.approx(expected.pvalue, abs=0.01)
    ranks = reference.rankdata(-scores, axis=1).mean(axis=0)
    assert found.mean_ranks == pytest.approx(tuple(ranks))


def test_friedman_is_exact_for_few_tasks() -> None:
    """Three methods on three tasks in one order: p is 1 / 36, which is also the floor."""
    found = stats.friedman(np.tile([3.0, 2.0, 1.0], (3, 1)), seed=0).significance
    assert found.p == pytest.approx(1 / 36, abs=0.006)
    assert found.floor == pytest.approx(1 / 36)
    assert stats.friedman(np.ones((4, 3)), seed=0).significance.p == 1.0


def test_critical_difference_matches_published_constants() -> None:
    """Demsar 2006, table 5: q(0.05) is 2.343 for 3 methods, 2.569 for 4, 3.164 for 10."""
    for k, q in ((3, 2.343), (4, 2.569), (10, 3.164)):
        expected = q * math.sqrt(k * (k + 1) / (6 * 14))
        assert stats.critical_difference(k, 14, 0.05) == pytest.approx(expected, rel=5e-4)


def test_cliques_are_the_largest_sets_within_the_difference() -> None:
    """Bars that lie within another are left out; a method alone has none."""
    assert stats.cliques([1.0, 3.0, 2.0, 6.0], 1.5) == ((0, 2), (2, 1))
    assert stats.cliques([1.0, 2.0, 3.0], 5) == ((0, 1, 2),)
    assert stats.cliques([1.0, 9.0], 2) == ()


@pytest.mark.parametrize("metric", list(stats.METRICS))
def test_weighted_metrics_agree_with_metrics_of_repeated_examples(metric: str) -> None:
    """Counting an example w times is the same as repeating it, by scikit-learn and scipy."""
    rng = RNG(0)
    numeric = metric in {"pearson", "spearman"}
    classes = 4 if metric == "f1_macro" else 2
    drawn = rng.integers(0, classes, (3, 40)).astype(float)
    labels = np.round(rng.uniform(0, 5, 40), 0) if numeric else drawn[0]
    models = np.where(rng.random((2, 40)) < 0.7, labels, drawn[1:])
    models = np.round(models + rng.normal(0, 1, (2, 40)), 1) if numeric else models
    weights = rng.integers(0, 4, (3, 40)).astype(float)
    functions = {
        "accuracy": sklearn_metrics.accuracy_score,
        "f1": sklearn_metrics.f1_score,
        "f1_macro": lambda y, x: sklearn_metrics.f1_score(y, x, average="macro"),
        "matthews_correlation": sklearn_metrics.matthews_corrcoef,
        "pearson": lambda y, x: reference.pearsonr(x, y)[0],
        "spearman": lambda y, x: reference.spearmanr(x, y)[0],
    }
    expected = [
        np.mean(
            [
                functions[metric](np.repeat(labels, w.astype(int)), np.repeat(m, w.astype(int)))
                for m in models
            ]
        )
        for w in weights
    ]
    assert stats.METRICS[metric](weights, models, labels) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("metric", ["f1", "matthews_correlation", "pearson", "spearman"])
def test_constant_predictions_score_zero(metric: str) -> None:
    """A collapsed model has correlation or F1 of zero in every resample, never NaN."""
    labels = np.array([0.0, 1.0, 1.0, 0.0])
    found = stats.METRICS[metric](np.ones((2, 4)), np.zeros((1, 4)), labels)
    assert found.tolist() == [0.0, 0.0]


def _classifiers(rng: np.random.Generator, n: int, models: int, rates: tuple[float, float]):
    """Binary labels, and models of two methods that are right at given rates."""
    labels = (rng.random(n) < 0.6).astype(float)
    easy = rng.random(n)
    right = [(easy + rng.normal(0, 0.15, (models, n))) < rate for rate in rates]
    return labels, tuple(np.where(r, labels, 1 - labels) for r in right)


def test_randomisation_of_one_pairs_accuracy_is_mcnemar() -> None:
    """Swapping two classifiers' answers is McNemar's exact test, up to the draws."""
    labels, (a, b) = _classifiers(RNG(4), 300, 1, (0.8, 0.75))
    found = stats.randomization(
        stats.resample_predictions(labels, (a, b), ("accuracy",), seed=0, resamples=20_000)
    )
    _, _, exact = stats.mcnemar(a[0] == labels, b[0] == labels)
    assert found.p == pytest.approx(exact.p, abs=0.01)
    assert found.n == exact.n


@pytest.mark.parametrize("metrics", [("f1",), ("matthews_correlation",), ("pearson", "spearman")])
def test_paired_bootstrap_agrees_with_scipy(metrics: tuple[str, ...]) -> None:
    """The percentile interval of a difference of means over models, against scipy.stats."""
    labels, (a, b) = _classifiers(RNG(7), 150, 2, (0.85, 0.7))
    if metrics[0] == "pearson":
        a, b = a + RNG(1).normal(0, 0.5, a.shape), b + RNG(2).normal(0, 0.6, b.shape)

    def statistic(y: np.ndarray, *models: np.ndarray) -> float:
        one = np.ones((1, len(y)))
        scores = [
            np.mean([stats.METRICS[m](one, side, y) for m in metrics])
            for side in (np.array(models[:2]), np.array(models[2:]))
        ]
        return float(scores[0] - scores[1])

    expected = reference.bootstrap(
        (labels, *a, *b),
        statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1500,
        rng=RNG(0),
    ).confidence_interval
    drawn = stats.resample_predictions(labels, (a, b), metrics, seed=1)
    found = stats.percentile_interval(drawn)
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.1 * width)
    assert drawn.observed == pytest.approx(statistic(labels, *a, *b))


def test_randomisation_agrees_with_brute_force() -> None:
    """F1 of two models on seven examples: all 2^7 swaps, counted one by one."""
    labels = np.array([1, 1, 1, 1, 0, 0, 1.0])
    a, b = np.array([1, 1, 1, 1, 0, 1, 1.0]), np.array([0, 1, 0, 0, 1, 0, 0.0])

    def difference(left: np.ndarray, right: np.ndarray) -> float:
        return sklearn_metrics.f1_score(labels, left) - sklearn_metrics.f1_score(labels, right)

    observed = difference(a, b)
    swaps = [np.array(bits, dtype=bool) for bits in itertools.product((0, 1), repeat=len(labels))]
    extreme = [
        abs(difference(np.where(s, b, a), np.where(s, a, b))) >= observed - 1e-12 for s in swaps
    ]
    found = stats.resample_predictions(labels, (a[None], b[None]), ("f1",), seed=0, resamples=9999)
    assert stats.randomization(found).p == pytest.approx(np.mean(extreme), abs=0.015)
    assert found.num_differing == 6


def test_too_few_differing_examples_cannot_be_significant() -> None:
    """Five examples that differ give no p-value below 2 / 2^5, whatever the dev set's size."""
    labels = np.ones(500)
    a, b = np.ones((1, 500)), np.ones((1, 500))
    b[0, :5] = 0
    found = stats.randomization(stats.resample_predictions(labels, (a, b), ("accuracy",), seed=0))
    assert (found.n, found.floor) == (5, 2 / 2**5)
    assert found.p >= 0.05


def test_models_of_a_method_do_not_count_as_independent_examples() -> None:
    """The same pair of models five times says no more than once."""
    labels, (a, b) = _classifiers(RNG(9), 200, 1, (0.8, 0.74))
    once = stats.resample_predictions(labels, (a, b), ("f1",), seed=0)
    often = stats.resample_predictions(
        labels, (np.repeat(a, 5, axis=0), np.repeat(b, 5, axis=0)), ("f1",), seed=0
    )
    assert stats.randomization(often).p == stats.randomization(once).p
    assert often.bootstrap == pytest.approx(once.bootstrap)


@pytest.mark.parametrize(
    ("n", "examples"), [(3, None), (5, None), (3, 71), (5, 71), (5, 277)], ids=str
)
def test_paired_t_false_alarms(n: int, examples: int | None) -> None:
    """No difference: alarms at 5 % for normal scores, and no more for scores of small dev sets."""
    rng, trials = RNG(11), 1500
    if examples is None:
        d = rng.normal(0, 1, (trials, n))
    else:
        rates = np.clip(rng.normal(0.6, 0.02, (2, trials, n)), 0, 1)
        d = 100 * np.subtract(*rng.binomial(examples, rates)) / examples
    found = [stats.paired_t(row) for row in d]
    rate = np.mean([one.p <= 0.05 and one.floor <= 0.05 for one in found])
    assert rate <= 0.067
    assert examples is not None or rate >= 0.033


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 3)])
def test_welch_false_alarms(n: int, m: int) -> None:
    """No difference of means, threefold spread: alarms at 5 %, and the interval holds 0 in 95 %."""
    rng, trials = RNG(12), 1500
    found = [stats.welch(rng.normal(0, 1, n), rng.normal(0, 3, m)) for _ in range(trials)]
    assert 0.02 <= np.mean([test.p <= 0.05 for test, _ in found]) <= 0.067
    assert np.mean([interval.low <= 0 <= interval.high for _, interval in found]) >= 0.933


def test_wilcoxon_false_alarms() -> None:
    """Exact, so at most 5 % on six, eight or nine tasks, ties and zeros included."""
    rng, trials = RNG(13), 800
    for n in (6, 8, 9):
        found = [stats.wilcoxon(np.round(rng.normal(0, 1, n), 1)) for _ in range(trials)]
        assert 0.02 <= np.mean([test.p <= 0.05 for test in found]) <= 0.07


@pytest.mark.parametrize(
    ("metrics", "models"),
    [
        (("accuracy",), 1),
        (("accuracy",), 3),
        (("f1", "accuracy"), 2),
        (("matthews_correlation",), 1),
    ],
    ids=str,
)
def test_randomisation_false_alarms(metrics: tuple[str, ...], models: int) -> None:
    """Equally good methods on 150 examples: alarms at 5 %, and the interval holds 0 in 95 %."""
    trials, alarms, covered = 400, 0, 0
    for trial in range(trials):
        labels, pair = _classifiers(RNG(trial), 150, models, (0.75, 0.75))
        drawn = stats.resample_predictions(labels, pair, metrics, seed=trial, resamples=299)
        alarms += stats.randomization(drawn).p <= 0.05
        interval = stats.percentile_interval(drawn)
        covered += interval.low <= 0 <= interval.high
    assert 0.015 <= alarms / trials <= 0.08
    assert covered / trials >= 0.915


def test_randomisation_false_alarms_for_correlations() -> None:
    """Two regressions with equal noise on 80 examples."""
    alarms = 0
    for trial in range(200):
        rng = RNG(trial)
        labels = np.round(rng.uniform(0, 5, 80), 1)
        pair = (labels + rng.normal(0, 1, (1, 80)), labels + rng.normal(0, 1, (1, 80)))
        drawn = stats.resample_predictions(
            labels, pair, ("pearson", "spearman"), seed=trial, resamples=199
        )
        alarms += stats.randomization(drawn).p <= 0.05
    assert 0.01 <= alarms / 200 <= 0.095


def test_friedman_and_holm_false_alarms() -> None:
    """Four methods alike on eight tasks; and a family of ten tests, any alarm counted."""
    friedman = [
        stats.friedman(RNG(trial).normal(0, 1, (8, 4)), seed=trial).significance.p <= 0.05
        for trial in range(100)
    ]
    assert 0.01 <= np.mean(friedman) <= 0.11
    family = [
        min(stats.holm([stats.paired_t(d).p for d in RNG(trial).normal(0, 1, (10, 5))])) <= 0.05
        for trial in range(500)
    ]
    assert 0.025 <= np.mean(family) <= 0.08


def test_nemenyi_false_alarms() -> None:
    """Four methods alike on nine tasks: some pair is called different in at most 5 % or so."""
    difference = stats.critical_difference(4, 9, 0.05)
    ranks = reference.rankdata(RNG(0).normal(0, 1, (4000, 9, 4)), axis=2).mean(axis=1)
    assert 0.02 <= np.mean(np.ptp(ranks, axis=1) > difference) <= 0.06

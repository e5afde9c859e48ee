"""The comparison with Trainer and peft: its intervals against scipy, its tables by hand."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY
from scipy import stats

pytest.importorskip("benchmarks", reason="the benchmarks are in the repository, not in the wheel")
from benchmarks.agreement import lines, pairs
from benchmarks.agreement_table import Both, interval, table

OURS, THEIRS = [80.0, 82.0, 81.0], [79.0, 84.0, 80.5]


def test_the_interval_of_two_samples_is_welchs() -> None:
    """As scipy's; a constant pair and a single number have none."""
    expected = stats.ttest_ind(OURS, THEIRS, equal_var=False).confidence_interval()
    assert interval([(1.0, OURS), (-1.0, THEIRS)]) == pytest.approx((expected.low, expected.high))
    assert interval([(1.0, [1.0, 1.0]), (-1.0, [2.0, 2.0])]) is None
    assert interval([(1.0, OURS), (-1.0, [80.0])]) is None


def test_the_interval_of_a_mean_over_tasks() -> None:
    """Four samples of equal variance and size: Student's with all their degrees of freedom."""
    terms = [(w / 2, [x + y for y in (-1.0, 0.0, 1.0)]) for w, x in ((1, 5), (1, 3), (-1, 2))]
    terms.append((-0.5, [0.0, 1.0, 2.0]))
    half = stats.t.ppf(0.975, 8) * (4 * 0.25 / 3) ** 0.5
    assert interval(terms) == pytest.approx((2.5 - half, 2.5 + half))


def test_opposite_differences_do_not_cancel_in_the_tables() -> None:
    """One method too high and another too low: the mean is zero, the methods' rows are not."""
    high = Both([81.0, 81.2], [80.0, 80.2], [0.5, 0.5], [0.5, 0.5])
    low = Both([79.0, 79.2], [80.0, 80.2], [0.5, 0.5], [0.5, 0.5])
    text = table({("mrpc", "full"): high, ("mrpc", "lora"): low})
    assert "Mean difference of 2 cells: +0.00" in text
    assert "| full | mrpc | 81.1 | 80.1 | +1.0 |" in text
    assert "| full - lora | mrpc | +2.0 | +0.0 | +2.0 |" in text


def test_published_repetitions_are_of_published_runs() -> None:
    """Every line repeats a run that is there, with its settings."""
    path = REPOSITORY / "benchmarks" / "results" / "agreement.jsonl"
    if not path.exists():
        pytest.skip("this checkout has no repetitions")
    cells = pairs(REPOSITORY / "results" / "minilm-l6", path)
    assert sum(len(cell.scores) for cell in cells.values()) == len(lines(path)) > 0

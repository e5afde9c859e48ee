"""Test whether repeated runs agree with ours, for each task, method and difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from scipy import stats

Cell = tuple[str, str]
"""Task and method."""
Term = tuple[float, Sequence[float]]
"""A weight and a sample."""
MARGIN = 1.0
"""Points, set before the first run: agreement is an overall interval within this of zero."""


@dataclass
class Both:
    """Scores of one task and method by seed: ours and the repetitions."""

    scores: list[float] = field(default_factory=list)
    """Ours, times 100."""
    their_scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Our mean training losses."""
    their_losses: list[float] = field(default_factory=list)

    @property
    def difference(self) -> float:
        """Our mean score minus theirs."""
        return statistics.fmean(self.scores) - statistics.fmean(self.their_scores)

    def terms(self, weight: float) -> list[Term]:
        """Return the samples and weights of a weighted difference between ours and theirs."""
        return [(weight, self.scores), (-weight, self.their_scores)]


def interval(terms: Sequence[Term]) -> tuple[float, float] | None:
    """Return the 95 % interval of a weighted sum of means of independent samples.

    The degrees of freedom are Satterthwaite's (1946), so a difference of two means gets Welch's
    interval (1947). Returns None if nothing varies or a sample is a single number.
    """
    if any(len(sample) < 2 for _, sample in terms):
        return None
    variances = [w**2 * statistics.variance(sample) / len(sample) for w, sample in terms]
    if not sum(variances):
        return None
    parts = (v**2 / (len(sample) - 1) for v, (_, sample) in zip(variances, terms, strict=True))
    half = float(stats.t.ppf(0.975, sum(variances) ** 2 / sum(parts))) * math.sqrt(sum(variances))
    middle = sum(weight * statistics.fmean(sample) for weight, sample in terms)
    return middle - half, middle + half


def table(cells: Mapping[Cell, Both]) -> str:
    """Return Markdown tables of every task and method, of means and of differences."""
    parts = [_markdown(*_of_cells(cells)), _markdown(*_of_methods(cells)), *_overall(cells)]
    return "\n\n".join(parts) + "\n"


def _of_cells(cells: Mapping[Cell, Both]) -> tuple[list[str], list[list[str]]]:
    head = ["task", "method", "seeds", "ours", "Trainer + peft", "difference", "95 % interval"]
    head += ["our training loss", "theirs"]
    return head, [
        [
            *(task, method, str(len(cell.scores))),
            *(_spread(cell.scores, 1), _spread(cell.their_scores, 1)),
            *_difference(cell.difference, cell.terms(1.0)),
            *(_spread(cell.losses, 3), _spread(cell.their_losses, 3)),
        ]
        for (task, method), cell in cells.items()
    ]


def _of_methods(cells: Mapping[Cell, Both]) -> tuple[list[str], list[list[str]]]:
    """Average each method, and each difference of two methods, over their tasks."""
    tasks: dict[str, list[str]] = {}
    for task, method in cells:
        tasks.setdefault(method, []).append(task)
    rows = [_mean_row(method, [(1.0, method)], found, cells) for method, found in tasks.items()]
    for one, other in combinations(tasks, 2):
        if shared := [task for task in tasks[one] if task in tasks[other]]:
            rows.append(_mean_row(f"{one} - {other}", [(1.0, one), (-1.0, other)], shared, cells))
    return ["mean over tasks", "tasks", "ours", "Trainer + peft", "difference", "95 %"], rows


def _mean_row(
    name: str, parts: Sequence[tuple[float, str]], tasks: Sequence[str], cells: Mapping[Cell, Both]
) -> list[str]:
    weighted = [
        (sign / len(tasks), cells[task, method]) for sign, method in parts for task in tasks
    ]
    ours = sum(weight * statistics.fmean(cell.scores) for weight, cell in weighted)
    theirs = sum(weight * statistics.fmean(cell.their_scores) for weight, cell in weighted)
    terms = [term for weight, cell in weighted for term in cell.terms(weight)]
    sign = "+" if len(parts) > 1 else ""
    means = (f"{ours:{sign}.1f}", f"{theirs:{sign}.1f}")
    return [name, ", ".join(tasks), *means, *_difference(ours - theirs, terms)]


def _difference(value: float, terms: Sequence[Term]) -> tuple[str, str]:
    found = interval(terms)
    return f"{value:+.1f}", f"{found[0]:+.1f} to {found[1]:+.1f}" if found else "—"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _overall(cells: Mapping[Cell, Both]) -> Iterator[str]:
    differences = [cell.difference for cell in cells.values()]
    if len(differences) < 2:
        return
    found: Any = stats.ttest_1samp(differences, 0.0).confidence_interval()
    inside = "within" if max(abs(found.low), abs(found.high)) <= MARGIN else "not within"
    yield (
        f"Mean difference of {len(differences)} cells: {statistics.fmean(differences):+.2f}, 95 % "
        f"interval {found.low:+.2f} to {found.high:+.2f}: {inside} the margin of {MARGIN:g} point "
        "that was set beforehand. In such a mean opposite differences cancel; the means of methods "
        "and their differences say whether they do."
    )
    yield (
        "Intervals are uncorrected: of twenty one leaves zero out by chance. Those of means add up "
        "the variances of tasks over seeds. Learning rates (chosen with our code, on held-out "
        "train), precision and the way in which batches are drawn are the same on both sides, so "
        "that it is the engine that is compared."
    )

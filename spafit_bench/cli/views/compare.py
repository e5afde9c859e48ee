"""A comparison as text for a terminal and as one JSON object: the verdict first, then its grounds.

Differences and intervals are in points (scores times 100); positive favours the first method.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from statistics import fmean

from spafit_bench.analysis.compare import (
    Comparison,
    OnPredictions,
    Overall,
    PairComparison,
    Ranking,
    Side,
    TaskComparison,
)
from spafit_bench.analysis.stats import LEAST_SEEDS, Interval, OverSeeds, Tested
from spafit_bench.analysis.tables.cells import Mark, mark_notes

_INDENT = 4
_TITLE = 8
_OVERALL = "Average"


def comparison_json(comparisons: Sequence[Comparison]) -> str:
    """Write one JSON object, `{"comparisons": [...]}`, with marks as words."""
    body = {"comparisons": [_plain(asdict(comparison)) for comparison in comparisons]}
    return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: [" ".join(filter(None, mark.values())) for mark in inner]
            if key == "marks"
            else _plain(inner)
            for key, inner in value.items()
        }
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def comparison_text(comparisons: Sequence[Comparison], width: int = 80) -> str:
    """Write comparisons for people.

    Args:
        comparisons: of one or more tables.
        width: columns of the terminal.
    """
    blocks = [list(_comparison(comparison, width)) for comparison in comparisons]
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def _comparison(comparison: Comparison, width: int) -> Iterator[str]:
    yield from _wrapped(f"{comparison.model}, {comparison.data}: dev scores times 100", width)
    for pair in comparison.pairs:
        yield ""
        yield from _pair(pair, width)
    if comparison.ranking:
        yield ""
        yield from _ranking(comparison.ranking, width)
    yield ""
    for note in _notes(comparison):
        yield from _wrapped(note, width)


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2 * (indent > 0)),
    )


def _pair(pair: PairComparison, width: int) -> Iterator[str]:
    yield from _wrapped(f"Is {pair.first} better than {pair.second}? {_answer(pair)}", width)
    if pair.overall:
        yield from _head(_OVERALL, pair.overall, width)
        yield from _grounds(pair.overall, width, _partial_text(pair.overall, pair.tasks))
        yield from _wrapped(_over_tasks(pair.overall, pair.first), width, _INDENT)
    for task in pair.tasks:
        yield from _head(task.title, task, width)
        yield from _wrapped(f"{_side(task.first)} - {_side(task.second)}", width, _INDENT)
        yield from _grounds(task, width)


def _answer(pair: PairComparison) -> str:
    """Count the verdicts in a sentence."""
    if not pair.tasks:
        return "They have no task in common."
    first, second = (
        sum(task.verdict == f"{name} is better" for task in pair.tasks)
        for name in (pair.first, pair.second)
    )
    total = len(pair.tasks)
    said = (
        f"{pair.first} is better on {first} of {total} tasks, {pair.second} on {second}; "
        f"{total - first - second} undecided."
    )
    return f"{said} On average: {pair.overall.verdict}." if pair.overall else said


def _head(title: str, found: TaskComparison | Overall, width: int) -> list[str]:
    over = found.over_seeds
    start = f"{title:<{_TITLE}} {over.difference:+6.2f} {_interval(over.shown_interval):<16}  "
    return textwrap.wrap(
        found.verdict, width, initial_indent=start, subsequent_indent=" " * len(start)
    )


def _interval(interval: Interval | None) -> str:
    return f"[{interval.low:+.2f}, {interval.high:+.2f}]" if interval else ""


def _side(side: Side) -> str:
    spread = "" if side.sd is None else f" ± {side.sd:.2f}"
    symbols = "".join(mark.symbol for mark in side.marks)
    return f"{side.label}{symbols} {side.mean:.2f}{spread} (n={len(side.seeds)})"


def _partial_text(overall: Overall, tasks: Sequence[TaskComparison]) -> str:
    """Say where the average leaves seeds out, so that it is not the mean of what stands below."""
    mean = fmean(task.over_seeds.difference for task in tasks if task.task in overall.tasks)
    partial = abs(overall.over_seeds.difference - mean) > 1e-9
    return "over those that its tasks share: " * partial


def _grounds(found: TaskComparison | Overall, width: int, seeds: str = "") -> Iterator[str]:
    yield from _wrapped(f"seeds: {seeds}{_seeds_text(found.over_seeds)}", width, _INDENT)
    on = found.on_predictions
    yield from _wrapped(
        f"predictions: {_predictions_text(on, len(found.over_seeds.seeds))}", width, _INDENT
    )
    if on.missing:
        yield from _wrapped(f"not used: {'; '.join(on.missing)}", width, _INDENT)


def _seeds_text(over: OverSeeds) -> str:
    if over.tested.p is None:
        return _why_no_seeds_test(over)
    ahead = f", first ahead {over.ahead}/{len(over.seeds)}" if over.seeds else ""
    effect = f", g={over.effect[0]:+.1f}" if over.effect else ""
    return f"{_test_text(over.tested)}{effect}{ahead}"


def _why_no_seeds_test(over: OverSeeds) -> str:
    tested, n = over.tested, len(over.seeds)
    pairs = f"{n} seed pair{'s' * (n != 1)}"
    if n >= LEAST_SEEDS and over.difference == 0:
        return f"no test; the same score in each of {pairs}"
    if n >= LEAST_SEEDS:
        return (
            f"no test; each of {pairs} differs by the same, so that only signs can be tested: "
            f"{tested.needs} pairs would do"
        )
    if n:
        return f"no test with {pairs}; {LEAST_SEEDS} would do"
    if not tested.needs:
        return "no test; neither has any spread over its seeds"
    return f"no test; {LEAST_SEEDS} seeds each would do, best the same ones"


def _predictions_text(on: OnPredictions, seed_pairs: int) -> str:
    if on.difference is None:
        return "no test, predictions are missing"
    tested = on.tested
    pairs = f", {on.pairs} model pairs" if on.pairs != seed_pairs else ""
    start = f"{on.difference:+.2f} {_interval(on.shown_interval)}{pairs}"
    if tested.p is None:
        return f"{start}, no test: {tested.n} examples differ, {tested.needs} would do"
    return f"{start}, {_p_text(tested)}{_mcnemar_text(on)}"


def _mcnemar_text(on: OnPredictions) -> str:
    if not on.mcnemar:
        return ""
    if len(on.mcnemar) == 1:
        (pair,) = on.mcnemar
        test = _p_text(pair.tested) if pair.tested.p is not None else "too few differ for a test"
        return f", McNemar {pair.only_first}:{pair.only_second}, {test}"
    separate = sum(pair.tested.separable is True for pair in on.mcnemar)
    return f", McNemar {separate}/{len(on.mcnemar)}"


def _over_tasks(overall: Overall, first: str) -> str:
    tested, n = overall.over_tasks, len(overall.tasks)
    ahead = f"{first} ahead on {overall.ahead} of {n}"
    if tested.p is None:
        return f"tasks: not tested, {tested.n} differ and {tested.needs} are needed; {ahead}"
    verdict = "separable" if tested.separable else "not separable"
    return f"tasks: {verdict}; {_test_text(tested)}; {ahead}"


def _test_text(tested: Tested) -> str:
    units = "tasks" if tested.unit == "tasks" else "seeds" if tested.test == "Welch t" else "pairs"
    return f"{tested.test}, {tested.n} {units}, {_p_text(tested)}"


def _p_text(tested: Tested) -> str:
    adjusted = f" (Holm {_number(tested.holm)})" if tested.holm != tested.p else ""
    return f"p{_relation(tested.p)}{_number(tested.p)}{adjusted}"


def _relation(p: float | None) -> str:
    return "" if p is not None and p < 0.001 else "="


def _number(p: float | None) -> str:
    if p is None:
        return "—"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _ranking(ranking: Ranking, width: int) -> Iterator[str]:
    tested, n = ranking.tested, len(ranking.tasks)
    ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in ranking.mean_ranks.items())
    yield from _wrapped(f"Mean rank over {n} tasks (1 is best): {ranks}", width)
    if tested.p is None:
        why = f"no test with {n} tasks; {tested.needs} would do"
        yield from _wrapped(f"Friedman: {why}.", width, 2)
        return
    verdict = "not all alike" if tested.separable else "not separable"
    yield from _wrapped(
        f"Friedman: {verdict}, chi-square {ranking.chi_square:.2f}, {_p_text(tested)}", width, 2
    )
    if tested.separable:
        apart = "; ".join(", ".join(group) for group in ranking.cliques) or "none"
        yield from _wrapped(
            f"Nemenyi: ranks {ranking.critical_difference:.2f} apart are separable; "
            f"not told apart: {apart}",
            width,
            2,
        )


def _notes(comparison: Comparison) -> Iterator[str]:
    yield (
        "Each line: first minus second, with its interval over seeds. Over seeds: would other "
        "training runs change the order? On predictions: would other dev examples, for these "
        "models (paired bootstrap, randomisation)? 'Is better' means separable in both. 'Is ahead "
        "on these predictions' is about these models, not about the methods. McNemar 0/5: "
        "separates the accuracy of none of 5 pairs of models."
    )
    sizes = ", ".join(f"{name} {n}" for name, n in comparison.families.items() if n)
    yield (
        f"Separable: p at most {comparison.alpha:g} after Holm's correction within each family of "
        f"tests ({sizes or 'none could be made'}). Each interval has the confidence level that "
        "the correction gives its test, or 95% without a test. g: Hedges' g."
    )
    yield (
        f"No test is made if the sample is too small to be significant: t needs {LEAST_SEEDS} "
        f"seeds, and a sign test on n tasks cannot give p below 2/2^n. {comparison.resamples} "
        f"resamples, seed {comparison.seed}."
    )
    yield from comparison.notes
    yield from _mark_notes(comparison)


def _mark_notes(comparison: Comparison) -> Iterator[str]:
    tasks = [task for pair in comparison.pairs for task in pair.tasks]
    marks = [mark for task in tasks for side in (task.first, task.second) for mark in side.marks]
    yield from mark_notes(marks)
    unlike = dict.fromkeys(
        t.title for t in tasks if _names(t.first.marks) != _names(t.second.marks)
    )
    if unlike:
        yield f"Marks differ between the methods on {', '.join(unlike)}: not like for like."
    for title, note in dict.fromkeys((task.title, task.note) for task in tasks if task.note):
        yield f"{title} is in no average or test over tasks: {note}."


def _names(marks: Iterable[Mark]) -> tuple[str, ...]:
    return tuple(sorted(mark.name for mark in marks))

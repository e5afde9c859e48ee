"""Is it better than the baseline? Differences, intervals and verdicts as a table."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from spafit_bench.analysis.compare import Comparison, Overall, TaskComparison
from spafit_bench.analysis.plots import Gallery
from spafit_bench.analysis.stats import Interval

_HEADS = (
    "Method",
    "Task",
    "Difference",
    "Interval over seeds",
    "Interval on predictions",
    "Verdict",
)


def verdicts(gallery: Gallery) -> str:
    """Write every shown method against the baseline, the average first."""
    comparison, baseline = gallery.comparison, gallery.scene.baseline.label
    title = f"<h3>Is it better than {escape(baseline)}?</h3>"
    if comparison is None:
        return f'{title}\n<p class="note">No other method has a task in common with it.</p>'
    heads = "".join(
        f'<th scope="col"{" class=text" if name in ("Method", "Task", "Verdict") else ""}>'
        f"{name}</th>"
        for name in _HEADS
    )
    region = f"Differences from {escape(baseline, quote=True)}"
    return "\n".join(
        [
            title,
            f'<div class="scroll" role="region" tabindex="0" aria-label="{region}">',
            f"<table><caption>{escape(_caption(comparison, baseline))}</caption>",
            f"<thead><tr>{heads}</tr></thead>",
            *_bodies(comparison),
            "</table></div>",
        ]
    )


def _caption(comparison: Comparison, baseline: str) -> str:
    tests = ", ".join(f"{name} {n}" for name, n in comparison.families.items() if n)
    corrected = tests or "none could be made"
    return (
        f"Method minus {baseline}, in points (dev score times 100). Over seeds: would other "
        "training runs change the order? On predictions: would other dev examples, for these "
        f"models? Better: separable in both, at {comparison.alpha:g} after Holm's correction in "
        f"each family of tests ({corrected}). Intervals are at the level "
        "of the same step of the correction, at 95 % where nothing was tested."
    )


def _bodies(comparison: Comparison) -> Iterator[str]:
    for pair in comparison.pairs:
        lines = [_line(pair.first, t.title, t) for t in pair.tasks]
        if pair.overall:
            count = f"Average of {len(pair.overall.tasks)}"
            lines.insert(0, _line(pair.first, count, pair.overall))
        if lines:
            yield "<tbody>" + "\n".join(lines) + "</tbody>"


def _line(method: str, task: str, found: TaskComparison | Overall) -> str:
    over, on = found.over_seeds, found.on_predictions
    strong = ("<b>", "</b>") if isinstance(found, Overall) else ("", "")
    return (
        f'<tr><th scope="row">{escape(method)}</th><td class="text">{escape(task)}</td>'
        f'<td data-value="{over.difference:.6f}">{strong[0]}{over.difference:+.2f}{strong[1]}</td>'
        f"<td>{_interval(over.shown_interval)}</td><td>{_interval(on.shown_interval)}</td>"
        f'<td class="text">{strong[0]}{escape(found.verdict)}{strong[1]}</td></tr>'
    )


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "—"
    return f"<span>{interval.low:+.2f} to {interval.high:+.2f}</span>"

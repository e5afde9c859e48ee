"""Differences from a baseline on each task, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spafit_bench.analysis.compare import Comparison, Overall, TaskComparison
from spafit_bench.analysis.plots.drawing import INK, PAPER, RULE, LineStyle, Plot, Skipped
from spafit_bench.analysis.plots.scene import Scene, joined
from spafit_bench.analysis.stats import Interval
from spafit_bench.data.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

NAME, TITLE = "differences", "Differences from {}"
_COLUMNS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 3, 6: 3}
"""Panels -> columns; four for more."""
AVERAGE = "Average"
_MISLEADING = {task.title for task in TASKS.values() if task.note}


@dataclass(frozen=True)
class Difference:
    """One method minus the baseline on one task, in points."""

    task: str
    value: float
    over_seeds: Interval | None
    on_predictions: Interval | None
    separable: bool
    """Separable over seeds and on predictions."""


@dataclass(frozen=True)
class Panel:
    """One method."""

    title: str
    style: LineStyle
    differences: tuple[Difference, ...]


def differences(scene: Scene, comparison: Comparison | None) -> Plot | Skipped:
    """Plot every method's difference from the baseline on each task, and on average."""
    baseline = scene.baseline
    title = TITLE.format(scene.labels[baseline])
    panels = _panels(scene, comparison)
    if comparison is None or not panels:
        return Skipped(NAME, title, f"no other method has a task in common with {baseline.label}")
    tasks = [
        t for t in scene.tasks if any(d.task == t.title for p in panels for d in p.differences)
    ]
    rows = [row for row in scene.shown if row.label in comparison.methods]
    beyond = max(_farthest(d) for p in panels for d in p.differences) > _reach(panels)
    lacks = any(d.over_seeds is None for p in panels for d in p.differences)
    caption = joined(
        f"Dev score times 100, method minus {scene.labels[baseline]}: right of the line the method "
        "is ahead. Dark bar: interval over seeds (would other training runs agree?). Pale bar: "
        "interval on predictions (would other dev examples, for these models?). Each is at the "
        "level that Holm's correction gives its test, or 95 % without a test.",
        "No dark bar: fewer than three seeds, or no spread." * lacks,
        "Arrowhead: the interval continues beyond the axis." * beyond,
        "Filled: separable in both after Holm's correction; open: not separable, or untested.",
        _average_text(panels, comparison),
        *scene.left_out(rows),
        *scene.caveats(rows, tasks),
    )
    said = "; ".join(f"{panel.title}: {_said(panel)}" for panel in panels)
    lines = math.ceil(len(panels) / _COLUMNS.get(len(panels), 4))
    return Plot(
        name=NAME,
        title=title,
        subtitle=scene.subtitle(rows, tasks),
        caption=caption,
        alt=f"Forest plot of differences from {baseline.label} in points. {said}.",
        height=0.2 + lines * (0.65 + 0.23 * (len(tasks) + 1)),
        draw=lambda figure: _draw(figure, panels, [*(t.title for t in tasks), AVERAGE]),
    )


def _average_text(panels: Sequence[Panel], comparison: Comparison) -> str:
    overall = [pair.overall for pair in comparison.pairs if pair.overall]
    if not overall or not any(d.task == AVERAGE for p in panels for d in p.differences):
        return ""
    names = {", ".join(TASKS[name].title for name in found.tasks) for found in overall}
    return f"Average over {names.pop()}." if len(names) == 1 else "Average over the shared tasks."


def _said(panel: Panel) -> str:
    return ", ".join(f"{d.task} {d.value:+.2f}" for d in panel.differences)


def _panels(scene: Scene, comparison: Comparison | None) -> list[Panel]:
    if comparison is None:
        return []
    rows = {row.label: row for row in scene.shown}
    panels = []
    for pair in comparison.pairs:
        row = rows[pair.first]
        found = [_difference(task.title, task) for task in pair.tasks]
        if pair.overall:
            found.append(_difference(AVERAGE, pair.overall))
        if found:
            panels.append(Panel(scene.labels[row], scene.styles[row], tuple(found)))
    return panels


def _difference(title: str, found: TaskComparison | Overall) -> Difference:
    tested = found.over_seeds.tested.separable, found.on_predictions.tested.separable
    return Difference(
        task=title,
        value=found.over_seeds.difference,
        over_seeds=found.over_seeds.shown_interval,
        on_predictions=found.on_predictions.shown_interval,
        separable=all(tested),
    )


def _reach(panels: Sequence[Panel]) -> float:
    """Choose how far the axis goes: to the farthest end, but not far beyond the usual one.

    A task whose dev set misleads (WNLI) does not stretch it, unless it is alone.
    """
    found = [d for panel in panels for d in panel.differences]
    ends = [_farthest(d) for d in found if d.task not in _MISLEADING]
    ends = ends or [_farthest(d) for d in found]
    return min(max(ends), 4 * sorted(ends)[len(ends) // 2]) or 1.0


def _farthest(found: Difference) -> float:
    return max(abs(end) for bar in _bars(found) for end in _ends(bar, found.value))


def _bars(found: Difference) -> tuple[Interval | None, Interval | None]:
    return found.over_seeds, found.on_predictions


def _ends(bar: Interval | None, value: float) -> tuple[float, ...]:
    return (value,) if bar is None else (bar.low, bar.high, value)


def _draw(figure: FigureBase, panels: Sequence[Panel], tasks: Sequence[str]) -> None:
    averaged = any(d.task == AVERAGE for panel in panels for d in panel.differences)
    names = list(tasks) if averaged else list(tasks)[:-1]
    columns = _COLUMNS.get(len(panels), 4)
    lines = math.ceil(len(panels) / columns)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    reach = _reach(panels)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        _draw_panel(axes, panels[index], names)
        for found in panels[index].differences:
            style = panels[index].style
            _draw_difference(axes, found, names.index(found.task), style, reach)
        axes.tick_params(labelbottom=True)
        if index + columns >= len(panels):
            axes.set_xlabel("points")
    grid.flat[0].set_yticks(range(len(names)), names)
    grid.flat[0].set_ylim(len(names) - 0.4, -0.6)
    ends = [_ends(bar, d.value) for p in panels for d in p.differences for bar in _bars(d)]
    low = max(-reach, min(0.0, *(min(pair) for pair in ends)))
    high = min(reach, max(0.0, *(max(pair) for pair in ends)))
    margin = 0.12 * (high - low or 1.0)
    grid.flat[0].set_xlim(low - margin, high + margin)


def _draw_panel(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    axes.set_title(panel.title)
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=INK, linewidth=0.9)
    if names[-1] == AVERAGE:
        axes.axhline(len(names) - 1.5, color=RULE, linewidth=0.9)


def _draw_difference(axes: Axes, found: Difference, y: int, style: LineStyle, reach: float) -> None:
    def clipped(value: float) -> float:
        return max(-reach, min(reach, value))

    bars: tuple[tuple[Interval | None, dict[str, Any]], ...] = (
        (found.on_predictions, {"alpha": 0.28, "linewidth": 5.5, "solid_capstyle": "butt"}),
        (found.over_seeds, {"linewidth": 1.6}),
    )
    beyond = set()
    for bar, look in bars:
        if bar:
            ends = [clipped(bar.low), clipped(bar.high)]
            axes.plot(ends, [y, y], color=style.color, **look)
            beyond |= {end for end in (bar.low, bar.high) if abs(end) > reach}
    for end in beyond:
        arrow = "<" if end < 0 else ">"
        axes.plot([clipped(end) * 1.04], [y], marker=arrow, color=style.color, markersize=4)
    if abs(found.value) > reach:
        side = "left" if found.value < 0 else "right"
        text = f"{found.value:+.1f}".replace("-", "\N{MINUS SIGN}")  # as on the axis
        axes.text(clipped(found.value), y - 0.16, text, ha=side, va="bottom")
        return
    fill = style.color if found.separable else PAPER
    point: dict[str, Any] = {"markersize": 5.5, "markeredgewidth": 1.3, "markerfacecolor": fill}
    axes.plot([found.value], [y], marker=style.marker, color=style.color, **point)

"""Learning curves: dev score and training loss over epochs, a panel per task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spafit_bench.analysis.plots.drawing import MUTED, LineStyle, Plot, Skipped, spread_out
from spafit_bench.analysis.plots.scene import Scene, joined
from spafit_bench.analysis.tables.settings import Setting
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import Evaluation, RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

_COLUMNS = 3
_LONGEST_LABEL = 14
"""Characters of a label that stands at the end of a line; longer ones go into a legend."""
Value = Callable[[Task, Evaluation], float | None]


@dataclass(frozen=True)
class Curve:
    """One method on one task: mean and range over seeds at each evaluation."""

    label: str
    style: LineStyle
    epochs: tuple[float, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One task."""

    title: str
    curves: tuple[Curve, ...]
    baseline: float | None
    """Score of the majority class."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is drawn over epochs."""

    name: str
    title: str
    axis: str
    caption: str
    value: Value
    has_baseline: bool


def _score(task: Task, evaluation: Evaluation) -> float | None:
    score = task.score(evaluation.metrics)
    return None if score is None else 100 * score


SCORES = Kind(
    name="learning-curves",
    title="Learning curves",
    axis="dev score times 100",
    caption="Dev score times 100 at each evaluation: line, mean over seeds; band, their range. "
    "Dotted: the majority class, where it is not far below.",
    value=_score,
    has_baseline=True,
)
LOSSES = Kind(
    name="training-loss",
    title="Training loss",
    axis="loss per example",
    caption="Mean training loss since the evaluation before: line, mean over seeds; band, their "
    "range.",
    value=lambda _, evaluation: evaluation.train_loss,
    has_baseline=False,
)


def learning_curves(scene: Scene, kind: Kind) -> Plot | Skipped:
    """Plot a quantity over epochs for each task and method."""
    panels = [
        panel for task in scene.tasks if (panel := _panel(scene, task, kind)).curves
    ]  # in GLUE's order
    if not panels:
        why = "no run was evaluated more than once; train for several epochs"
        return Skipped(kind.name, kind.title, why)
    rows, tasks = scene.shown, scene.tasks
    single = list(_without_curve(scene, panels))
    caption = joined(
        kind.caption,
        f"Evaluated only once, so without a curve: {', '.join(single)}." * bool(single),
        *scene.left_out(rows),
        *scene.caveats(rows, tasks),
    )
    ends = "; ".join(
        f"{panel.title}: {', '.join(f'{c.label} {c.means[-1]:.2f}' for c in panel.curves)}"
        for panel in panels
    )
    return Plot(
        name=kind.name,
        title=kind.title,
        subtitle=scene.subtitle(rows, tasks),
        caption=caption,
        alt=f"Line charts over epochs. Last values: {ends}.",
        height=0.35 + 1.95 * math.ceil(len(panels) / _COLUMNS) + 1.0 * (len(panels) == 1),
        draw=lambda figure: _draw(figure, panels, kind),
    )


def _without_curve(scene: Scene, panels: Sequence[Panel]) -> Iterator[str]:
    """Name tasks that have no panel, and methods that a panel lacks though they have runs."""
    drawn = {panel.title: {curve.label for curve in panel.curves} for panel in panels}
    for task in scene.tasks:
        have = [row for row in scene.shown if scene.group.rows[row].get(task.name)]
        lacking = [
            label for row in have if (label := scene.labels[row]) not in drawn.get(task.title, ())
        ]
        if task.title not in drawn:
            yield task.title
        elif lacking:
            yield f"{' and '.join(lacking)} on {task.title}"


def _panel(scene: Scene, task: Task, kind: Kind) -> Panel:
    cells = scene.group.rows
    found = [(row, cells[row].get(task.name, ())) for row in scene.shown]
    curves = [curve for row, runs in found if (curve := _curve(scene, row, task, runs, kind.value))]
    majority = [task.score(run.majority) for _, runs in found for run in runs]
    baseline = next((100 * score for score in majority if score is not None), None)
    return Panel(task.title, tuple(curves), baseline if kind.has_baseline else None)


def _curve(
    scene: Scene, row: Setting, task: Task, runs: Sequence[RunRecord], value: Value
) -> Curve | None:
    """Average the seeds' evaluations at the epochs that all seeds have."""
    by_seed: list[Mapping[float, float]] = [
        {e.epoch: v for e in run.evaluations if (v := value(task, e)) is not None} for run in runs
    ]
    shared = sorted(set.intersection(*(set(found) for found in by_seed))) if by_seed else []
    if len(shared) < 2:
        return None
    values = [[found[epoch] for found in by_seed] for epoch in shared]
    return Curve(
        label=scene.labels[row],
        style=scene.styles[row],
        epochs=tuple(shared),
        means=tuple(map(statistics.fmean, values)),
        lows=tuple(map(min, values)),
        highs=tuple(map(max, values)),
    )


def _draw(figure: FigureBase, panels: Sequence[Panel], kind: Kind) -> None:
    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    grid = figure.subplots(lines, columns, squeeze=False)
    labels = {curve.label for panel in panels for curve in panel.curves}
    direct = all(len(label) <= _LONGEST_LABEL for label in labels)
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_axis_off()
            continue
        _draw_panel(axes, panels[index])
        if index % columns == 0:
            axes.set_ylabel(kind.axis)
        if index + columns >= len(panels):
            axes.set_xlabel("epoch")
    if not direct:
        handles = {c.label: axes for panel in panels for c in panel.curves}
        lines_by_label = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
        shown = [lines_by_label[label] for label in handles]
        figure.legend(
            shown, list(handles), loc="outside upper left", ncols=3, frameon=False, fontsize=7.5
        )
        return
    drawn = list(grid.flat[: len(panels)])
    _hold_right_margin(drawn, panels)
    _label_ends(drawn, panels)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.grid(visible=True, axis="y")
    for curve in panel.curves:
        style = curve.style
        axes.fill_between(
            curve.epochs, curve.lows, curve.highs, color=style.color, alpha=0.11, linewidth=0
        )
        axes.plot(
            curve.epochs,
            curve.means,
            color=style.color,
            marker=style.marker,
            linestyle=style.dash,
            markersize=3.8,
            label=curve.label,
        )
    low, high = axes.get_ylim()
    if panel.baseline is not None and panel.baseline > low - 0.5 * (high - low):
        axes.axhline(panel.baseline, color=MUTED, linewidth=0.9, linestyle=(0, (1, 1.6)))
    epochs = sorted({epoch for curve in panel.curves for epoch in curve.epochs})
    if len(epochs) <= 6:
        axes.set_xticks(epochs, [f"{round(epoch, 1):g}" for epoch in epochs])


def _hold_right_margin(grid: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """Leave room within each panel for names at the ends of its lines."""
    for axes, panel in zip(grid, panels, strict=True):
        first = min(curve.epochs[0] for curve in panel.curves)
        last = max(curve.epochs[-1] for curve in panel.curves)
        longest = max(len(curve.label) for curve in panel.curves)
        share = min(0.5, 0.045 * longest + 0.04) if len(grid) > 1 else 0.02 * longest
        axes.set_xlim(first - 0.04 * (last - first), last + (last - first) * share / (1 - share))


def _label_ends(grid: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """Write each method's name at the end of its line, in the line's colour."""
    root = grid[0].get_figure(root=True)
    assert root is not None
    root.draw_without_rendering()
    for axes, panel in zip(grid, panels, strict=True):
        to_points = 72 / root.dpi
        ends = [
            float(axes.transData.transform((curve.epochs[-1], curve.means[-1]))[1]) * to_points
            for curve in panel.curves
        ]
        area = axes.get_window_extent()
        bounds = ((area.y0 + 3) * to_points, (area.y1 - 3) * to_points)
        places = spread_out(ends, 8.0, bounds)
        for curve, end, place in zip(panel.curves, ends, places, strict=True):
            axes.annotate(
                curve.label,
                (curve.epochs[-1], curve.means[-1]),
                xytext=(7, place - end),
                textcoords="offset points",
                va="center",
                fontsize=7,
                arrowprops={
                    **{"arrowstyle": "-", "color": curve.style.color, "linewidth": 0.6},
                    **{"shrinkA": 0, "shrinkB": 3},
                },
            )

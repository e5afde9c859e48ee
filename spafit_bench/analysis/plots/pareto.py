"""Score against trainable parameters: which methods are worth their size."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from spafit_bench.analysis.plots.drawing import INK, MUTED, PAPER, LineStyle, Plot, Skipped
from spafit_bench.analysis.plots.scene import NOT_COUNTED, Average, Scene, joined
from spafit_bench.analysis.tables.settings import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

NAME, TITLE = "score-parameters", "Score against trainable parameters"
_MOST_LABELS = 12
_POINT = LineStyle(color=MUTED, marker="o", dash="-")


@dataclass(frozen=True)
class Point:
    """One row of the table."""

    label: str
    style: LineStyle
    parameters: int
    average: Average
    on_front: bool


def score_parameters(scene: Scene) -> Plot | Skipped:
    """Plot each method's average score over what it trains, with the Pareto front."""
    points = _points(scene)
    if len(points) < 2:
        return Skipped(
            NAME, TITLE, f"fewer than two methods have a score on the same tasks {NOT_COUNTED}"
        )
    rows = [row for row in scene.group.rows if scene.average(row)]
    front = [point for point in points if point.on_front]
    several = any(point.average.sd is not None for point in points)
    tasks = scene.averaged
    caption = joined(
        f"Dev scores times 100, mean over {len(tasks)} tasks." * (len(tasks) > 1),
        "Bars: sample standard deviation over seeds." * several,
        "Parameters include adapters and classifier. Line and filled points: the Pareto front, "
        "methods that no smaller one equals; open points: the others.",
        "Methods with a collapsed run are not on it."
        * (not all(point.average.sound for point in points)),
        "Only the front is named; the tables name all." * (len(points) > _MOST_LABELS),
        *scene.without(rows, "the others lack a task"),
        *scene.caveats(rows, tasks),
    )
    listed = "; ".join(
        f"{p.label} {p.average.mean:.2f} with {p.parameters:,}" for p in points[:_MOST_LABELS]
    )
    named = ", ".join(point.label for point in front) or "none"
    return Plot(
        name=NAME,
        title=TITLE,
        subtitle=scene.subtitle(rows, tasks),
        caption=caption,
        alt=f"Scatter plot. Pareto front: {named}. Points: {listed}.",
        height=3.9,
        draw=lambda figure: _draw(figure, points),
    )


def _points(scene: Scene) -> tuple[Point, ...]:
    found: list[tuple[Setting, int, Average]] = []
    for row in scene.group.rows:
        if average := scene.average(row):
            runs = scene.runs([row], scene.averaged)
            found.append((row, statistics.mode(r.trainable_parameters for r in runs), average))
    found.sort(key=lambda item: (item[1], -item[2].mean))
    points: list[Point] = []
    best = float("-inf")
    for row, parameters, average in found:
        style = scene.styles.get(row, _POINT)
        leads = average.sound and average.mean > best
        points.append(Point(scene.labels[row], style, parameters, average, leads))
        best = average.mean if leads else best
    return tuple(points)


def _draw(figure: FigureBase, points: Sequence[Point]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.add_subplot()
    low, high = min(p.parameters for p in points), max(p.parameters for p in points)
    front = [point for point in points if point.on_front]
    if front:
        x = [point.parameters for point in front] + [1.6 * high]
        y = [point.average.mean for point in front]
        axes.step(x, [*y, y[-1]], where="post", color=MUTED, linewidth=1, zorder=1)
    for point in points:
        axes.errorbar(
            point.parameters,
            point.average.mean,
            yerr=point.average.sd,
            color=point.style.color,
            marker=point.style.marker,
            markerfacecolor=point.style.color if point.on_front else PAPER,
            markeredgewidth=1.3,
            markersize=7,
            elinewidth=1,
            capsize=2.5,
        )
    axes.set_xscale("log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks(lambda value, _: _count(value))
    if high / low > 20:
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.set_xlabel("trainable parameters (log scale)")
    axes.set_ylabel("mean dev score times 100")
    axes.grid(visible=True)
    axes.set_xlim(low / 1.6, high * 1.6)
    _label(axes, front if len(points) > _MOST_LABELS else points, front, points)


def _count(value: float) -> str:
    """Write a number of parameters as people say it."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _label(
    axes: Axes, points: Sequence[Point], front: Sequence[Point], everything: Sequence[Point]
) -> None:
    """Write each name beside its point, where it covers no line, point, bar or other name."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    window = axes.get_window_extent()
    area = (window.x0, window.y0, window.x1, window.y1)
    marks = list(_marks(axes, everything, 5 * scale))
    taken = [*marks, *_steps(axes, front, scale)]
    for point in points:
        x, y = axes.transData.transform((point.parameters, point.average.mean))
        width, height = 5.1 * len(point.label) * scale, 10 * scale
        costs = []
        for dx, dy, align in _OFFSETS:
            left = x + dx * scale - {"left": 0, "center": width / 2, "right": width}[align]
            box = (left, y + dy * scale - height / 2, left + width, y + dy * scale + height / 2)
            outside = width * height - _overlap(box, area)
            covered = sum(_overlap(box, other) for other in taken)
            covered += 3 * sum(_overlap(box, other) for other in marks)
            costs.append((covered + 3 * outside, box))
        best = min(range(len(costs)), key=lambda index: round(costs[index][0]))
        taken.append(costs[best][1])
        axes.annotate(
            point.label,
            (point.parameters, point.average.mean),
            xytext=_OFFSETS[best][:2],
            textcoords="offset points",
            ha=_OFFSETS[best][2],
            va="center",
            color=INK,
            fontsize=8.5,
        )


def _marks(axes: Axes, points: Sequence[Point], radius: float) -> Iterator[Box]:
    """Boxes of the points and their bars, in pixels."""
    for point in points:
        x, y = axes.transData.transform((point.parameters, point.average.mean))
        yield x - radius, y - radius, x + radius, y + radius
        if sd := point.average.sd:  # a bar with its caps
            _, top = axes.transData.transform((point.parameters, point.average.mean + sd))
            edge = 0.8 * radius
            yield x - edge, 2 * y - top - edge, x + edge, top + edge


def _steps(axes: Axes, front: Sequence[Point], radius: float) -> Iterator[Box]:
    """Boxes of the front's line, in pixels."""
    data = axes.transData
    corners = [tuple(data.transform((p.parameters, p.average.mean))) for p in front]
    if not corners:
        return
    corners.append((axes.get_window_extent().x1, corners[-1][1]))
    for (x, y), (right, top) in pairwise(corners):
        yield x, y - radius, right, y + radius
        yield right - radius, y, right + radius, top


Box = tuple[float, float, float, float]
_OFFSETS = (
    *((7.0, 8.0, "left"), (7.0, -8.0, "left"), (-7.0, 8.0, "right"), (-7.0, -8.0, "right")),
    *((9.0, 0.0, "left"), (-9.0, 0.0, "right"), (0.0, 13.0, "center"), (0.0, -13.0, "center")),
    *((9.0, 18.0, "left"), (9.0, -18.0, "left"), (-9.0, 18.0, "right"), (-9.0, -18.0, "right")),
    *((9.0, 28.0, "left"), (9.0, -28.0, "left"), (-9.0, 28.0, "right"), (-9.0, -28.0, "right")),
)


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)

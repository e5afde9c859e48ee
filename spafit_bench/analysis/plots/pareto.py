"""Score against trainable parameters: which methods are worth their size."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from spafit_bench.analysis.plots.drawing import INK, MUTED, PAPER, LineStyle, Plot, Skipped
from spafit_bench.analysis.plots.scene import NOT_COUNTED, Average, Scene, joined
from spafit_bench.analysis.tables.settings import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

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
    named = front if len(points) > _MOST_LABELS else points
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
            label=point.label if point in named else None,
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
    _label(axes, named, front, points)


def _count(value: float) -> str:
    """Write a number of parameters as people say it."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _label(
    axes: Axes, points: Sequence[Point], front: Sequence[Point], everything: Sequence[Point]
) -> None:
    """Write each name beside its point; all in a legend if one would cover a point, bar or name."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    marks = list(_marks(axes, everything))
    lines = list(_front_line(axes, front))
    texts = []
    for point in points:
        text = axes.annotate(
            point.label,
            (point.parameters, point.average.mean),
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=8.5,
        )
        texts.append(text)
        if not (_place(text, axes, [*marks, *lines]) or _place(text, axes, marks)):
            break
        marks.append(text.get_window_extent())
    else:
        return
    for text in texts:
        text.remove()
    part: Any = axes.figure
    part.legend(loc="outside right upper", frameon=False, fontsize=8.5)


def _place(text: Annotation, axes: Axes, taken: Sequence[Bbox]) -> bool:
    """Move a name to the first place where it covers nothing that is taken, if there is one."""
    area = axes.get_window_extent()
    for x, y, align in _OFFSETS:
        text.set_position((x, y))
        text.set_horizontalalignment(align)
        box = text.get_window_extent()
        inside = area.x0 <= box.x0 and box.x1 <= area.x1 and area.y0 <= box.y0 and box.y1 <= area.y1
        if inside and not box.count_overlaps(taken):
            return True
    return False


def _marks(axes: Axes, points: Sequence[Point]) -> Iterator[Bbox]:
    """Boxes of the points and their bars, in pixels."""
    from matplotlib.transforms import Bbox

    radius = 5 * axes.figure.dpi / 72
    for point in points:
        sd = point.average.sd or 0.0
        ends = [(point.parameters, point.average.mean + way * sd) for way in (-1, 1)]
        yield Bbox(axes.transData.transform(ends)).padded(radius)


def _front_line(axes: Axes, front: Sequence[Point]) -> Iterator[Bbox]:
    """Boxes of the line through the front, in pixels."""
    from matplotlib.transforms import Bbox

    corners = [tuple(axes.transData.transform((p.parameters, p.average.mean))) for p in front]
    if corners:
        corners.append((axes.get_window_extent().x1, corners[-1][1]))
    for (x, y), (right, top) in pairwise(corners):
        yield Bbox([(x, y), (right, y)]).padded(1)
        yield Bbox([(right, y), (right, top)]).padded(1)


_OFFSETS: tuple[tuple[float, float, Literal["left", "center", "right"]], ...] = (
    *((7.0, 8.0, "left"), (7.0, -8.0, "left"), (-7.0, 8.0, "right"), (-7.0, -8.0, "right")),
    *((9.0, 0.0, "left"), (-9.0, 0.0, "right"), (0.0, 13.0, "center"), (0.0, -13.0, "center")),
    *((9.0, 18.0, "left"), (9.0, -18.0, "left"), (-9.0, 18.0, "right"), (-9.0, -18.0, "right")),
    *((9.0, 28.0, "left"), (9.0, -28.0, "left"), (-9.0, 28.0, "right"), (-9.0, -28.0, "right")),
)
"""Where a name may stand from its point, in points, the best first."""

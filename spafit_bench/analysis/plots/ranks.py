"""The critical-difference diagram of mean ranks over tasks (Demsar 2006, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spafit_bench.analysis.compare import Comparison, Ranking
from spafit_bench.analysis.plots.drawing import INK, MUTED, LineStyle, Plot, Skipped
from spafit_bench.analysis.plots.scene import NOT_COUNTED, Scene, joined
from spafit_bench.data.tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

NAME, TITLE = "critical-difference", "Mean ranks over tasks"


def critical_difference(scene: Scene, comparison: Comparison | None) -> Plot | Skipped:
    """Plot the methods' mean ranks, and bars over those that Nemenyi's test does not part."""
    ranking = comparison.ranking if comparison else None
    if ranking is None:
        why = "needs three methods or more that share two tasks or more"
        return Skipped(NAME, TITLE, f"{why} {NOT_COUNTED}")
    rows = [row for row in scene.shown if row.label in ranking.mean_ranks]
    tasks = [TASKS[name] for name in ranking.tasks]
    caption = joined(
        "Rank 1 is the best; ties share their mean rank; ranks are of means over seeds.",
        _verdict(ranking),
        *scene.left_out(rows),
        *scene.caveats(rows, tasks),
    )
    ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in ranking.mean_ranks.items())
    short = {row.label: scene.labels[row] for row in rows}
    styles = {row.label: scene.styles[row] for row in rows}
    return Plot(
        name=NAME,
        title=TITLE,
        subtitle=scene.subtitle(rows, tasks),
        caption=caption,
        alt=f"Critical-difference diagram. Mean ranks: {ranks}. {_verdict(ranking)}",
        height=0.85 + 0.21 * ((len(ranking.mean_ranks) + 1) // 2) + 0.13 * len(_bars(ranking)),
        draw=lambda figure: _draw(figure, ranking, short, styles),
    )


def _verdict(ranking: Ranking) -> str:
    tested, n = ranking.tested, len(ranking.tasks)
    if tested.p is None:
        return (
            f"No test: with {n} tasks Friedman's could not reach significance; {tested.needs} "
            "would do."
        )
    p = "p < 0.001" if tested.p < 0.001 else f"p = {tested.p:.3f}"
    if not tested.separable:
        return f"Friedman's test does not tell the methods apart ({p}, {n} tasks)."
    return (
        f"Friedman's test tells the methods apart ({p}, {n} tasks). Bars join methods whose ranks "
        f"are less than the critical difference of {ranking.critical_difference:.2f} apart "
        "(Nemenyi, 5 %)."
    )


def _bars(ranking: Ranking) -> Sequence[tuple[str, ...]]:
    """Cliques to draw: none where nothing was tested."""
    return ranking.cliques if ranking.tested.p is not None else ()


def _draw(
    figure: FigureBase, ranking: Ranking, short: dict[str, str], styles: dict[str, LineStyle]
) -> None:
    axes = figure.add_subplot()
    count, ranks = len(ranking.mean_ranks), ranking.mean_ranks
    bars = _bars(ranking)
    axes.set_xlim(0.55 - 0.14 * count, count + 0.45 + 0.14 * count)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.plot([1, count], [0, 0], color=INK, linewidth=1)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [0, 0.28], color=INK, linewidth=1)
        axes.text(tick, 0.42, str(tick), ha="center", va="bottom")
    for level, clique in enumerate(bars):
        at = [ranks[name] for name in clique]
        y = -0.45 - 0.55 * level
        axes.plot([min(at) - 0.03, max(at) + 0.03], [y, y], color=INK, linewidth=3.2,
                  solid_capstyle="butt")  # fmt: skip
    below = 0.55 * len(bars)
    half = (count + 1) // 2
    for place, (name, rank) in enumerate(ranks.items()):
        left = place < half
        level = place if left else count - 1 - place
        y = -0.95 - below - 0.9 * level
        edge = 0.9 if left else count + 0.1
        style = styles[name]
        axes.plot([rank, rank, edge], [0, y, y], color=style.color, linewidth=1.1)
        axes.plot([rank], [0], marker=style.marker, color=style.color, markersize=6, zorder=3)
        text = f"{short[name]}  {rank:.2f}" if left else f"{rank:.2f}  {short[name]}"
        axes.text(edge + (-0.06 if left else 0.06), y, text, ha="right" if left else "left",
                  va="center", fontsize=8.5)  # fmt: skip
    if ranking.tested.separable:
        _draw_ruler(axes, ranking.critical_difference)
    axes.set_ylim(-1.4 - below - 0.9 * (half - 1), 2.1 if ranking.tested.separable else 1.2)


def _draw_ruler(axes: Axes, difference: float) -> None:
    """Show how long the critical difference is."""
    axes.plot([1, 1 + difference], [1.45, 1.45], color=MUTED, linewidth=1, marker="|", markersize=6)
    axes.text(1 + difference / 2, 1.55, f"CD {difference:.2f}", ha="center", va="bottom",
              color=MUTED, fontsize=7.5)  # fmt: skip

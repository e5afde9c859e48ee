"""Run records -> figures: what a table says, for the eye.

Each module is one kind of figure; `drawing` makes files of them, `scene` is what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spafit_bench.analysis.compare import Comparison, compare_with
from spafit_bench.analysis.plots.adaptation import adaptation
from spafit_bench.analysis.plots.boundaries import boundary_map
from spafit_bench.analysis.plots.curves import LOSSES, SCORES, learning_curves
from spafit_bench.analysis.plots.differences import differences
from spafit_bench.analysis.plots.drawing import FORMATS, Plot, Skipped, figure_files, inline_svg
from spafit_bench.analysis.plots.pareto import score_parameters
from spafit_bench.analysis.plots.ranks import critical_difference
from spafit_bench.analysis.plots.scene import Scene
from spafit_bench.analysis.tables.baseline import find_baselines
from spafit_bench.analysis.tables.settings import RunGroup, Setting, matching_rows, slug
from spafit_bench.results.store import Store

__all__ = [
    "FORMATS",
    "Gallery",
    "Plot",
    "Skipped",
    "build_galleries",
    "figure_files",
    "inline_svg",
]


@dataclass(frozen=True)
class Gallery:
    """The figures of one table's runs."""

    scene: Scene
    comparison: Comparison | None
    """Of the shown methods with the baseline; None where nothing can be compared."""
    figures: tuple[Plot | Skipped, ...]


def build_galleries(
    store: Store, groups: Sequence[RunGroup], baseline: str | None = None
) -> tuple[Gallery, ...]:
    """Prepare every figure of each group; nothing is drawn yet.

    Args:
        store: where the runs' predictions are.
        groups: from `group_runs`.
        baseline: the row that others are compared with, as the tables name it; `full`, or the row
            that trains most, where it is not given.

    Raises:
        UserError: no group has such a row, or one has several.
    """
    chosen = find_baselines(groups, baseline)
    galleries = [
        _gallery(store, Scene(group, row or _usual_baseline(group)))
        for group, row in zip(groups, chosen, strict=True)
    ]
    return tuple(_named_apart(gallery, len(galleries)) for gallery in galleries)


def _usual_baseline(group: RunGroup) -> Setting:
    """Return the row of full fine-tuning with most runs: another may be an attempt given up."""
    rows = matching_rows(group, "full") or list(group.rows)
    return max(rows, key=lambda row: sum(map(len, group.rows[row].values())))


def _gallery(store: Store, scene: Scene) -> Gallery:
    ranked = [row for row in scene.shown if scene.average(row)]
    comparison = compare_with(store, scene.group, scene.baseline, scene.shown, ranked)
    figures = (
        score_parameters(scene),
        differences(scene, comparison),
        critical_difference(scene, comparison),
        learning_curves(scene, SCORES),
        learning_curves(scene, LOSSES),
        adaptation(scene),
        boundary_map(scene),
    )
    return Gallery(scene, comparison, figures)


def _named_apart(gallery: Gallery, count: int) -> Gallery:
    """Let the names of figures end in model and data where there are several."""
    if count == 1:
        return gallery
    group = gallery.scene.group
    place = slug(f"{group.model} {group.data}")
    figures = tuple(replace(figure, name=f"{figure.name}-{place}") for figure in gallery.figures)
    return replace(gallery, figures=figures)

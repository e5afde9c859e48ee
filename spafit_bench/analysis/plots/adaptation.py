"""Where a method acts: how far the parameters of each layer moved."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spafit_bench.analysis.plots.drawing import MUTED, Plot, Skipped, sequential_map
from spafit_bench.analysis.plots.scene import Scene, joined
from spafit_bench.results.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

NAME, TITLE = "adaptation", "Where training acts: how far each layer moved"
KINDS = {
    "attention": "Attention matrices",
    "ffn": "Feed-forward matrices; embeddings and the pooler's matrix",
    "bias": "Biases",
    "norm": "Normalisation gains",
}
"""Kinds of parameters of a layer, as records name them -> titles."""
_EDGES = {"embeddings": "emb", "pooler": "pool"}
Moved = Mapping[str, Mapping[str, float]]
"""Place -> kind -> relative change, mean over runs."""


@dataclass(frozen=True)
class Row:
    """One method."""

    label: str
    moved: Moved


def adaptation(scene: Scene) -> Plot | Skipped:
    """Plot the relative change of each kind of parameter in each layer, for each method."""
    rows = [row for row in scene.shown if _moved(scene.runs([row], scene.tasks))]
    if not rows:
        why = "no run has the measure: records from before it was made lack it; repeat a run"
        return Skipped(NAME, TITLE, why)
    tasks = [task for task in scene.tasks if all(_moved(scene.runs([r], [task])) for r in rows)]
    if not tasks:
        return Skipped(NAME, TITLE, "there is no task on which every method was measured")
    found = [Row(scene.labels[row], _moved(scene.runs([row], tasks))) for row in rows]
    places = _places(found)
    kinds = [k for k in KINDS if any(_value(row, p, k) for row in found for p in places)]
    if not kinds:
        return Skipped(NAME, TITLE, "no parameter has moved: the runs are too short")
    measured = [run for run in scene.runs(rows, tasks) if run.movement]
    lacking = len(scene.runs(rows, tasks)) - len(measured)
    others = [task.title for task in scene.tasks if task not in tasks]
    caption = joined(
        "Norm of the change over the norm of the pretrained parameters, adapters merged: mean over "
        "seeds, then tasks, on one logarithmic scale. Dots: frozen, exactly unmoved. Layers count "
        "from 0; emb: embeddings; pool: pooler.",
        f"{lacking} run{' lacks' if lacking == 1 else 's lack'} the measure." * bool(lacking),
        f"Not every method has {', '.join(others)}: left out." * bool(others),
        *scene.left_out(rows),
        *scene.caveats(rows, tasks),
    )
    return Plot(
        name=NAME,
        title=TITLE,
        subtitle=scene.subtitle(rows, tasks),
        caption=caption,
        alt=f"Heat maps of methods over layers. {_said(found, kinds)}",
        height=0.55 + len(kinds) * (0.42 + 0.2 * len(rows)),
        draw=lambda figure: _draw(figure, found, places, kinds),
    )


def _moved(runs: Sequence[RunRecord]) -> Moved:
    """Average relative changes over seeds, then over tasks."""
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for where, kinds in (run.movement or {}).items():
            for kind, found in kinds.items():
                if found.relative is not None:
                    shown_as = "ffn" if kind == "weight" else kind
                    values[where, shown_as][run.task].append(found.relative)
    means: dict[str, dict[str, float]] = defaultdict(dict)
    for (where, kind), by_task in values.items():
        means[where][kind] = statistics.fmean(map(statistics.fmean, by_task.values()))
    return means


def _places(rows: Sequence[Row]) -> list[str]:
    """List embeddings, layers in order, pooler: those that any method has."""
    present = {place for row in rows for place in row.moved}
    layers = sorted((place for place in present if place.isdigit()), key=int)
    first = ["embeddings"] if "embeddings" in present else []
    return [*first, *layers, *(["pooler"] if "pooler" in present else [])]


def _value(row: Row, place: str, kind: str) -> float | None:
    return row.moved.get(place, {}).get(kind)


def _said(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    """Name the place that moved most, for each kind and method."""
    said = []
    for kind in kinds:
        tops = []
        for row in rows:
            moved = {p: v for p in row.moved if p.isdigit() and (v := _value(row, p, kind))}
            if moved:
                place = max(moved, key=lambda name: moved[name])
                tops.append(f"{row.label} {moved[place]:.3f} in layer {place}")
        said.append(f"{KINDS[kind]}, largest change: {', '.join(tops) or 'none'}.")
    return " ".join(said)


def _draw(
    figure: FigureBase, rows: Sequence[Row], places: Sequence[str], kinds: Sequence[str]
) -> None:
    from matplotlib.colors import LogNorm

    values = [v for row in rows for p in places for k in kinds if (v := _value(row, p, k))]
    norm = LogNorm(vmin=min(values), vmax=max(*values, 1.01 * min(values)))
    stack: Any = figure.subplots(len(kinds), 1, squeeze=False, sharex=True).flat
    mesh: Any = None
    for axes, kind in zip(stack, kinds, strict=True):
        matrix = np.array([[_value(row, p, kind) or np.nan for p in places] for row in rows])
        mesh = axes.pcolormesh(np.ma.masked_invalid(matrix), cmap=sequential_map(), norm=norm)
        _mark_frozen(axes, rows, places, kind)
        axes.set_title(KINDS[kind])
        axes.set_yticks(np.arange(len(rows)) + 0.5, [row.label for row in rows])
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
    stack[-1].set_xticks(np.arange(len(places)) + 0.5, [_EDGES.get(p, p) for p in places])
    stack[-1].set_xlabel("layer")
    bar: Any = figure.colorbar(
        mesh, ax=list(stack), aspect=40, pad=0.015, format=lambda value, _: f"{value:g}"
    )
    bar.outline.set_visible(False)
    bar.set_label("relative change (log scale)")


def _mark_frozen(axes: Axes, rows: Sequence[Row], places: Sequence[str], kind: str) -> None:
    still = [
        (x + 0.5, y + 0.5)
        for y, row in enumerate(rows)
        for x, place in enumerate(places)
        if _value(row, place, kind) == 0
    ]
    if still:
        axes.plot(*zip(*still, strict=True), linestyle="none", marker=".", markersize=2.5,
                  color=MUTED)  # fmt: skip

"""SPAFIT's two boundaries, N1 and N2: where freezing ends and where adapters begin."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spafit_bench.analysis.plots.drawing import COLORS, Plot, Skipped, sequential_map
from spafit_bench.analysis.plots.scene import Average, Scene, joined
from spafit_bench.analysis.tables.settings import Setting
from spafit_bench.base.escaping import printable
from spafit_bench.results.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

Place = tuple[int, int]
"""N1 and N2."""
NAME, TITLE = "boundaries", "Where the strata end: N1 and N2"
_FEWEST = 3


@dataclass(frozen=True)
class Boundaries:
    """Last layer that is frozen, last one whose biases alone train, and what the rest gets.

    -1 stands for none: no frozen layer; N2 = N1, no layer of biases alone.
    """

    n1: int
    n2: int
    treatment: str


@dataclass(frozen=True)
class Grid:
    """Scores of one treatment of the late layers."""

    title: str
    averages: Mapping[Place, Average]
    rows: tuple[Setting, ...]

    @property
    def best(self) -> Place | None:
        """Where the score is highest, of choices that never collapsed."""
        sound = {place: a.mean for place, a in self.averages.items() if a.sound}
        return max(sound, key=sound.__getitem__, default=None)

    def said(self) -> str:
        """Say it without the picture."""
        text = f"{self.title}: {len(self.averages)} choices"
        if self.best is None:
            return f"{text}, each with a collapsed run"
        n1, n2 = self.best
        return f"{text}, best {self.averages[self.best].mean:.2f} at N1 {_end(n1)}, N2 {_end(n2)}"


def boundaries_of(run: RunRecord) -> Boundaries | None:
    """Read the boundaries of a run whose layers are frozen, then bias-only, then adapted.

    None for other methods. One that adapts every layer alike has them, too: before the first.
    """
    layers = [s for s in run.strata if re.fullmatch(r"\d+(-\d+)?", s.stratum)]
    ends = {"frozen": -1, "bias": -1}
    for number, stratum in enumerate(layers):
        first, _, last = stratum.stratum.partition("-")
        if stratum.treatment in ends:
            ends[stratum.treatment] = int(last or first)
        elif number == len(layers) - 1 and "lora(" in stratum.treatment:
            in_order = ends["bias"] == -1 or ends["bias"] > ends["frozen"]
            n2 = max(ends.values())
            ok = in_order and n2 + 1 == int(first)
            return Boundaries(ends["frozen"], n2, stratum.treatment) if ok else None
        else:
            return None
    return None


def boundary_map(scene: Scene) -> Plot | Skipped:
    """Plot the average score over N1 and N2, a map for each treatment of the late layers."""
    grids = _grids(scene)
    if not grids:
        return Skipped(
            NAME,
            TITLE,
            f"needs {_FEWEST} or more choices of the boundaries on the same tasks, such as "
            "--method spafit-1-2-i,spafit-1-3-i,spafit-2-3-i",
        )
    rows = [row for grid in grids for row in grid.rows]
    tasks = scene.averaged
    averages = [average for grid in grids for average in grid.averages.values()]
    spreads = [average.sd for average in averages if average.sd is not None]
    caption = joined(
        "Layers 0 to N1 are frozen, up to N2 only biases train, the rest is adapted as each map's "
        "title says; none: there are no such layers. Numbers: dev scores times 100, mean over "
        f"{'seeds' if len(tasks) == 1 else f'{len(tasks)} tasks and seeds'}; framed: the best, "
        "chosen on the dev set, which flatters it. Empty: not run, or N2 below N1.",
        f"Standard deviation over seeds: {statistics.median(spreads):.1f} (median of the choices)."
        if spreads
        else "",
        "†: a run of it collapsed; never framed." * (not all(a.sound for a in averages)),
        *scene.caveats(rows, tasks),
    )
    tallest = max(len({n1 for n1, _ in grid.averages}) for grid in grids)
    return Plot(
        name=NAME,
        title=TITLE,
        subtitle=scene.subtitle(rows, tasks),
        caption=caption,
        alt="Heat map of scores over N1 and N2. " + "; ".join(g.said() for g in grids) + ".",
        height=len(grids) * (0.75 + 0.34 * max(2, tallest)),
        draw=lambda figure: _draw(figure, grids),
    )


def _grids(scene: Scene) -> list[Grid]:
    found: dict[tuple[str, str], dict[Place, tuple[Setting, Average]]] = defaultdict(dict)
    for row, cells in scene.group.rows.items():
        average = scene.average(row)
        where = {boundaries_of(run) for runs in cells.values() for run in runs}
        place = where.pop() if len(where) == 1 else None
        if average and place:
            key, cell = (place.treatment, row.difference), (place.n1, place.n2)
            found[key].setdefault(cell, (row, average))
    return [
        Grid(
            title=printable(" · ".join(filter(None, key))),
            averages={place: average for place, (_, average) in cells.items()},
            rows=tuple(row for row, _ in cells.values()),
        )
        for key, cells in sorted(found.items())
        if len(cells) >= _FEWEST
    ]


def _draw(figure: FigureBase, grids: Sequence[Grid]) -> None:
    values = [average.mean for grid in grids for average in grid.averages.values()]
    low, high = min(values), max(values)
    stack = figure.subplots(len(grids), 1, squeeze=False)
    for axes, grid in zip(stack.flat, grids, strict=True):
        firsts = sorted({n1 for n1, _ in grid.averages})
        seconds = sorted({n2 for _, n2 in grid.averages})
        matrix = np.full((len(firsts), len(seconds)), np.nan)
        for (n1, n2), average in grid.averages.items():
            matrix[firsts.index(n1), seconds.index(n2)] = average.mean
        axes.set_title(grid.title, fontsize=8)
        axes.pcolormesh(matrix, cmap=sequential_map(), vmin=low, vmax=high)
        axes.set_xticks(np.arange(len(seconds)) + 0.5, [_end(n) for n in seconds])
        axes.set_yticks(np.arange(len(firsts)) + 0.5, [_end(n) for n in firsts])
        axes.set_xlabel("N2: last layer of biases alone")
        axes.set_ylabel("N1: last frozen layer")
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.invert_yaxis()
        for (n1, n2), average in grid.averages.items():
            x, y = seconds.index(n2), firsts.index(n1)
            is_best = (n1, n2) == grid.best
            dark = average.mean > low + 0.55 * (high - low)
            axes.text(
                x + 0.5,
                y + 0.5,
                f"{average.mean:.1f}" + "†" * (not average.sound),
                ha="center",
                va="center",
                color="#fefefe" if dark else "#010101",
                weight="bold" if is_best else "normal",
            )
            if is_best:
                axes.add_patch(_frame(x, y))


def _end(layer: int) -> str:
    return "none" if layer < 0 else str(layer)


def _frame(x: int, y: int) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (x + 0.03, y + 0.04), 0.94, 0.92, fill=False, edgecolor=COLORS[1], linewidth=2.5
    )

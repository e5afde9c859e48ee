"""A figure's words and picture, and how they become SVG, PNG and a part of an HTML page.

Colours are those of Okabe and Ito (2008), told apart by people with any colour vision, without the
yellow that white paper swallows. Every line has a dash and a marker of its own as well, so that a
figure can be read in grey.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, FigureBase

INK, MUTED, RULE, PAPER = "#1b1b1b", "#6b6b6b", "#d9d9d9", "#ffffff"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5c3e")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)))
FORMATS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "svg": {"metadata": dict.fromkeys(("Date", "Creator", "Format", "Type"))},
        "png": {"dpi": 200},
        "pdf": {"metadata": dict.fromkeys(("CreationDate", "Creator", "Producer"))},
    }
)
"""Endings of files that a figure can have -> how they are saved, alike at every time."""
WIDTH = 7.2
"""Of every figure, inches."""
_VARIABLES = MappingProxyType(
    {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"}
    | {color: f"series-{index}" for index, color in enumerate(COLORS)}
)
"""Colour -> name of the CSS variable that replaces it in a page."""
_FONT = {
    **{"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8},
    **{"axes.titlesize": 9, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5},
    **{"axes.titlelocation": "left", "axes.titleweight": "bold"},
}
_STYLE: Mapping[str, Any] = MappingProxyType(
    _FONT
    | {
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    | dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK)
    | dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK)
    | dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED)
    | {"grid.color": RULE, "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.linewidth": 0.7}
    | {"figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "auto"}
    | {"lines.linewidth": 1.5, "lines.markersize": 5, "hatch.color": RULE, "hatch.linewidth": 0.6}
)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure."""

    name: str
    """Also of its files, without their ending."""
    title: str
    subtitle: str
    """Which runs: model, data, number of tasks and seeds."""
    caption: str
    """How to read it, and every caveat that the tables mark."""
    alt: str
    """What it shows, for those who cannot see it."""
    height: float
    """Of the drawing without its words, inches."""
    draw: Callable[[FigureBase], None]


@dataclass(frozen=True)
class Skipped:
    """A figure that there is no data for."""

    name: str
    title: str
    why: str


def plotting_style(name: str = "") -> AbstractContextManager[None]:
    """Apply the house's style; with a name, make the SVG's identifiers depend on it alone."""
    import matplotlib as mpl

    style: Any = {**_STYLE, "svg.hashsalt": name}
    return mpl.rc_context(style)


def figure_files(
    plot: Plot, formats: Sequence[str] = ("svg", "png"), *, title: bool = True
) -> dict[str, bytes]:
    """Draw a figure on white; return its files by name.

    Args:
        plot: the figure.
        formats: of `FORMATS`.
        title: whether title, subtitle and caption stand around it.
    """
    with plotting_style(plot.name):
        figure = _framed(plot) if title else _bare(plot)
        return {
            f"{plot.name}.{name}": _saved(figure, format=name, facecolor=PAPER, **FORMATS[name])
            for name in formats
        }


def inline_svg(plot: Plot) -> str:
    """Draw a figure as an element for an HTML page, without title and caption.

    Its colours are CSS variables (`--ink`, `--series-0`, ...), its identifiers begin with its name,
    and there is nothing in it that a browser would fetch.
    """
    with plotting_style(plot.name):
        text = _saved(_bare(plot), format="svg", **FORMATS["svg"]).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = _own_ids(text, plot.name)
    for color, name in _VARIABLES.items():
        text = re.sub(color, f"var(--{name})", text, flags=re.I)
    text = re.sub(r"<[^>]+>", _short_numbers, re.sub(r"\s*\n\s*", " ", text))
    text = re.sub(r'(?<=<svg)[^>]*?viewBox="([^"]*)"[^>]*', r' viewBox="\1"', text, count=1)
    role = f' role="img" aria-label="{escape(plot.alt)}"'
    return text.replace("> <", "><").replace("<svg", f"<svg{role}", 1).strip()


def _short_numbers(tag: re.Match[str]) -> str:
    """Cut coordinates, which stand in tags, to hundredths of a point; text stays as it is."""
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0])


def _own_ids(svg: str, name: str) -> str:
    """Keep only identifiers that something refers to, and make them unique in a page."""
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))

    def renamed(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r' id="([^"]*)"', renamed, svg)
    return re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)


def _bare(plot: Plot) -> Figure:
    """Draw the figure alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, plot.height), layout="constrained")
    plot.draw(figure)
    return figure


def _framed(plot: Plot) -> Figure:
    """Draw title, figure and caption above one another."""
    from matplotlib.figure import Figure

    caption = textwrap.wrap(plot.caption, 132)
    subtitle = textwrap.wrap(plot.subtitle, 108)
    top, bottom = 0.34 + 0.16 * len(subtitle), 0.12 + 0.135 * len(caption)
    total = top + plot.height + bottom
    figure = Figure(figsize=(WIDTH, total), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=[top, plot.height, bottom])
    head, body, foot = parts
    _hold(head, foot)
    left = 0.012
    head.text(left, 1 - 0.08 / top, plot.title, va="top", fontsize=11, weight="bold")
    lines = "\n".join(subtitle)
    head.text(left, 1 - 0.28 / top, lines, va="top", fontsize=8.5, color=MUTED, linespacing=1.25)
    foot.text(left, 1, "\n".join(caption), va="top", fontsize=7, color=MUTED, linespacing=1.35)
    plot.draw(body)
    return figure


def _hold(*parts: FigureBase) -> None:
    """Keep a part's height: the layout takes room from parts without axes."""
    for part in parts:
        part.add_subplot().set_axis_off()


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **options)
    return buffer.getvalue()


@dataclass(frozen=True)
class LineStyle:
    """How a method looks in every figure."""

    color: str
    marker: str
    dash: Any


def line_styles(count: int) -> tuple[LineStyle, ...]:
    """Give each of some methods its colour, marker and dash; beyond seven, another pairing."""
    size = len(COLORS)
    return tuple(
        LineStyle(
            color=COLORS[index % size],
            marker=MARKERS[(index + index // size) % size],
            dash=DASHES[index % len(DASHES)],
        )
        for index in range(count)
    )


def spread_out(values: list[float], gap: float, bounds: tuple[float, float]) -> list[float]:
    """Move positions as little as labels need to stand `gap` apart within bounds, in order."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    clusters: list[tuple[float, int]] = []  # middle, size
    for index in order:
        middle, size = _within(values[index], 1, gap, bounds), 1
        while clusters and middle - clusters[-1][0] < gap * (size + clusters[-1][1]) / 2:
            before, count = clusters.pop()
            together = (middle * size + before * count) / (size + count)
            size += count
            middle = _within(together, size, gap, bounds)
        clusters.append((middle, size))
    places = [at + gap * (i - (size - 1) / 2) for at, size in clusters for i in range(size)]
    moved = dict(zip(order, places, strict=True))
    return [moved[index] for index in range(len(values))]


def _within(middle: float, size: int, gap: float, bounds: tuple[float, float]) -> float:
    half = gap * (size - 1) / 2
    return max(min(middle, bounds[1] - half), bounds[0] + half)


def sequential_map() -> Colormap:
    """Return a colour map from pale to dark, ordered in grey too, whose palest is not paper."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["YlGnBu"](np.linspace(0.12, 1, 256)))

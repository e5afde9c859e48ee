"""Tiny charts of one run, as SVG that takes a few hundred bytes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def sparkline(values: Sequence[float], label: str) -> str:
    """Draw a line without axes for a table's cell; a dot marks its end."""
    return _drawn(values, label, "spark", (64, 18))


def chart(values: Sequence[float], title: str) -> str:
    """Draw a line with its first, least, largest and last value in words."""
    said = f"{title}: {values[0]:.4g} to {values[-1]:.4g}"
    if len(values) > 2:
        said += f" (least {min(values):.4g}, largest {max(values):.4g})"
    drawn = _drawn(values, said, "chart", (240, 88))
    return f"<figure>{drawn}<figcaption>{escape(said)}</figcaption></figure>"


def _drawn(values: Sequence[float], label: str, name: str, size: tuple[int, int]) -> str:
    width, height = size[0] - 6, size[1] - 6
    low, high = min(values), max(values)
    span, steps = (high - low) or 1.0, max(1, len(values) - 1)
    points = [
        (3 + width * index / steps, 3 + height * (1 - (value - low) / span))
        for index, value in enumerate(values)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return (
        f'<svg class="{name}" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="{escape(label)}"><polyline points="{line}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2"/></svg>'
    )

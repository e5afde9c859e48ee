"""Forms of output that commands share."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Listing:
    """Rows of one kind of thing, for `list`."""

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]


def columns(listing: Listing) -> str:
    """Align a listing, one row per line, cut to nothing: it is made to be piped."""
    rows = [[_cell(column, row[column]) for column in listing.columns] for row in listing.rows]
    grid = [list(listing.columns), *rows]
    widths = [max(len(line[i]) for line in grid) for i in range(len(listing.columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in grid
    )


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if column == "score" else str(value)


def rendered(tables: Sequence[Any], format_: str) -> str:
    """Render tables for stdout, coloured on a terminal."""
    from spafit_bench.analysis.tables.render import render

    width = max(80, shutil.get_terminal_size((80, 24)).columns)
    return render(tables, format_, width, color=sys.stdout.isatty())


def to_json(body: Any) -> str:
    """Return one JSON object for people and programs."""
    return json.dumps(body, indent=2, ensure_ascii=False)

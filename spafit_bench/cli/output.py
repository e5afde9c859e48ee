"""What commands print on stdout: text, JSON objects and aligned columns."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer


def print_text(text: str) -> None:
    """Print `text` and a final newline; end quietly if the reader (head, less) has closed."""
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for later output
        raise typer.Exit(128 + signal.SIGPIPE) from None


def print_json(body: Any) -> None:
    """Print one JSON object."""
    print_text(json.dumps(body, indent=2, ensure_ascii=False))


def columns(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Align rows under a header, one line a row; nothing is cut, so other programs can read it."""
    grid = [list(names), *([_cell(name, row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in grid) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in grid
    )


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if name == "score" else str(value)

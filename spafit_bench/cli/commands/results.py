"""The tables that `demo` prints at its end."""

from __future__ import annotations

from pathlib import Path

from spafit_bench.cli.results import tables_text


def table(results: Path, format_: str, out: None) -> str:  # noqa: ARG001
    """Return all tables of a results folder for the terminal."""
    return tables_text(results)

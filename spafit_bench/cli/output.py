"""What commands print on stdout: text, JSON objects and aligned columns."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from spafit_bench.base.errors import UserError
from spafit_bench.base.escaping import json_text, printable

_SILENT_S = 2.0
"""Seconds after which a command says what it waits for."""


class _BestEffort(io.FileIO):
    """A file that drops what it cannot write."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def prepare_streams() -> None:
    """Let no command fail because its progress, which goes to stderr, cannot be written."""
    # Python has no stream where a descriptor is closed. Without a descriptor, 0 to 2 would be given
    # to the next files that are opened. Nothing can be written to this stdout: print_text says so.
    sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115 (until the end)
    sys.stdout = sys.stdout or Path(os.devnull).open()  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # for paths and symbols that the encoding lacks
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        raw = io.BufferedWriter(_BestEffort(2, "w", closefd=False))
        encoding = sys.stderr.encoding
        sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on stderr what takes long: a spinner on a terminal, else a line after two seconds."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status(what):
            yield
        return
    timer = threading.Timer(_SILENT_S, console.print, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def print_text(text: str, *, styled: bool = False) -> None:
    """Print `text` and a final newline; end quietly if the reader (head, less) has closed.

    Args:
        text: what to print; its control characters become visible escapes.
        styled: whether the text has ANSI styles of ours; its names were made printable before.

    Raises:
        UserError: standard output is closed, or its disk is full.
    """
    try:
        sys.stdout.write((text if styled else printable(text)).removesuffix("\n") + "\n")
        sys.stdout.flush()
    except OSError as error:
        if sys.stdout.writable():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for later output
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(128 + signal.SIGPIPE) from None
        raise UserError(
            f"standard output cannot be written ({error.strerror or error}); everything else of "
            "this command is done"
        ) from None


def print_note(text: str, label: str = "", color: str | None = None) -> None:
    """Print a line on stderr, after a coloured label; its control characters become visible."""
    if label:
        typer.secho(f"{label}: ", fg=color, bold=color == "red", nl=False, err=True)
    typer.echo(printable(text), err=True)


def print_json(body: Any) -> None:
    """Print one JSON object."""
    print_text(json_text(body, indent=2))


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

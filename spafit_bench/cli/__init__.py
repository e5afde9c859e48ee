"""The command line: reads flags, calls the core, prints what it returns.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import logging
import sys
import traceback

import typer

from spafit_bench.base import native_settings

from spafit_bench.cli import training  # isort: skip (registered in the order of --help)
from spafit_bench.cli import results, planning, models, upkeep, checks  # isort: skip
from spafit_bench.base.errors import UserError
from spafit_bench.cli.app import app

__all__ = ["app", "checks", "main", "models", "planning", "results", "training", "upkeep"]


class _Warnings(logging.Handler):
    """Shows what the package logs as a warning."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.secho("warning: ", fg="yellow", nl=False, err=True)
        typer.echo(record.getMessage(), err=True)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    native_settings.set_defaults()
    debug = "--debug" in sys.argv
    log = logging.getLogger("spafit_bench")
    if not log.handlers:
        log.addHandler(_Warnings(logging.WARNING))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # paths and symbols that it has no code for
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="spafit-bench")
    except UserError as error:
        if debug:
            traceback.print_exc()
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(2)

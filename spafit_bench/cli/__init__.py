"""The command line: it reads flags, calls the other rooms and prints what they return.

One file a group of commands; `views` draws on the terminal. Commands import heavy libraries inside
their functions, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import sys
import traceback

import typer

from spafit_bench.base import process

from spafit_bench.cli import running  # isort: skip (registered in the order of --help)
from spafit_bench.cli import results, lists, planning, models, upkeep, checks  # isort: skip
from spafit_bench.base.errors import UserError
from spafit_bench.base.stop import interrupt_on_signals
from spafit_bench.cli.app import app
from spafit_bench.cli.output import prepare_streams

__all__ = ["app", "checks", "lists", "main", "models", "planning", "results", "running", "upkeep"]


class _Warnings(logging.Handler):
    """Prints the package's log messages as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.secho("warning: ", fg="yellow", nl=False, err=True)
        typer.echo(record.getMessage(), err=True)


def main() -> None:
    """Run the command line; a UserError is printed as one message, with exit code 2."""
    interrupt_on_signals()
    prepare_streams()
    process.set_native_defaults()
    debug = "--debug" in sys.argv
    log = logging.getLogger("spafit_bench")
    if not log.handlers:
        log.addHandler(_Warnings(logging.WARNING))
    try:
        if sys.flags.optimize > 1:
            raise UserError("python -OO removes docstrings, which transformers needs; leave it out")
        app(prog_name="spafit-bench")
    except UserError as error:
        if debug:
            traceback.print_exc()
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(2)

"""The command line: it reads flags, calls the other rooms and prints what they return.

One file a group of commands; `views` draws on the terminal. Commands import heavy libraries inside
their functions, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback

from spafit_bench.base import process

from spafit_bench.cli import running  # isort: skip (registered in the order of --help)
from spafit_bench.cli import results, lists, planning, models, upkeep, checks  # isort: skip
from spafit_bench.base.errors import UserError
from spafit_bench.base.stop import interrupt_on_signals
from spafit_bench.cli.app import app
from spafit_bench.cli.output import prepare_streams, print_note

__all__ = ["app", "checks", "lists", "main", "models", "planning", "results", "running", "upkeep"]


class _Warnings(logging.Handler):
    """Prints the package's log messages as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        print_note(record.getMessage(), "warning", "yellow")


def main() -> None:
    """Run the command line.

    A UserError, or a file that cannot be used, is one message and exit code 2.
    """
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
        print_note(str(error), "error", "red")
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        if debug:
            traceback.print_exc()
        name = os.fsdecode(error.filename)
        shown = name if len(name) <= 100 else f"{name[:60]}... ({len(name)} characters)"
        print_note(f"{shown}: {error.strerror}; check the name and the path", "error", "red")
        sys.exit(2)

"""The command that the user typed, as records show it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import PurePath

VARIABLE = "SPAFIT_BENCH_COMMAND"
"""Holds it in the processes that a command starts."""


def typed_command() -> str:
    """Return the command, quoted for a shell, without the folder that the program is in."""
    if given := os.environ.get(VARIABLE):
        return given
    program = PurePath(sys.argv[0]).name
    return shlex.join(["spafit-bench" if program == "__main__.py" else program, *sys.argv[1:]])

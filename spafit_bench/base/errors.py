"""The one exception that is a message to the user rather than a bug."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Bad input or environment: the message says what was wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class UnreachableError(UserError):
    """The hub did not answer, and what was asked for is not in its cache."""


class DamagedError(UserError):
    """A file of a results folder is not as it was written; nothing of it is believed."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = f"{path} {problem}"
        super().__init__(
            f"{self.problem}; the command that made the run sets it aside and repeats it"
        )


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say what `name` may have been meant to be: the nearest match, else every choice."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}? (choices: {', '.join(known)})"
    return f"choices: {', '.join(known)}"

"""The one exception that is a message to the user rather than a bug."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Bad input or environment: the message says what was wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class UnreachableError(UserError):
    """The hub did not answer, and what was asked for is not in its cache."""


class BadFileError(UserError):
    """A file of a results folder cannot be used."""

    remedy: str

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = f"{path} {problem}"
        super().__init__(f"{self.problem}; {self.remedy}")


class DamagedError(BadFileError):
    """A file of a results folder is missing, or was changed after it was written."""

    remedy = "the command that made the run sets it aside and repeats it"


class UnreadableError(BadFileError):
    """A file of a results folder cannot be read now (permissions, device); it may be sound."""

    remedy = "it may be sound, so it is left as it is: make it readable and try again"


def cannot_read(path: Path, error: OSError) -> BadFileError:
    """Return the error for a file of a results folder that could not be read.

    A file that is missing, or a folder in its place, is damage. Any other cause lies outside.
    """
    missing = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
    kind = DamagedError if error.errno in missing else UnreadableError
    return kind(path, f"cannot be read ({error.strerror or error})")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return a hint for a name that is not known: the nearest choice, and every choice."""
    known = sorted(choices)
    lower = {choice.lower(): choice for choice in known}
    close = difflib.get_close_matches(name[:100].lower(), lower, n=1, cutoff=0.5)
    if close:
        return f"did you mean {lower[close[0]]!r}? (choices: {', '.join(known)})"
    return f"choices: {', '.join(known)}"


def known_name(name: str, choices: Iterable[str]) -> str:
    """Return the choice that differs from `name` only in case, hyphens and underscores.

    If there is none, return `name` itself: whoever looks it up reports that it is unknown.
    """

    def letters(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    choices = list(choices)
    if name in choices:
        return name
    return next((choice for choice in choices if letters(choice) == letters(name)), name)

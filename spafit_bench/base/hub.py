"""Files of a Hugging Face repository: data sets and models, through the hub's own cache.

Honours HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_TOKEN as `huggingface_hub` does, which is
imported only when something is fetched.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from spafit_bench.base.errors import UnreachableError, UserError

RepoType = Literal["model", "dataset"]

ANSWER_TIMEOUT_S = 8.0
"""How long the hub may take to say that it is there, name resolution included."""

_MOST_NAMED = 6
"""Files that a message names; a model's dozen patterns would hide what it says."""

WAYS_OUT = (
    "Without the hub: --data PATH for GLUE files on this machine, --model PATH for a checkpoint "
    "folder, or --preset smoke, which downloads nothing"
)


@dataclass(frozen=True)
class Fetched:
    """Where a repository's files are."""

    path: Path
    """A folder of the cache with the repository's layout; maybe with other files of it, too."""
    revision: str
    """Commit."""


def fetch(
    repo_id: str,
    *,
    repo_type: RepoType,
    revision: str | None,
    patterns: Sequence[str],
    offline: bool,
    required: Sequence[str] = (),
) -> Fetched:
    """Fetch files of a repository, or take them from the cache where the hub does not answer.

    Args:
        repo_id: such as `nyu-mll/glue`.
        repo_type: what kind of repository.
        revision: branch, tag or commit; None for the main branch.
        patterns: what to fetch, as in `fnmatch`; at least one file must match.
        offline: take the cache alone.
        required: those of `patterns` that must each match a file.

    Raises:
        UserError: no such repository, revision or file; no access; or neither the hub nor the
            cache has it.
    """
    from huggingface_hub import constants, snapshot_download

    _quieten()
    what = f"{repo_type} {repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    where = f"{constants.ENDPOINT} (cache: {constants.HF_HUB_CACHE})"
    if offline or constants.HF_HUB_OFFLINE:
        failure: str | None = f"{'--offline' if offline else 'HF_HUB_OFFLINE'} is set"
    else:
        failure = _failure_to_answer(repo_id, repo_type, revision, what)
    try:
        path = snapshot_download(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=failure is not None,
        )
    except Exception as error:  # the library's and its HTTP client's errors share no base class
        problem = f"cannot fetch {what}: {_one_line(error)}"
        if failure:
            files = ", ".join(patterns) if len(patterns) <= _MOST_NAMED else "it"
            problem = f"{what}: {failure}, and the cache does not have {files}"
        refusal = _refusal(error, what)
        kind = UserError if refusal else UnreachableError
        raise kind(refusal or f"{problem}. Tried {where}. {WAYS_OUT}") from error
    found = [file.relative_to(path).as_posix() for file in Path(path).rglob("*") if file.is_file()]
    lacking = [name for name in required if not any(fnmatch(file, name) for file in found)]
    if not any(fnmatch(file, name) for file in found for name in patterns):
        lacking = list(patterns)
    if lacking:
        problem = f"{what} has no {', '.join(lacking)}"
        if failure:
            problem = f"{what}: {failure}, and the cache does not have {', '.join(lacking)}"
        raise UserError(f"{problem}. Tried {where}. {WAYS_OUT}")
    return Fetched(path=Path(path), revision=Path(path).name)


def why_unreachable(repo_id: str, repo_type: RepoType, *, timeout_s: float) -> str | None:
    """Say why a repository of the hub cannot be reached from here; None if it can.

    Honours HF_HUB_OFFLINE and HF_ENDPOINT.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    _quieten()
    try:
        return _failure_to_answer(repo_id, repo_type, None, repo_id, timeout_s=timeout_s)
    except UserError as error:
        return str(error)


def _failure_to_answer(
    repo_id: str,
    repo_type: RepoType,
    revision: str | None,
    what: str,
    *,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> str | None:
    """Ask the hub for a repository and say why that failed, None if it did not.

    In a thread of its own: name resolution has no time limit that a program could set, and the
    library waits and tries again for minutes where a user wants to know at once.
    """
    from huggingface_hub import HfApi

    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().repo_info(repo_id, repo_type=repo_type, revision=revision, timeout=5.0)
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        return f"the hub did not answer in {timeout_s:g} s"
    error = outcome[0]
    if error is None:
        return None
    refusal = _refusal(error, what)
    if refusal:
        raise UserError(refusal) from error
    return f"the hub cannot be reached ({_one_line(error)})"


def _refusal(error: Exception, what: str) -> str | None:
    """Say what the hub refused; None if the error is not a refusal."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{what} is gated: accept its terms on its page, then log in with `hf auth login`, "
            f"or set HF_TOKEN. {WAYS_OUT}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no {what}, or it is private: check the name (and that no local folder "
            f"was meant), or log in with `hf auth login`. {WAYS_OUT}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no {what}: check --revision (a branch, tag or commit). {WAYS_OUT}"
    if isinstance(error, errors.HFValidationError):
        return (
            f"{what}: there is no such folder, and it cannot be a name on the hub "
            f"({_one_line(error)}). {WAYS_OUT}"
        )
    return None


def _quieten() -> None:
    """Leave it to this module's messages to say what went wrong; bars are for terminals."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        disable_progress_bars()


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")

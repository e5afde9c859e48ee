"""SHA-256 of every file of a folder, kept beside them as `sha256sum --check` reads it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from spafit_bench.base.errors import DamagedError, cannot_read

SUMS = "SHA256SUMS"
_DIGEST = re.compile("[0-9a-f]{64}")


def sums_of(files: Mapping[str, bytes]) -> bytes:
    """Return the content of `SHA256SUMS` for files of these names and contents."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def read_sums(folder: Path) -> dict[str, str] | None:
    """Return file name -> SHA-256, or None if the folder has no `SHA256SUMS`.

    Raises:
        DamagedError: not a list of checksums.
        UnreadableError: it cannot be read now.
    """
    path = folder / SUMS
    try:
        _refuse_pipes(path)
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_read(path, error) from None
    except UnicodeDecodeError as error:
        raise DamagedError(path, f"cannot be read ({error})") from None
    sums = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if not _DIGEST.fullmatch(digest) or Path(name).name != name or name in ("", ".."):
            raise DamagedError(path, "is not a list of checksums")
        sums[name] = digest
    return sums


def read_checked(path: Path) -> bytes:
    """Return a file's content, after a check that it is what was written.

    Versions before 0.1 wrote no `SHA256SUMS`, so their files cannot be checked.

    Raises:
        DamagedError: it was changed since, or it is missing.
        UnreadableError: it cannot be read now.
    """
    try:
        _refuse_pipes(path)
        content = path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from None
    _compare(path, hashlib.sha256(content).hexdigest(), read_sums(path.parent))
    return content


def check_file(path: Path) -> None:
    """Raise as `read_checked` does, without keeping the content in memory."""
    sums = read_sums(path.parent)
    try:
        _refuse_pipes(path)
        if sums is None:
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_read(path, error) from None
    _compare(path, digest, sums)


def _refuse_pipes(path: Path) -> None:
    """Refuse what is neither a file nor missing: opening a named pipe would block."""
    if path.exists() and not path.is_file():
        raise DamagedError(path, "is not a plain file")


def _compare(path: Path, digest: str, sums: Mapping[str, str] | None) -> None:
    if sums is not None and sums.get(path.name) != digest:
        with suppress(OSError):
            os.utime(path)  # so that `check_folder` finds it, whoever altered it
        raise DamagedError(
            path, f"was changed after it was written (its SHA-256 is not the one in {SUMS})"
        )


def check_folder(folder: Path) -> None:
    """Check that a folder's files are there and, if they were touched since, what was written.

    Reading the adapters of hundreds of runs would take minutes, so a file is only read here if it
    is newer than its checksum. The others are checked when they are used (`check_file`).

    Raises:
        DamagedError: one is missing or was changed.
        UnreadableError: one cannot be read now.
    """
    sums = read_sums(folder)
    if sums is None:
        return
    try:
        written_ns = (folder / SUMS).stat().st_mtime_ns
        touched = [n for n in sums if (folder / n).stat().st_mtime_ns > written_ns]
    except OSError as error:
        raise cannot_read(Path(error.filename), error) from None
    for name in touched:
        check_file(folder / name)

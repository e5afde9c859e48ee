"""Write files that appear whole or not at all, and that survive a power failure.

A file's content is synced before its name is: a name that survives never stands for half a file.
Syncing the folder then makes the name itself survive.
"""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path that replaces `path` if the block succeeds."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(path: Path) -> None:
    """Remove the temporary files of killed processes that were replacing a file.

    No living process may be replacing it. A file that cannot be removed now is left for later.
    """
    for temporary in path.parent.glob(f".{glob.escape(path.name)}-????????"):
        with suppress(OSError):
            temporary.unlink()


def make_durably(folder: Path) -> None:
    """Make a folder and its parents so that they survive a power failure."""
    if not folder.is_dir():
        make_durably(folder.parent)
        with suppress(FileExistsError):  # another process made it now; else what follows says so
            folder.mkdir()
        sync_folder(folder.parent)


def write_durably(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file that survives a power failure once its folder has been synced."""
    with path.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """Return this process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Arrays on disk that runs and processes share: bounded in size, checked, memory-mapped.

An entry is one file: eight bytes with the length of a JSON header, the header, the arrays, and the
SHA-256 of all that. It appears whole (written beside, synced, renamed), so any number of processes
may read and write at once. Two processes may write the same entry, or an entry may be refused
because another process has reserved the space. Use `alone` if computing it twice is expensive.

Files have the rights that the user's umask and the folder give, so a group can share a folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from spafit_bench.base.errors import UserError

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "SPAFIT_BENCH_CACHE_DIR"
SIZE_VARIABLE = "SPAFIT_BENCH_CACHE_GB"
DEFAULT_GB = 4.0

_ALIGNMENT = 64
_DIGEST_BYTES = 32
_ENTRY, _DAMAGED, _UNFINISHED, _LOCK = ".arrays", ".damaged", ".unfinished", ".lock"
_ABANDONED_AFTER_S = 600.0
"""An unfinished file that is older than this belongs to a process that was killed."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Streamed:
    """An array that is computed piece by piece while it is written, to save memory."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Iterable[np.ndarray]
    """Its elements in C order."""


class _DamagedEntry(Exception):  # noqa: N818 (found and set aside, not an error of ours)
    pass


@dataclass(frozen=True)
class ArrayCache:
    """One kind of entries in a folder of its own.

    On a local disk nothing here stops a run: an entry that cannot be read counts as missing, and
    one that cannot be written is not kept, with a warning. On NFS a mapped entry that another
    machine removes is gone at once, and reading it ends the process (SIGBUS).
    """

    folder: Path
    max_bytes: int
    """The least recently used entries are removed first."""

    def load(self, key: str) -> Arrays | None:
        """Return the arrays of `key`, read-only and memory-mapped; None if there is no entry.

        A damaged entry is renamed, so that it is computed again.
        """
        path = self.folder / f"{key}{_ENTRY}"
        try:
            arrays = _read(path, key)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s: cannot be read (%s); it is computed again", path, error.strerror)
            return None
        except _DamagedEntry as error:
            log.warning("%s: %s; it is set aside and computed again", path, error)
            with suppress(OSError):  # another process was faster
                path.replace(path.with_suffix(_DAMAGED))
            return None
        with suppress(OSError):  # a read-only cache is still useful
            os.utime(path)
        return arrays

    def save(self, key: str, arrays: Mapping[str, np.ndarray | Streamed]) -> None:
        """Keep arrays under `key`, a valid file name, if the bound allows it."""
        header = _header(key, arrays)
        sizes = [_num_bytes(array.dtype, array.shape) for array in arrays.values()]
        size = len(header) + sum(size + -size % _ALIGNMENT for size in sizes) + _DIGEST_BYTES
        if size > self.max_bytes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._make_room(size):
                self._write(self.folder / f"{key}{_ENTRY}", size, _pieces(header, arrays))
        except OSError as error:
            log.warning("%s: nothing can be kept here (%s)", self.folder, error.strerror)

    @contextmanager
    def alone(self, key: str, stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Let only one process at a time compute the entry of `key`; others wait.

        It does not block `load` and `save`. On a file system without locks, nobody waits.

        Raises:
            KeyboardInterrupt: `stop` returned true while waiting.
        """
        path = self.folder / f"{key}{_LOCK}"
        lock = FileLock(path, fallback_to_soft=False, poll_interval=0.1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(cancel_check=stop)
        except TimeoutError:
            raise KeyboardInterrupt from None
        except OSError as error:
            log.debug("%s: cannot be locked (%s)", path, error.strerror)
        try:
            yield
        finally:
            if lock.is_locked:
                path.unlink(missing_ok=True)
                lock.release()

    def _write(self, path: Path, size: int, pieces: Iterable[bytes]) -> None:
        temporary = path.with_name(f"{secrets.token_hex(8)}{_UNFINISHED}")
        try:
            digest = hashlib.sha256()
            with temporary.open("xb") as file:
                file.truncate(size)  # other processes see at once how much space it will take
                for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used entries until `size` bytes fit; return whether they do."""
        entries: list[tuple[int, Path]] = []
        total = size
        for used_at, found, path in sorted(self._files()):
            if path.suffix != _UNFINISHED:
                entries.append((found, path))
            elif time.time() - used_at > _ABANDONED_AFTER_S:
                path.unlink(missing_ok=True)
            else:
                total += found
        if total > self.max_bytes:  # removing entries would not help
            return False
        total += sum(found for found, _ in entries)
        for found, path in entries:
            if total > self.max_bytes:
                path.unlink(missing_ok=True)
                total -= found
        return True

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield the time of last use, the size and the path of each file of the cache."""
        for path in self.folder.iterdir():
            if path.suffix in (_ENTRY, _DAMAGED, _UNFINISHED):
                with suppress(FileNotFoundError):  # another process removed it
                    stat = path.stat()
                    yield stat.st_mtime, stat.st_size, path


def user_cache(kind: str) -> ArrayCache | None:
    """Return the user's cache of one kind; None if it is switched off.

    `SPAFIT_BENCH_CACHE_DIR` is the folder (else `spafit-bench` in `XDG_CACHE_HOME` or `~/.cache`),
    `SPAFIT_BENCH_CACHE_GB` its size in 10^9 bytes per kind; 0 switches it off.

    Raises:
        UserError: the size is not a number.
    """
    text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise UserError(
            f"{SIZE_VARIABLE}={text!r}: must be a number of gigabytes, such as {DEFAULT_GB:g}; "
            "0 keeps nothing"
        )
    folder = user_folder()
    if folder is None or gigabytes == 0:
        return None
    return ArrayCache(folder / kind, int(gigabytes * 1e9))


def user_folder() -> Path | None:
    """Return the folder of the user's caches; None for a user without a home."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if Path(shared).is_absolute():  # the specification says to ignore others
        return Path(shared) / "spafit-bench"
    try:
        return Path.home() / ".cache" / "spafit-bench"
    except RuntimeError:  # a user without a home
        return None


def _header(key: str, arrays: Mapping[str, np.ndarray | Streamed]) -> bytes:
    table = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    header = json.dumps({"key": key, "arrays": table}).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def _num_bytes(dtype: np.dtype[Any], shape: Iterable[int]) -> int:
    return math.prod(shape) * dtype.itemsize


def _pieces(header: bytes, arrays: Mapping[str, np.ndarray | Streamed]) -> Iterator[bytes]:
    """Yield the bytes of an entry without its digest; every array starts at an aligned offset."""
    yield header
    for array in arrays.values():
        size = 0
        for chunk in array.chunks if isinstance(array, Streamed) else (array,):
            size += chunk.nbytes
            yield chunk.tobytes()
        assert size == _num_bytes(array.dtype, array.shape), (size, array.shape)
        yield bytes(-size % _ALIGNMENT)


def _read(path: Path, key: str) -> Arrays:
    try:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except ValueError:  # an empty file cannot be mapped
        raise _DamagedEntry("empty") from None
    content = np.asarray(mapped)  # plain arrays are faster to index
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(body.data).digest() != digest.tobytes():
        raise _DamagedEntry("damaged (its checksum differs)")
    start = 8 + int.from_bytes(body[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(body[8:start].tobytes())
    if header["key"] != key:
        raise _DamagedEntry("of another key")
    arrays: Arrays = {}
    for name, (dtype, shape) in header["arrays"].items():
        size = _num_bytes(np.dtype(dtype), shape)
        arrays[name] = body[start : start + size].view(dtype).reshape(shape)
        start += size + -size % _ALIGNMENT
    return arrays

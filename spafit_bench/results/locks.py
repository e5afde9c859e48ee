"""Locks on runs: many processes may share a results folder, and each run is done by one of them.

The lock of a run is an advisory lock (`flock`) on the file `locks/<run_id>`, which says who holds
it. The kernel, or the file server, releases the lock when its owner closes the file or dies. So
nothing times out, and nobody judges whether an owner is alive.

The owner removes the file while it still holds the lock. A process that opened the file just before
gets a lock on a file without a name, which `filelock` notices.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from spafit_bench.base.errors import UserError
from spafit_bench.results.record import checked_run_id

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of `flock` on a file system without locks."""


class RunLock:
    """The lock of one run, held until `release`, the end of a `with` block or death."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others have the run; does nothing in a forked child, which inherits no lock."""
        if self._lock.is_locked:
            with suppress(OSError):
                Path(self._lock.lock_file).unlink(missing_ok=True)
            with suppress(OSError):
                self._lock.release()


class RunLocks:
    """The locks that one process holds on the runs of one results folder."""

    def __init__(self, results: Path, *, needed: bool = True) -> None:
        """Write nothing yet; `needed` is False if no other process does these runs.

        A file system without locks is then no error.
        """
        self.folder = results / "locks"
        self._needed = needed
        self._held: list[RunLock] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release every lock of this process, and remove the lock files of killed processes."""
        for lock in self._held:
            lock.release()
        with suppress(UserError):
            self.held()
        self._held.clear()

    def check(self) -> None:
        """Raise a UserError if locks do not work here; call it before the first run."""
        probe = f"check-{secrets.token_hex(8)}"
        first, second = self.acquire(probe), self.acquire(probe)
        for lock in (first, second):
            if lock is not None:
                lock.release()
        if second is not None:
            problem = OSError(errno.ENOLCK, "two processes can hold the same lock")
            self._handle(self.folder, problem)

    def acquire(self, run_id: str) -> RunLock | None:
        """Lock a run; return None if another process holds it (or this one does already).

        Raises:
            UserError: the run cannot be locked; the message names the path and says why.
        """
        path = self.folder / checked_run_id(run_id)
        lock = FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=_write_holder)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as error:
            self._handle(path, error)
            with suppress(OSError):
                path.unlink(missing_ok=True)
        self._held.append(RunLock(lock))
        return self._held[-1]

    def holder(self, run_id: str) -> str:
        """Say which process holds a run that could not be acquired."""
        path, text = self.folder / checked_run_id(run_id), ""
        with suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
        return " ".join(text.split())[:200] or "another process"

    def held(self) -> set[str]:
        """Return the runs that processes hold, and remove the lock files of dead processes."""
        held = set()
        for path in self.folder.glob("[!.]*"):
            if lock := self.acquire(path.name):
                lock.release()
            else:
                held.add(path.name)
        return held

    def _handle(self, path: Path, error: OSError) -> None:
        """Raise a UserError, unless the file system has no locks and none are needed."""
        if error.errno not in UNSUPPORTED:
            raise UserError(
                f"{path}: cannot be locked ({error.strerror}); make the folder readable and "
                "writable, with free space, or choose another results folder"
            ) from None
        if self._needed:
            raise UserError(
                f"{self.folder}: this file system has no working file locks ({error.strerror}), "
                "so two processes could do the same run; use a results folder on another file "
                "system, or give every process runs of its own: spafit-bench sweep --shard i/n"
            ) from None


def _write_holder(descriptor: int) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    os.truncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename} since {since}\n".encode())

"""Lets many processes, on one machine or several, share a results folder: each run is done once.

A claim on a run is a folder `claims/<run_id>/` that holds one file, named by a random token. Three
facts about folders carry the whole protocol; each is one operation, decided by the file server:

- take: a folder prepared elsewhere is renamed to `claims/<run_id>`. The rename succeeds where
  nothing or an *empty* folder is, and fails where another claim is: one of many takers gets it.
- release, and removing a dead claim: the file is unlinked by its token's name. Whoever comes late,
  even hours late, cannot hit a newer claim, whose file has another name.
- tidying: `rmdir` of `claims/<run_id>` fails unless it is empty.

So exclusion needs no locks and no clocks; only the judgement that an owner is dead does (see
`Claims`), and its owner notices a wrong one: its file is gone for good, `Claim.lost` is true.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from spafit_bench.base.errors import UserError
from spafit_bench.results.owner import Owner, parse_owner, this_process

_UNFINISHED = ".unfinished-"
"""Prefix of what is not a claim: folders not yet renamed, files that ask for the server's time."""
_GONE = (errno.ENOENT, errno.ESTALE)
_ATTEMPTS = 20
_SILENT_BEATS = 1.5
"""Heartbeats that must be missed before our own eyes, whatever the clocks say."""
_LOOKS = 6


@dataclass(frozen=True)
class _Entry:
    """A file in a claim's folder, as it was when looked at."""

    path: Path
    owner: Owner
    mtime_ns: int


@dataclass(frozen=True)
class _Sight:
    """When this process first saw a heartbeat."""

    mtime_ns: int
    first_s: float
    """By our monotonic clock."""
    age_s: float
    """How old it was by the server's clock."""


class Claim:
    """A run that this process has; release it, or use it in a `with` block."""

    def __init__(self, run_id: str, path: Path) -> None:
        self.run_id = run_id
        self._path = path
        self._pid = os.getpid()
        self._lost = False
        self._released = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def lost(self) -> bool:
        """Whether another process took the run over, believing this one dead.

        It asks the file server, so ask once per evaluation and before a result is written, not at
        every step. False too while the server does not answer.
        """
        self.renew()
        return self._lost

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to renew: released, or found lost."""
        return self._released or self._lost

    def renew(self) -> None:
        """Show that the owner is alive. Does nothing in a forked child."""
        if self.ended:
            return
        try:
            if os.getpid() == self._pid:
                # Setting a time always goes to the server; looking might be answered by a cache.
                os.utime(self._path)
            else:
                self._path.stat()
        except OSError as error:
            # Our own release unlinks the file too, after it has set the flag.
            self._lost = error.errno in _GONE and not self._released

    def release(self) -> None:
        """Let others have the run. Does nothing if it is lost, or in a forked child."""
        if self._released or os.getpid() != self._pid:
            return
        self._released = True
        with suppress(OSError):  # without heartbeats it dies anyway
            self._path.unlink()
            self._path.parent.rmdir()


class Claims:
    """The claims of one process on the runs of one results folder.

    An owner is dead if (a) it ran on this machine and its pid is gone, a zombie's or another
    process's by now, or (b) its heartbeat, the claim file's modification time, has stood still for
    `stale_after_s`, by the file server's clock or seen by us. Clocks jump and processes are paused,
    so (b) also needs that it is missed while we watch. A damaged claim file is judged by (b) alone.
    """

    def __init__(
        self, folder: Path, *, heartbeat_s: float = 10.0, stale_after_s: float = 60.0
    ) -> None:
        """Prepare; nothing is written yet.

        Args:
            folder: the results folder.
            heartbeat_s: seconds between renewals of this process's claims.
            stale_after_s: seconds of silence after which an owner counts as dead.

        Raises:
            ValueError: a live owner could count as dead between two heartbeats.
        """
        if not 0 < 2 * heartbeat_s <= stale_after_s:
            raise ValueError(f"stale_after_s {stale_after_s} is under two of {heartbeat_s} s")
        self.folder = folder / "claims"
        self._heartbeat_s = heartbeat_s
        self._stale_after_s = stale_after_s
        self._start()

    def _start(self) -> None:
        self._here = this_process(self._heartbeat_s)
        self._held: set[Claim] = set()
        self._seen: dict[Path, _Sight] = {}
        self._closing = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release every claim of this process and stop its heartbeat."""
        self._notice_fork()
        self._closing.set()
        for claim in tuple(self._held):
            claim.release()
        with suppress(OSError):  # others have claims, or none was ever made
            self._remove_remains()
            self.folder.rmdir()
        self._start()

    def take(self, run_id: str) -> Claim | None:
        """Claim a run, from a dead owner if need be.

        Returns at once, unless the heartbeat of an owner that cannot be asked looks stopped: then
        it is watched for one and a half of its heartbeats.

        Returns:
            The claim, or None if another live process (or this one) has the run.

        Raises:
            UserError: claims cannot be written or read; the message names the path.
            ValueError: `run_id` is not a file name.
        """
        place = self._place(run_id)
        self._notice_fork()
        with _for_the_user(place):
            for attempt in range(_ATTEMPTS):
                try:
                    if not self._clear(place):
                        return None
                    if claim := self._put(run_id, place):
                        return claim
                except OSError as error:  # somebody tidied in between, or nothing can be made here
                    if error.errno not in _GONE or attempt == _ATTEMPTS - 1:
                        raise
                time.sleep(attempt * 0.005)  # on NFS a stale listing takes a while to renew itself
        return None

    def owner(self, run_id: str) -> Owner | None:
        """Say who has a run; None if nobody has, or a process that is certainly gone.

        Raises:
            UserError: claims cannot be read.
            ValueError: `run_id` is not a file name.
        """
        place = self._place(run_id)
        with _for_the_user(place):
            for entry in _entries(place):
                if not entry.owner.is_gone(self._here):
                    return entry.owner
        return None

    def is_free(self, run_id: str) -> bool:
        """Tell whether nobody alive has a run; raises and takes as long as `take`."""
        place = self._place(run_id)
        with _for_the_user(place):
            return all(self._is_dead(entry) for entry in _entries(place))

    def _place(self, run_id: str) -> Path:
        if not run_id or run_id.startswith(".") or Path(run_id).name != run_id:
            raise ValueError(f"not a run id: {run_id!r}")
        return self.folder / run_id

    def _notice_fork(self) -> None:
        """Give a forked child a state of its own: claims belong to the process that took them."""
        if self._here.pid != os.getpid():
            self._start()

    def _clear(self, place: Path) -> bool:
        """Remove dead claims; return whether the run is free."""
        for entry in _entries(place):
            if not self._is_dead(entry):
                return False
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                if error.errno == errno.EBUSY:  # NFS keeps it while somebody reads it
                    return False
                raise
            self._seen.pop(entry.path, None)
        return True

    def _put(self, run_id: str, place: Path) -> Claim | None:
        token = secrets.token_hex(16)
        staged = self.folder / f"{_UNFINISHED}{token}"
        claim = Claim(run_id, place / f"{token}.json")
        since = datetime.now(UTC).isoformat(timespec="seconds")
        content = json.dumps({**asdict(self._here), "since": since}, indent=1)
        try:
            staged.mkdir(parents=True)
            (staged / f"{token}.json").write_text(content, encoding="utf-8")
            if not _rename_onto_nothing(staged, place, f"{token}.json"):
                claim.release()
                return None
            self._held.add(claim)
            self._start_heart()
        except BaseException:  # also Ctrl-C at any point: nobody would ever release it
            claim.release()
            raise
        finally:
            _remove(staged)
        return claim

    def _is_dead(self, entry: _Entry) -> bool:
        if entry.owner.is_gone(self._here):
            return True
        return self._silent_s(entry) >= self._stale_after_s and self._stays_silent(entry)

    def _silent_s(self, entry: _Entry) -> float:
        """Return for how long the heartbeat has stood still.

        The server is asked once per heartbeat how old it is; our monotonic clock counts from then.
        """
        seen = self._seen.get(entry.path)
        if seen is None or seen.mtime_ns != entry.mtime_ns:
            age_s = max(0.0, (self._server_time_ns() - entry.mtime_ns) / 1e9)
            seen = self._seen[entry.path] = _Sight(entry.mtime_ns, time.monotonic(), age_s)
        return time.monotonic() - seen.first_s + seen.age_s

    def _stays_silent(self, entry: _Entry) -> bool:
        """Watch a heartbeat: after a pause of the whole machine or of both of us it returns."""
        heartbeat_s = entry.owner.heartbeat_s or self._heartbeat_s
        watch_s = min(_SILENT_BEATS * heartbeat_s, self._stale_after_s)
        for _ in range(_LOOKS):
            before_s = time.monotonic()
            time.sleep(watch_s / _LOOKS)
            later = _read(entry.path)
            if later is None:  # gone, so removing it does nothing
                return True
            paused = time.monotonic() - before_s > watch_s
            if paused or later.mtime_ns != entry.mtime_ns:
                return False
        return True

    def _server_time_ns(self) -> int:
        """Ask the file server for the time, by its mark on a new file."""
        path = self.folder / f"{_UNFINISHED}{secrets.token_hex(16)}"
        try:
            with path.open("xb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        finally:
            path.unlink(missing_ok=True)

    def _remove_litter(self) -> None:
        """Remove what killed processes left half made; whoever lives still tries again."""
        with suppress(FileNotFoundError):
            oldest_ns = self._server_time_ns() - int(self._stale_after_s * 1e9)
            for path in self.folder.glob(f"{_UNFINISHED}*"):
                if path.stat().st_mtime_ns < oldest_ns:
                    _remove(path)

    def _remove_remains(self) -> None:
        """Remove the claims of processes that certainly run no more, and old litter.

        Nobody else would remove the claim of one that was killed after it had saved its run.
        """
        for place in self.folder.glob("[!.]*"):
            for entry in _entries(place):
                if entry.owner.is_gone(self._here):
                    entry.path.unlink(missing_ok=True)
            with suppress(OSError):  # somebody has the run
                place.rmdir()
        if any(self.folder.glob(f"{_UNFINISHED}*")):
            self._remove_litter()

    def _start_heart(self) -> None:
        if self._heart is None:
            self._remove_litter()
            self._heart = threading.Thread(
                target=_beat, args=(self._held, self._closing, self._heartbeat_s), daemon=True
            )
            self._heart.start()


def _beat(held: set[Claim], closing: threading.Event, heartbeat_s: float) -> None:
    while not closing.wait(heartbeat_s):
        for claim in held.copy():
            claim.renew()
            if claim.ended:
                held.discard(claim)


def _rename_onto_nothing(staged: Path, place: Path, name: str) -> bool:
    """Make the prepared folder the claim; return whether that succeeded."""
    try:
        staged.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, *_GONE):
            raise
        with suppress(OSError):  # some servers do not rename onto an empty folder either
            place.rmdir()
    # Not what rename answered: NFS repeats a request whose answer got lost, and then it fails; and
    # a folder that was cleared away as litter arrives empty.
    try:
        os.utime(place / name)
    except FileNotFoundError:
        return False
    return True


def _entries(place: Path) -> Iterator[_Entry]:
    try:
        paths = sorted(place.iterdir())
    except FileNotFoundError:
        return
    yield from filter(None, map(_read, paths))


def _read(path: Path) -> _Entry | None:
    try:
        with path.open("rb") as file:  # opening makes NFS ask the server; a bare stat may not
            mtime_ns = os.fstat(file.fileno()).st_mtime_ns
            return _Entry(path, parse_owner(file.read(65536)), mtime_ns)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def _remove(path: Path) -> None:
    """Remove an unfinished file or folder of ours, if it is there."""
    with suppress(OSError):
        if path.is_dir():
            for inner in path.iterdir():
                inner.unlink()
            path.rmdir()
        else:
            path.unlink()


@contextmanager
def _for_the_user(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or place}: cannot claim a run here ({error.strerror}); make the "
            "folder readable and writable with free space, or choose another results folder"
        ) from error

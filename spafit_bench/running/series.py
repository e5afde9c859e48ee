"""Carries out runs one after another and keeps what they leave behind."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from spafit_bench.base import distributed
from spafit_bench.base.errors import UserError
from spafit_bench.base.stop import StopSignal
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.record import RunRecord, Status
from spafit_bench.results.run_folder import prediction_rows
from spafit_bench.results.store import Store
from spafit_bench.running.tensorboard_log import TensorBoardLog
from spafit_bench.training.loop import Observer
from spafit_bench.training.prepare import PreparedRun
from spafit_bench.training.run import Outcome, Session, blank_record, execute, utc_now
from spafit_bench.training.snapshot import DamagedSnapshot, Snapshot

log = logging.getLogger(__name__)

POLL_S = 2.0
"""Between two looks at runs that other processes have."""
_LONGEST_REASON = 500
"""Characters: libraries put stack frames into their messages."""


class View(Protocol):
    """Shows how a series of runs goes."""

    def skipped(self, record: RunRecord) -> None:
        """Hear that a run is already there."""

    def started(self, prepared: PreparedRun, number: int, total: int) -> Observer:
        """Hear that a run begins; return who is to hear of its progress."""

    def finished(self, record: RunRecord) -> None:
        """Hear how a run ended."""

    def waiting(self, prepared: PreparedRun, owner: str) -> None:
        """Hear that nothing is left but runs that other processes have."""

    def warn(self, message: str) -> None:
        """Hear of something that a user should know and that stops nothing."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a series of runs is carried out."""

    force: bool = False
    """Repeat runs that are finished."""
    retry_failed: bool = False
    """Repeat runs that failed or diverged."""
    keep_every_s: float = 300.0
    """Seconds between snapshots within an epoch."""
    sharded: bool = False
    """No other process does these runs (`--shard`): they may be on a file system without locks."""
    log: str | None = None
    """`tensorboard`: curves for TensorBoard, below the results folder."""


def run_all(
    runs: Sequence[PreparedRun], store: Store, view: View, options: Options
) -> list[RunRecord]:
    """Carry out runs in order; one that fails or diverges does not stop the others.

    Several processes may work on one results folder: each run is locked by one of them, and runs
    that others have are waited for. A run that was interrupted goes on from its last snapshot.
    Ctrl-C and SIGTERM keep a snapshot at the next step; a second one stops at once.

    Args:
        runs: checked inputs.
        store: where results go; written to after every run.
        view: hears of everything.
        options: what is repeated.

    Returns:
        One record per run, those found finished included; none in a process that follows another
        (`distributed`).

    Raises:
        UserError: results cannot be written, or weights cannot be loaded.
        KeyboardInterrupt: the run under way is recorded as interrupted.
    """
    if distributed.rank() > 0:
        _follow(runs, view)
        return []
    store.check_writable()
    locks = RunLocks(store.root, needed=not options.sharded)
    locks.check()
    store.set_damaged_aside(view.warn)  # said now, not after hours
    store.rebuild_csv()
    try:
        with StopSignal() as stop, locks:
            series = Series(store, view, options, stop, locks, len(runs))
            records = series.carry_out(runs)
            distributed.dismiss()
            return records
    except KeyboardInterrupt:
        others = " (and repeats the others: --force)" if options.force and len(runs) > 1 else ""
        view.warn(f"interrupted; the same command goes on where this one stopped{others}")
        raise


def _follow(runs: Sequence[PreparedRun], view: View) -> None:
    """Compute a share of what the first process of a run on several devices carries out."""
    by_id = {prepared.run_id: prepared for prepared in runs}
    with StopSignal() as stop:

        def work(run_id: str, resume: Snapshot | None) -> None:
            observer = view.started(by_id[run_id], 1, len(runs))
            execute(by_id[run_id], Session(observer=observer, resume=resume, stop=stop))

        distributed.follow(work)


@dataclass(frozen=True)
class Series:
    """Runs that this process carries out, waits for, or finds finished."""

    store: Store
    view: View
    options: Options
    stop: Callable[[], bool]
    """Whether the run under way should keep its state and end."""
    locks: RunLocks
    total: int = 1

    def carry_out(self, runs: Sequence[PreparedRun]) -> list[RunRecord]:
        """Return one record per run, waiting for those that other processes have."""
        records: dict[str, RunRecord] = {}
        waiting = list(enumerate(runs, start=1))
        while waiting:
            left = []
            for number, prepared in waiting:
                record = self.attempt(prepared, number)
                if record is None:
                    left.append((number, prepared))
                else:
                    records[prepared.run_id] = record
                self._stop_if_asked()
            if left and len(left) == len(waiting):
                self._wait(left[0][1])
            waiting = left
        return [records[prepared.run_id] for prepared in runs]

    def attempt(self, prepared: PreparedRun, number: int = 1) -> RunRecord | None:
        """Return the record of a run, found or made now; None if another process has the run.

        Raises:
            KeyboardInterrupt: `stop` said so; the run's state has been kept.
        """
        return self._settled(prepared) or self._locked(prepared, number)

    def _settled(self, prepared: PreparedRun) -> RunRecord | None:
        """Return the record of a run that need not be carried out."""
        if self.options.force:
            return None
        record = self.store.examine(prepared.run_id, self.view.warn)
        if record is None or to_repeat(record.status, self.options):
            return None
        if record.status == "done":
            forget_snapshot(self.store, self.locks, record.run_id)
        self.view.skipped(record)
        return record

    def _locked(self, prepared: PreparedRun, number: int) -> RunRecord | None:
        """Carry a run out, unless another process holds it."""
        lock = self.locks.acquire(prepared.run_id)
        if lock is None:
            return None
        with lock:
            record = self._settled(prepared)  # it may have finished before it was ours
            if record is None:
                observer = self.view.started(prepared, number, self.total)
                with self._logged(observer, prepared.run_id) as observer:
                    session = _session(prepared, self.store, self.view, observer, self.options)
                    session = replace(session, stop=self.stop)
                    record = _run_one(prepared, self.store, session, self.view)
                self.view.finished(record)
            return record

    @contextmanager
    def _logged(self, observer: Observer, run_id: str) -> Iterator[Observer]:
        """Let a log hear of the run as well, if one was asked for."""
        if self.options.log is None:
            yield observer
            return
        log = TensorBoardLog(observer, self.store.logs / run_id)
        with closing(log):
            yield log

    def _wait(self, prepared: PreparedRun) -> None:
        """Wait a little for runs that other processes have."""
        self.view.waiting(prepared, self.locks.holder(prepared.run_id))
        until = time.monotonic() + POLL_S
        while time.monotonic() < until:
            self._stop_if_asked()
            time.sleep(0.1)

    def _stop_if_asked(self) -> None:
        if self.stop():
            raise KeyboardInterrupt


def forget_snapshot(store: Store, locks: RunLocks, run_id: str) -> None:
    """Remove the snapshot of a process that was killed between its last two acts."""
    if store.has_snapshot(run_id) and (lock := locks.acquire(run_id)):
        with lock:
            store.remove_litter(run_id)
            store.drop_snapshot(run_id)


def to_repeat(status: Status, options: Options) -> bool:
    """Tell whether a run that ended so is carried out again."""
    return status == "interrupted" or (options.retry_failed and status != "done")


def _session(
    prepared: PreparedRun, store: Store, view: View, observer: Observer, options: Options
) -> Session:
    """Continue from a snapshot where there is a sound one, and keep new ones."""
    run_id, resume = prepared.run_id, None
    store.remove_litter(run_id)
    earlier = store.examine(run_id, view.warn)
    if not (earlier and earlier.status == "done") or store.snapshot_is_newer(run_id):
        resume = _snapshot(store, run_id, view)

    def keep(snapshot: Snapshot) -> None:
        try:
            facts = {**snapshot.facts, "run_id": run_id}
            store.keep_snapshot(run_id, *Snapshot(snapshot.tensors, facts).pieces())
        except OSError as error:
            view.warn(f"no snapshot could be kept ({error}); the run goes on without")

    return Session(observer=observer, resume=resume, keep=keep, keep_every_s=options.keep_every_s)


def _snapshot(store: Store, run_id: str, view: View) -> Snapshot | None:
    """Read the snapshot of a run, if it is sound and this run's."""
    try:
        content = store.snapshot(run_id)
        if content is None:
            return None
        snapshot = Snapshot.from_bytes(content)
        if snapshot.facts.get("run_id") != run_id:
            raise DamagedSnapshot("it is of another run")
    except DamagedSnapshot as error:
        _set_snapshot_aside(store, run_id, f"the snapshot is damaged ({error})", view)
        return None
    return snapshot


def _set_snapshot_aside(store: Store, run_id: str, why: str, view: View) -> None:
    path = store.snapshot_path(run_id)
    try:
        place = store.set_aside(path, why)
    except OSError as error:
        raise UserError(f"{path}: {why}, and it cannot be moved ({error.strerror})") from None
    view.warn(f"{why}: set aside as {place}; the run starts anew")


def _run_one(
    prepared: PreparedRun,
    store: Store,
    session: Session,
    view: View,
) -> RunRecord:
    started_at, goes_on = utc_now(), False

    def keep(snapshot: Snapshot) -> None:
        nonlocal goes_on
        session.keep(snapshot)
        goes_on = True

    try:
        order = (prepared.run_id, session.resume)
        outcome = distributed.lead(order, partial(execute, prepared, replace(session, keep=keep)))
    except UserError:
        raise
    except KeyboardInterrupt:
        record = blank_record(prepared, started_at, "interrupted", "stopped")
        save_unfinished(store, record, view.warn)
        raise
    except Exception as error:  # whatever broke one run, the others must go on
        log.debug("%s", traceback.format_exc())
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        if session.resume is not None and not goes_on and distributed.size() == 1:
            # another version of this package may have kept it: nothing came of it
            why = f"the run failed after it was resumed ({reason})"
            _set_snapshot_aside(store, prepared.run_id, why, view)
            return _run_one(prepared, store, replace(session, resume=None), view)
        record = blank_record(prepared, started_at, "failed", reason)
        save_unfinished(store, record, view.warn)
        return record
    if outcome.record.status == "done":
        store.save(outcome.record, _files(prepared, outcome))
    else:
        save_unfinished(store, outcome.record, view.warn)
    store.drop_snapshot(prepared.run_id)
    return outcome.record


def save_unfinished(store: Store, record: RunRecord, warn: Callable[[str], None]) -> None:
    """Record a run without a result, unless that would replace a finished one (`--force`)."""
    earlier = store.examine(record.run_id, warn)
    if earlier is None or earlier.status != "done":
        store.save(record, {})


def _files(prepared: PreparedRun, outcome: Outcome) -> dict[str, bytes]:
    from safetensors.numpy import save

    files = {name: save(dict(state)) for name, state in outcome.states.items()}
    predictions = {n: p.labels(prepared.task) for n, p in outcome.predictions.items()}
    logits = {n: p.logits for n, p in outcome.predictions.items()}
    files["predictions.parquet"] = prediction_rows(logits, predictions, outcome.labels)
    return files

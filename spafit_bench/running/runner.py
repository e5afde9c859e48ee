"""Carries out single runs in this process: locks, resumes, trains and stores them."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from spafit_bench.base import distributed
from spafit_bench.base.errors import UserError
from spafit_bench.base.stop import StopSignal
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.record import Evaluation, RunRecord
from spafit_bench.results.run_folder import prediction_rows
from spafit_bench.results.store import Store
from spafit_bench.running.events import Busy, Ended, Evaluated, Hear, Started, Stepped, Warned
from spafit_bench.running.tensorboard_log import TensorBoardLog
from spafit_bench.training.loop import Observer, Progress, Session
from spafit_bench.training.prepare import InputChanged, PreparedRun
from spafit_bench.training.run import Outcome, blank_record, execute, utc_now
from spafit_bench.training.snapshot import DamagedSnapshot, Snapshot

log = logging.getLogger(__name__)

_LONGEST_REASON = 500
"""Characters: libraries put stack frames into their messages."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How runs are carried out."""

    force: bool = False
    """Repeat finished runs."""
    retry_failed: bool = False
    """Repeat runs that failed or diverged."""
    sharded: bool = False
    """No other process does these runs (`--shard`): they may be on a file system without locks."""
    log: str | None = None
    """`tensorboard`: curves for TensorBoard, below the results folder."""


def is_settled(record: RunRecord | None, options: Options) -> bool:
    """Return whether a run with this record need not be carried out."""
    if record is None or options.force or record.status == "interrupted":
        return False
    return record.status == "done" or not (record.retry or options.retry_failed)


def save_unfinished(store: Store, record: RunRecord, warn: Callable[[str], None]) -> None:
    """Store the record of a run without a result; a finished record (`--force`) is kept instead."""
    earlier = store.examine(record.run_id, warn)
    if earlier is None or earlier.status != "done":
        store.save(record, {})


@dataclass(frozen=True)
class Runner:
    """Carries out runs one at a time, and reports everything as events."""

    store: Store
    options: Options
    locks: RunLocks
    stop: Callable[[], bool]
    """Whether the current run should keep a snapshot and stop."""
    hear: Hear
    where: str = ""
    steps_every_s: float = 0.25
    """Seconds between two events about the steps of a run."""

    def carry_out(self, run: PreparedRun) -> None:
        """Train a run, unless it has a record or another process holds it.

        The last event is `Ended`, or `Busy` if another process holds the run.

        Raises:
            UserError: results cannot be written, or weights cannot be loaded.
            KeyboardInterrupt: `stop` returned true; the state of the run is kept.
        """
        lock = self.locks.acquire(run.run_id)
        if lock is None:
            self.hear(Busy(run_id=run.run_id, owner=self.locks.holder(run.run_id)))
            return
        with lock:
            record = self.store.examine(run.run_id, self._warn)
            found = is_settled(record, self.options)  # another process may just have finished it
            if record is None or not found:
                self.store.remove_litter(run.run_id)
                resume = self._snapshot(run.run_id, record)
                self.hear(Started(run_id=run.run_id, where=self.where))
                record = self._train(run, resume)
        self.hear(Ended(run_id=run.run_id, record=record, found=found))

    def _warn(self, message: str) -> None:
        self.hear(Warned(message=message))

    def _train(self, run: PreparedRun, resume: Snapshot | None) -> RunRecord:
        started_at, has_progressed = utc_now(), False

        def keep(snapshot: Snapshot) -> None:
            nonlocal has_progressed
            has_progressed = True
            facts = {**snapshot.facts, "run_id": run.run_id}
            try:
                pieces = Snapshot(snapshot.tensors, facts).pieces()
                self.store.keep_snapshot(run.run_id, *pieces)
            except OSError as error:
                self._warn(f"no snapshot could be kept ({error}); the run continues without one")

        try:
            with self._observer(run.run_id) as observer:
                session = Session(observer=observer, resume=resume, keep=keep, stop=self.stop)
                outcome = distributed.lead((run.run_id, resume), partial(execute, run, session))
        except UserError:
            raise
        except KeyboardInterrupt:
            record = blank_record(run, started_at, "interrupted", "stopped")
            save_unfinished(self.store, record, self._warn)
            raise
        except Exception as error:  # the other runs must continue, whatever broke this one
            log.debug("%s", traceback.format_exc())
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
            is_outside = _is_outside(error)
            is_alone = distributed.size() == 1
            if resume is not None and not has_progressed and is_alone and not is_outside:
                # the snapshot may come from another version of this package
                why = f"the run failed after it was resumed ({reason})"
                self._set_snapshot_aside(run.run_id, why)
                return self._train(run, None)
            record = blank_record(run, started_at, "failed", reason)
            record = record.model_copy(update={"retry": is_outside})
            save_unfinished(self.store, record, self._warn)
            return record
        if outcome.record.status == "done":
            self.store.save(outcome.record, _files(run, outcome))
        else:
            save_unfinished(self.store, outcome.record, self._warn)
        self.store.drop_snapshot(run.run_id)
        return outcome.record

    @contextmanager
    def _observer(self, run_id: str) -> Iterator[Observer]:
        reporter = _Reporter(self.hear, run_id, self.steps_every_s)
        if self.options.log is None:
            yield reporter
            return
        with closing(TensorBoardLog(reporter, self.store.logs / run_id)) as both:
            yield both

    def _snapshot(self, run_id: str, record: RunRecord | None) -> Snapshot | None:
        """Return the snapshot from which a run resumes; set it aside if it is damaged."""
        if record and record.status == "done" and not self.store.snapshot_is_newer(run_id):
            return None  # with --force: it is older than the result that is repeated
        try:
            content = self.store.snapshot(run_id)
            if content is None:
                return None
            snapshot = Snapshot.from_bytes(content)
            if snapshot.facts.get("run_id") != run_id:
                raise DamagedSnapshot("it belongs to another run")
        except DamagedSnapshot as error:
            self._set_snapshot_aside(run_id, f"the snapshot is damaged ({error})")
            return None
        return snapshot

    def _set_snapshot_aside(self, run_id: str, why: str) -> None:
        path = self.store.snapshot_path(run_id)
        try:
            place = self.store.set_aside(path, why)
        except OSError as error:
            raise UserError(f"{path}: {why}, and it cannot be moved ({error.strerror})") from None
        self._warn(f"{why}: it was moved to {place}, and the run starts from the beginning")


def _is_outside(error: BaseException) -> bool:
    """Return whether permissions, disk, memory, network or a file that changed broke a run."""
    if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError | InputChanged):
        return True
    if "can't allocate memory" in str(error):  # a RuntimeError of torch's allocator for CPUs
        return True
    return error.__cause__ is not None and _is_outside(error.__cause__)


def follow(runs: Sequence[PreparedRun]) -> None:
    """Compute this process's share of every batch of the runs that the first process leads."""
    by_id = {run.run_id: run for run in runs}
    with StopSignal() as stop:

        def work(run_id: str, resume: Snapshot | None) -> None:
            silent = _Reporter(lambda _: None, run_id, 0.0)
            execute(by_id[run_id], Session(observer=silent, resume=resume, stop=stop))

        distributed.follow(work)


@dataclass
class _Reporter:
    """Turns the progress of one run into events."""

    hear: Hear
    run_id: str
    steps_every_s: float
    last_step_s: float = 0.0

    def on_step(self, progress: Progress) -> None:
        if time.monotonic() - self.last_step_s >= self.steps_every_s:
            self.last_step_s = time.monotonic()
            self.hear(
                Stepped(
                    run_id=self.run_id,
                    step=progress.step,
                    total_steps=progress.total_steps,
                    loss=progress.loss,
                    tokens_per_s=progress.tokens_per_s,
                )
            )

    def on_evaluation(self, evaluation: Evaluation) -> None:
        self.hear(Evaluated(run_id=self.run_id, evaluation=evaluation))


def _files(run: PreparedRun, outcome: Outcome) -> dict[str, bytes]:
    """Return what is stored beside the record, by file name."""
    from safetensors.numpy import save

    files = {name: save(dict(state)) for name, state in outcome.states.items()}
    predictions = {n: p.labels(run.task) for n, p in outcome.predictions.items()}
    logits = {n: p.logits for n, p in outcome.predictions.items()}
    files["predictions.parquet"] = prediction_rows(logits, predictions, outcome.labels)
    return files

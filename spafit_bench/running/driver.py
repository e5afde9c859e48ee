"""Hands the runs of a command to an executor until each has a record."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from spafit_bench.base import distributed
from spafit_bench.base.errors import UserError
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.store import Store
from spafit_bench.running.agenda import Agenda
from spafit_bench.running.events import Busy, Ended, Event, Lost, Refused, Warned
from spafit_bench.running.executors import Executor
from spafit_bench.running.runner import Options, is_settled, save_unfinished
from spafit_bench.training.prepare import PreparedRun
from spafit_bench.training.run import blank_record, utc_now

MOST_LOSSES = 3
"""A run whose process or machine died this often is given up: it may be what kills them."""
BUSY_S = 2.0
"""Seconds until a run that another process holds is tried again."""
_TICK_S = 0.2


class View(Protocol):
    """Shows how the runs go."""

    def expect(self, runs: Sequence[PreparedRun]) -> None:
        """Take in all runs of the command, at the start and after every choice."""

    def hear(self, event: Event) -> None:
        """Take in an event."""


def drive(
    agenda: Agenda,
    store: Store,
    executor: Executor,
    view: View,
    options: Options,
    stop: Callable[[], bool],
) -> None:
    """Carry out all runs of an agenda; their records are in `agenda.records` afterwards.

    Several processes may share a results folder: runs that others hold are waited for. The reported
    runs of a cell start as soon as its trials have ended, before the trials of other cells. A run
    whose process is killed resumes from its last snapshot, until it was lost `MOST_LOSSES` times. A
    run that fails or diverges does not stop the others.

    Raises:
        UserError: results cannot be written, or an input has disappeared.
        KeyboardInterrupt: `stop` returned true; the state of unfinished runs is kept.
    """
    try:
        store.check_writable()
        RunLocks(store.root, needed=not options.sharded).check()
        driver = _Driver(agenda, store, executor, view, options, stop)
        store.set_damaged_aside(driver.warn)  # before the first run, not after hours
        store.rebuild_csv()
        driver.carry_out()
    finally:
        executor.close()
    distributed.dismiss()


@dataclass
class _Driver:
    agenda: Agenda
    store: Store
    executor: Executor
    view: View
    options: Options
    stop: Callable[[], bool]
    known: dict[str, PreparedRun] = field(default_factory=dict)
    todo: deque[str] = field(default_factory=deque)
    under_way: set[str] = field(default_factory=set)
    losses: Counter[str] = field(default_factory=Counter)
    not_before_s: dict[str, float] = field(default_factory=dict)
    """When to try again a run that another process holds."""
    refusal: str | None = None
    """What the user must fix before anything can continue."""

    def warn(self, message: str) -> None:
        self.view.hear(Warned(message=message))

    def carry_out(self) -> None:
        self._add((*self.agenda.trials, *self.agenda.finals))
        self._add(self.agenda.choose(), first=True)
        self.view.expect(self.agenda.expected())
        while self.todo or self.under_way:
            if self._is_stopping():
                self._wind_up()
            self._submit()
            self.executor.poll(self._hear, _TICK_S)
            if not self.under_way and self.todo and self._next_is_busy():
                time.sleep(_TICK_S)

    def _add(self, runs: Sequence[PreparedRun], *, first: bool = False) -> None:
        """Queue the runs that have no record yet."""
        new = {run.run_id: run for run in runs if run.run_id not in self.known}
        self.known |= new
        ids = [run_id for run_id in new if not self._is_settled(run_id)]
        self.todo = deque([*ids, *self.todo] if first else [*self.todo, *ids])

    def _is_settled(self, run_id: str) -> bool:
        record = None if self.options.force else self.store.examine(run_id, self.warn)
        if record is None or not is_settled(record, self.options):
            return False
        if record.status == "done":
            self._remove_old_snapshot(run_id)
        self.agenda.records[run_id] = record
        self.view.hear(Ended(run_id=run_id, record=record, found=True))
        return True

    def _remove_old_snapshot(self, run_id: str) -> None:
        """Remove the snapshot of a process that was killed after it had stored its run."""
        if not self.store.has_snapshot(run_id):
            return
        with RunLocks(self.store.root, needed=not self.options.sharded) as locks:
            if locks.acquire(run_id):
                self.store.remove_litter(run_id)
                self.store.drop_snapshot(run_id)

    def _submit(self) -> None:
        for _ in range(len(self.todo)):
            if not self.executor.has_room():
                return
            if self._next_is_busy():
                self.todo.rotate(-1)
                continue
            run_id = self.todo.popleft()
            self.under_way.add(run_id)
            self.executor.submit(self.known[run_id])

    def _next_is_busy(self) -> bool:
        return time.monotonic() < self.not_before_s.get(self.todo[0], -math.inf)

    def _hear(self, event: Event) -> None:
        self.view.hear(event)
        if isinstance(event, Ended | Busy | Lost):
            self.under_way.discard(event.run_id)
        match event:
            case Ended():
                self.agenda.records[event.run_id] = event.record
                before = len(self.agenda.chosen)
                self._add(self.agenda.choose(), first=True)
                if len(self.agenda.chosen) > before:
                    self.view.expect(self.agenda.expected())
            case Busy():
                self.not_before_s[event.run_id] = time.monotonic() + BUSY_S
                self.todo.append(event.run_id)
            case Lost():
                if self._is_stopping():
                    self.todo.appendleft(event.run_id)
                else:
                    self._repeat(event)
            case Refused():
                self.refusal = self.refusal or event.message

    def _repeat(self, event: Lost) -> None:
        """Queue a lost run again, unless it was lost too often."""
        self.losses[event.run_id] += 1
        if self.losses[event.run_id] < MOST_LOSSES:
            self.todo.appendleft(event.run_id)
            return
        reason = f"given up after {MOST_LOSSES} attempts: {event.reason}"
        record = blank_record(self.known[event.run_id], utc_now(), "failed", reason)
        record = record.model_copy(update={"retry": True})
        save_unfinished(self.store, record, self.warn)
        self._hear(Ended(run_id=event.run_id, record=record))

    def _is_stopping(self) -> bool:
        return self.stop() or self.refusal is not None

    def _wind_up(self) -> None:
        """Stop all runs, with their state kept, then raise."""
        if self.under_way:
            self.warn(
                f"stopping: {len(self.under_way)} run(s) keep their state "
                "(a second signal stops at once)"
            )
            self.executor.stop()
        while self.under_way:
            self.executor.poll(self._hear, _TICK_S)
        if self.refusal is not None:
            raise UserError(self.refusal)
        raise KeyboardInterrupt

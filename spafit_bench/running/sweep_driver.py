"""Carries out a sweep: trials, choices, then the runs that are reported."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from spafit_bench.base.errors import UserError
from spafit_bench.config.sweep import Group, Sweep, final_configs, trial_configs
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store
from spafit_bench.running.events import Busy, Ended, Event, Lost, Refused, Warned
from spafit_bench.running.executors import Executor
from spafit_bench.running.series import POLL_S, Options, forget_snapshot, save_unfinished, to_repeat
from spafit_bench.training.prepare import PreparedRun, Preparer
from spafit_bench.training.run import blank_record, utc_now

MOST_LOSSES = 3
"""A run whose process or machine went away this often is given up: it may be what kills them."""
_TICK_S = 0.2


@dataclass(frozen=True)
class MatrixResult:
    """What a sweep did."""

    trials: tuple[RunRecord, ...]
    """Runs that only served a choice."""
    finals: tuple[RunRecord, ...]
    """Runs whose scores are reported."""
    chosen: dict[Group, Any]
    """Group -> the chosen value, None where every trial failed or collapsed."""

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """Every run, once."""
        unique = {record.run_id: record for record in (*self.trials, *self.finals)}
        return tuple(unique.values())

    @property
    def is_whole(self) -> bool:
        """Whether every cell has its reported runs; trials may fail, that is what they are for."""
        return all(r.status == "done" for r in self.finals) and None not in self.chosen.values()


class View(Protocol):
    """Shows how a sweep goes."""

    def expect(self, runs: Sequence[PreparedRun]) -> None:
        """Hear of every run that is still to be settled, whenever that changes."""

    def hear(self, event: Event) -> None:
        """Hear what a run says."""


def run_sweep(
    agenda: Agenda,
    store: Store,
    executor: Executor,
    view: View,
    options: Options,
    stop: Callable[[], bool],
) -> MatrixResult:
    """Carry out a sweep, or the rest of it.

    A cell's reported runs come as soon as its trials have ended, before other cells' trials, so
    that results appear early. A run whose process is killed is carried out again from its last
    snapshot, until it was lost `MOST_LOSSES` times.

    Raises:
        UserError: results cannot be written, or a run's input is gone.
        KeyboardInterrupt: `stop` said so; runs under way have kept their state.
    """
    store.check_writable()
    RunLocks(store.root, needed=not options.sharded).check()
    driver = _Driver(agenda, store, view, options, executor, stop)
    store.set_damaged_aside(driver.warn)  # said now, not after hours
    store.rebuild_csv()
    try:
        return driver.carry_out()
    finally:
        executor.close()


class Agenda:
    """The runs of a sweep: which there are, and which follow from choices."""

    def __init__(self, sweep: Sweep, preparer: Preparer | None = None) -> None:
        """Find and check the inputs of every run.

        Args:
            sweep: the matrix.
            preparer: where another machine will compute.

        Raises:
            UserError: an input that would keep a run from starting.
        """
        self.sweep = sweep
        self.chosen: dict[Group, Any] = {}
        self._preparer = preparer or Preparer()
        self.trials = {
            group: {value: self._prepare(configs) for value, configs in values.items()}
            for group, values in trial_configs(sweep).items()
        }
        self._guesses = {
            group: self._prepare(final_configs(sweep, {group: next(iter(values))}))
            for group, values in self.trials.items()
        }
        self.finals: dict[Group | None, list[PreparedRun]] = {}
        if not self.trials:
            self.finals[None] = self._prepare(final_configs(sweep, {}))

    def _prepare(self, configs: Sequence[Any]) -> list[PreparedRun]:
        return [self._preparer.prepare(config) for config in configs]

    def trial_runs(self) -> list[PreparedRun]:
        """Return every trial, cell by cell."""
        return [run for group in self.trials for run in self._trials_of(group)]

    def _trials_of(self, group: Group) -> list[PreparedRun]:
        return [run for runs in self.trials[group].values() for run in runs]

    def final_runs(self) -> list[PreparedRun]:
        """Return every reported run that is known by now."""
        return [run for runs in self.finals.values() for run in runs]

    def expected(self) -> list[PreparedRun]:
        """Return every run, each once; a choice that is not made counts as its first value."""
        guessed = [run for g, runs in self._guesses.items() if g not in self.chosen for run in runs]
        runs = (*self.trial_runs(), *self.final_runs(), *guessed)
        return list({run.run_id: run for run in runs}.values())

    def follow(self, records: dict[str, RunRecord]) -> list[PreparedRun]:
        """Make every choice that can be made by now; return the runs that follow from them."""
        new: list[PreparedRun] = []
        for group in self.trials:
            if group in self.chosen or any(r.run_id not in records for r in self._trials_of(group)):
                continue
            trials = {v: [records[r.run_id] for r in rs] for v, rs in self.trials[group].items()}
            self.chosen[group] = choose(trials)
            self.finals[group] = self._prepare(
                final_configs(self.sweep, {group: self.chosen[group]})
            )
            new += self.finals[group]
        return new


def choose(trials: Mapping[Any, Sequence[RunRecord]]) -> Any | None:
    """Return the value whose trials have the best mean score, or None if none can be chosen."""
    means = {
        value: statistics.fmean(record.score or 0.0 for record in records)
        for value, records in trials.items()
        if records and all(r.status == "done" and not r.collapsed for r in records)
    }
    return max(means, key=lambda value: means[value]) if means else None


@dataclass
class _Driver:
    """Hands runs to an executor until every one has its record."""

    agenda: Agenda
    store: Store
    view: View
    options: Options
    executor: Executor
    stop: Callable[[], bool]
    records: dict[str, RunRecord] = field(default_factory=dict)
    known: dict[str, PreparedRun] = field(default_factory=dict)
    todo: deque[str] = field(default_factory=deque)
    under_way: set[str] = field(default_factory=set)
    losses: Counter[str] = field(default_factory=Counter)
    not_before_s: dict[str, float] = field(default_factory=dict)
    """When to ask again for a run that another process has."""
    refusal: str | None = None
    """What the user must mend before anything can go on."""

    def warn(self, message: str) -> None:
        """Pass a warning on to the view."""
        self.view.hear(Warned(message=message))

    def carry_out(self) -> MatrixResult:
        self._add((*self.agenda.trial_runs(), *self.agenda.final_runs()))
        self._follow()
        self.view.expect(self.agenda.expected())
        while self.todo or self.under_way:
            if self._is_ending():
                self._wind_up()
            self._submit()
            self.executor.poll(self._hear, _TICK_S)
            if not self.under_way and self.todo:
                time.sleep(min(_TICK_S, self._until_next_s()))
        return MatrixResult(
            tuple(self.records[run.run_id] for run in self.agenda.trial_runs()),
            tuple(self.records[run.run_id] for run in self.agenda.final_runs()),
            self.agenda.chosen,
        )

    def _add(self, runs: Sequence[PreparedRun], *, first: bool = False) -> None:
        new = [run for run in runs if run.run_id not in self.known]
        self.known |= {run.run_id: run for run in new}
        ids = list(dict.fromkeys(run.run_id for run in new if not self._is_settled(run.run_id)))
        self.todo = deque([*ids, *self.todo] if first else [*self.todo, *ids])

    def _is_settled(self, run_id: str) -> bool:
        """Take a run that need not be carried out from the store."""
        record = None if self.options.force else self.store.examine(run_id, self.warn)
        if record is None or to_repeat(record.status, self.options):
            return False
        if record.status == "done":
            with RunLocks(self.store.root, needed=not self.options.sharded) as locks:
                forget_snapshot(self.store, locks, run_id)
        self.records[run_id] = record
        self.view.hear(Ended(run_id=run_id, record=record, found=True))
        return True

    def _submit(self) -> None:
        for _ in range(len(self.todo)):
            if not self.executor.has_room():
                return
            run_id = self.todo.popleft()
            if time.monotonic() < self.not_before_s.get(run_id, -math.inf):
                self.todo.append(run_id)
                continue
            self.under_way.add(run_id)
            self.executor.submit(self.known[run_id])

    def _until_next_s(self) -> float:
        now = time.monotonic()
        return max(0.0, min(self.not_before_s.get(run_id, now) - now for run_id in self.todo))

    def _hear(self, event: Event) -> None:
        self.view.hear(event)
        match event:
            case Ended():
                self.under_way.discard(event.run_id)
                self.records[event.run_id] = event.record
                self._follow()
            case Busy():
                self.under_way.discard(event.run_id)
                self.not_before_s[event.run_id] = time.monotonic() + POLL_S
                self.todo.append(event.run_id)
            case Lost():
                self.under_way.discard(event.run_id)
                if self._is_ending():
                    self.todo.appendleft(event.run_id)
                else:
                    self._repeat(event)
            case Refused():
                self.refusal = self.refusal or event.message

    def _follow(self) -> None:
        before = len(self.agenda.chosen)
        self._add(self.agenda.follow(self.records), first=True)
        if len(self.agenda.chosen) > before:
            self.view.expect(self.agenda.expected())

    def _repeat(self, event: Lost) -> None:
        """Carry a run out again, unless it may be what kills whoever has it."""
        self.losses[event.run_id] += 1
        if self.losses[event.run_id] < MOST_LOSSES:
            self.todo.appendleft(event.run_id)
            return
        reason = f"given up after {MOST_LOSSES} attempts: {event.reason}"
        record = blank_record(self.known[event.run_id], utc_now(), "failed", reason)
        save_unfinished(self.store, record, self.warn)
        self._hear(Ended(run_id=event.run_id, record=record))

    def _is_ending(self) -> bool:
        return self.stop() or self.refusal is not None

    def _wind_up(self) -> None:
        """Let every run keep its state, then stop."""
        if self.under_way:
            count = len(self.under_way)
            message = f"stopping: {count} run(s) keep their state (a second signal stops at once)"
            self.warn(message)
            self.executor.stop()
        while self.under_way:
            self.executor.poll(self._hear, _TICK_S)
        if self.refusal is not None:
            raise UserError(self.refusal)
        raise KeyboardInterrupt

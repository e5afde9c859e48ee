"""The runs of a command: trials of a sweep, the choices they decide, and the reported runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spafit_bench.config.run_config import RunConfig
from spafit_bench.config.sweep import Choice, Sweep, SweepCell, final_configs, trial_configs
from spafit_bench.results.record import RunRecord
from spafit_bench.training.prepare import PreparedRun, Preparer


class Agenda:
    """Which runs there are, which records they have, and which runs follow from choices."""

    def __init__(self, runs: Sequence[PreparedRun] = ()) -> None:
        self.finals = list(runs)
        """The reported runs that are known by now."""
        self.records: dict[str, RunRecord] = {}
        """Run id -> record, of the runs that have ended."""
        self.chosen: dict[SweepCell, Any] = {}
        """SweepCell -> the chosen value, None if every trial failed or collapsed."""
        self.choice: Choice | None = None
        """What the trials choose."""
        self._trials: dict[SweepCell, dict[Any, list[PreparedRun]]] = {}
        self._guesses: dict[SweepCell, list[PreparedRun]] = {}
        """The reported runs of a group if its first value is chosen."""
        self._finals_of: Callable[[Mapping[SweepCell, Any]], list[PreparedRun]] = lambda _: []
        """Prepares the reported runs that follow from choices."""

    @classmethod
    def of_sweep(cls, sweep: Sweep, preparer: Preparer | None = None) -> Agenda:
        """Find and check the inputs of every run of a sweep.

        Args:
            sweep: the matrix.
            preparer: prepares runs for other machines than this one.

        Raises:
            UserError: an input that would keep a run from starting.
        """
        agenda, preparer = cls(), preparer or Preparer()

        def prepared(configs: Sequence[RunConfig]) -> list[PreparedRun]:
            return [preparer.prepare(config) for config in configs]

        def finals(chosen: Mapping[SweepCell, Any]) -> list[PreparedRun]:
            return prepared(final_configs(sweep, chosen))

        for group, values in trial_configs(sweep).items():
            agenda._trials[group] = {v: prepared(configs) for v, configs in values.items()}
            agenda._guesses[group] = finals({group: next(iter(values))})
        agenda._finals_of, agenda.choice = finals, sweep.choice
        if not agenda._trials:
            agenda.finals = finals({})
        return agenda

    @property
    def trials(self) -> list[PreparedRun]:
        """Every run that only serves a choice, cell by cell."""
        return [run for group in self._trials for run in self._trials_of(group)]

    def _trials_of(self, group: SweepCell) -> list[PreparedRun]:
        return [run for runs in self._trials[group].values() for run in runs]

    def expected(self) -> list[PreparedRun]:
        """Return every run, each once; an open choice counts as its first value."""
        open_ = [run for g, runs in self._guesses.items() if g not in self.chosen for run in runs]
        return list({run.run_id: run for run in (*self.trials, *self.finals, *open_)}.values())

    def choose(self) -> list[PreparedRun]:
        """Make every choice whose trials have all ended; return the runs that follow."""
        new: list[PreparedRun] = []
        for group, values in self._trials.items():
            if group in self.chosen or any(
                run.run_id not in self.records for run in self._trials_of(group)
            ):
                continue
            trials = {v: [self.records[run.run_id] for run in runs] for v, runs in values.items()}
            self.chosen[group] = choose(trials)
            new += self._finals_of({group: self.chosen[group]})
        self.finals += new
        return new

    def all_records(self) -> list[RunRecord]:
        """Return the record of every run, each once: trials, then reported runs."""
        ids = dict.fromkeys(run.run_id for run in (*self.trials, *self.finals))
        return [self.records[run_id] for run_id in ids]

    @property
    def is_whole(self) -> bool:
        """Whether every reported run is done; trials may fail, that is what they are for."""
        done = all(self.records[run.run_id].status == "done" for run in self.finals)
        return done and None not in self.chosen.values()


def choose(trials: Mapping[Any, Sequence[RunRecord]]) -> Any | None:
    """Return the value whose trials have the best mean score, or None if none can be chosen."""
    means = {
        value: statistics.fmean(record.score or 0.0 for record in records)
        for value, records in trials.items()
        if records and all(r.status == "done" and not r.collapsed for r in records)
    }
    return max(means, key=lambda value: means[value]) if means else None

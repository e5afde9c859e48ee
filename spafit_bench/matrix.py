"""Carries out a sweep: trials, choices, then the runs that are reported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spafit_bench.prepare import PreparedRun, Preparer
from spafit_bench.record import RunRecord
from spafit_bench.run import Options, View, run_all
from spafit_bench.store import Store
from spafit_bench.sweep import Group, Sweep, choose, final_configs, trial_configs


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
        """Every run."""
        return (*self.trials, *self.finals)


def run_sweep(sweep: Sweep, store: Store, view: View, options: Options) -> MatrixResult:
    """Carry out a sweep, or the rest of it.

    Every input is found and checked before the first run starts. Trials and choices are made group
    by group, so that reported runs appear early.

    Raises:
        UserError: an input that would keep a run from starting.
        KeyboardInterrupt: as `run_all`.
    """
    preparer = Preparer()
    trials = {
        group: {value: [preparer.prepare(c) for c in configs] for value, configs in values.items()}
        for group, values in trial_configs(sweep).items()
    }
    first_guess = {group: next(iter(values)) for group, values in trials.items()}
    for config in final_configs(sweep, first_guess):
        preparer.prepare(config)
    if not trials:
        runs = [preparer.prepare(config) for config in final_configs(sweep, {})]
        return MatrixResult((), tuple(run_all(runs, store, view, options)), {})
    trial_records: list[RunRecord] = []
    final_records: list[RunRecord] = []
    chosen: dict[Group, Any] = {}
    for group, values in trials.items():
        chosen[group], records = _choose(values, store, view, options)
        trial_records += records
        configs = final_configs(sweep, {group: chosen[group]})
        runs = [preparer.prepare(config) for config in configs]
        final_records += run_all(runs, store, view, options)
    return MatrixResult(tuple(trial_records), tuple(final_records), chosen)


def _choose(
    values: dict[Any, list[PreparedRun]], store: Store, view: View, options: Options
) -> tuple[Any, list[RunRecord]]:
    runs = [run for value_runs in values.values() for run in value_runs]
    records = run_all(runs, store, view, options)
    by_id = {record.run_id: record for record in records}
    trials = {value: [by_id[run.run_id] for run in runs] for value, runs in values.items()}
    return choose(trials), records


def planned_runs(sweep: Sweep) -> list[PreparedRun]:
    """Return every run of a sweep; those that wait for a choice stand with its first value."""
    preparer = Preparer()
    trials = trial_configs(sweep)
    first_guess = {group: next(iter(values)) for group, values in trials.items()}
    configs = [c for values in trials.values() for runs in values.values() for c in runs]
    return [preparer.prepare(c) for c in (*configs, *final_configs(sweep, first_guess))]


def threads_per_worker(jobs: int) -> int:
    """Divide the CPU's threads among processes."""
    return max(1, (os.cpu_count() or 1) // jobs)


def run_workers(arguments: Sequence[str], jobs: int, num_gpus: int) -> int:
    """Start several processes on one sweep; claims share the runs out among them.

    Args:
        arguments: of `spafit-bench`, without `--jobs`.
        jobs: processes; the CPU's threads are divided among them, and GPUs go round.
        num_gpus: GPUs here.

    Returns:
        The worst exit code.
    """
    threads = str(threads_per_worker(jobs))
    workers = []
    for number in range(jobs):
        environment = os.environ | {"OMP_NUM_THREADS": threads, "SPAFIT_BENCH_WORKER": str(number)}
        if num_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % num_gpus)
        command = [sys.executable, "-m", "spafit_bench", *arguments]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    codes = []
    for worker in workers:
        while True:
            try:
                codes.append(worker.wait())
                break
            except KeyboardInterrupt:
                continue  # the workers got the signal too; they keep their state and stop
    return max(code if code >= 0 else 128 - code for code in codes)

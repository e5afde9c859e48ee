"""What `run`, `demo` and `sweep` do."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_bench.base.errors import DamagedError, UserError, nearest
from spafit_bench.cli.commands.output import rendered, to_json
from spafit_bench.config.selection import RunRequest, run_configs
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store
from spafit_bench.running.launch import end_with_launcher, is_one_of_several, run_processes

if TYPE_CHECKING:
    from spafit_bench.config.sweep import Sweep
    from spafit_bench.running.executors import Executor
    from spafit_bench.running.forecast import Forecast
    from spafit_bench.running.series import Options
    from spafit_bench.running.sweep_driver import Agenda, MatrixResult
    from spafit_bench.training.prepare import PreparedRun


def launch(processes: int) -> int | None:
    """Let several processes do what this one was asked to; return the exit code.

    Returns None where this process is itself to do it, or its part of it.
    """
    if is_one_of_several():
        end_with_launcher()
    elif processes > 1:
        return run_processes(sys.argv[1:], processes)
    return None


def prepare_runs(request: RunRequest) -> list[PreparedRun]:
    """Find and check the inputs of every requested run, before the first one starts.

    Where several processes share every batch, they meet here.
    """
    if not is_one_of_several():
        return _prepare_runs(request)
    from spafit_bench.base import distributed
    from spafit_bench.training.environment import versions

    distributed.join()
    runs = distributed.in_one_voice(lambda: _prepare_runs(request))
    facts = [f"{name} {version}" for name, version in versions().items()]
    distributed.check_same([*facts, *(run.run_id for run in runs)])
    return runs


def _prepare_runs(request: RunRequest) -> list[PreparedRun]:
    configs = run_configs(request)
    from spafit_bench.base.libraries import load_libraries

    load_libraries()
    from spafit_bench.training.prepare import Preparer

    preparer = Preparer()
    return [preparer.prepare(config) for config in configs]


def check_log(log: str | None, *, on_cluster: bool = False) -> None:
    """Refuse a kind of log that cannot be written, before anything is prepared."""
    if log is None:
        return
    from spafit_bench.running import tensorboard_log

    if on_cluster:
        raise UserError(
            f"--log {log}: with --executor ray it would stay on the nodes; leave it out"
        )
    tensorboard_log.check_log(log)


def run(
    runs: Sequence[PreparedRun],
    results: Path,
    *,
    force: bool,
    retry_failed: bool,
    log: str | None = None,
    as_json: bool,
) -> tuple[list[RunRecord], str]:
    """Carry out runs; return their records, and tables (or JSON) of them."""
    from spafit_bench.cli.views.progress import ProgressView
    from spafit_bench.running.series import Options, run_all

    view = ProgressView()
    try:
        options = Options(force=force, retry_failed=retry_failed, log=log)
        records = run_all(runs, Store(results), view, options)
    finally:
        view.close()
    if as_json:
        bodies = [record.model_dump(mode="json") for record in records]
        return records, to_json(bodies[0] if len(bodies) == 1 else {"runs": bodies})
    return records, _summary(records, results)


def _summary(records: Sequence[RunRecord], results: Path) -> str:
    done = [record for record in records if record.status == "done"]
    lines = [f"{len(done)} of {len(records)} runs done; records in {results / 'runs'}"]
    lines += [f"{r.run_id}: {r.status} ({r.reason})" for r in records if r.status != "done"]
    if not done:
        return "\n".join(lines)
    from spafit_bench.analysis.tables import build_tables

    scores = [table for table in build_tables(done) if table.kind == "scores"]
    return rendered(scores, "terminal") + "\n" + "\n".join(lines)


_NEXT = """
What to try next
  spafit-bench show mrpc-spafit --results {results}
      one of these runs in full
  spafit-bench plan --method spafit
      what SPAFIT trains in BERT-large-cased, layer by layer
  spafit-bench run --task mrpc --method "0-1:frozen;2-5:lora(value,r=8,alpha=16)" --preset smoke
      a method of your own, in one line
  spafit-bench run --task mrpc --method spafit,lora --seed 0-2
      the real thing: GLUE and BERT-large-cased from the hub
"""


def demo(results: Path, jobs: int, *, as_json: bool) -> tuple[bool, str]:
    """Run every task with four methods on the package's own model and data; tables of all."""
    request = SweepRequest(config="demo", results=results, jobs=jobs)
    is_whole, text = sweep(request, as_json=as_json)
    if as_json:
        return is_whole, text
    from spafit_bench.cli.commands.results import table

    return is_whole, table(results, "terminal", None) + _NEXT.format(results=results)


def dry_run(
    runs: Sequence[PreparedRun], results: Path, *, force: bool, retry_failed: bool, as_json: bool
) -> str:
    """Say what would run and what it would cost, about; run by run."""
    from spafit_bench.running.forecast import forecast_table
    from spafit_bench.running.series import Options

    rows = _forecasts(runs, Store(results), Options(force=force, retry_failed=retry_failed))
    return _forecast_json(rows) if as_json else forecast_table(rows)


def _forecasts(runs: Sequence[PreparedRun], store: Store, options: Options) -> list[Forecast]:
    from spafit_bench.running.forecast import forecast

    return [
        forecast(run, finished=_settled(store, run.run_id, options) is not None) for run in runs
    ]


def _forecast_json(rows: Sequence[Forecast]) -> str:
    return to_json({"runs": [row.as_dict() for row in rows]})


def _settled(store: Store, run_id: str, options: Options) -> RunRecord | None:
    """Return the record of a run that would not be carried out, if it is one."""
    from spafit_bench.running.series import to_repeat

    with suppress(DamagedError):  # it will be made anew
        found = None if options.force else store.find(run_id)
        return None if found is None or to_repeat(found.status, options) else found
    return None


@dataclass(frozen=True, kw_only=True)
class RayRequest:
    """Flags of `sweep` about a Ray cluster."""

    address: str | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0


def ray_request(executor: str, flags: Mapping[str, Any], jobs: int) -> RayRequest | None:
    """Read the flags about a cluster, those that were given; None where there is none."""
    if executor == "ray":
        if jobs > 1:
            raise UserError("--jobs is of this machine: with --executor ray give --cpus-per-run")
        return RayRequest(**flags)
    if executor != "local":
        raise UserError(f"--executor {executor}: {nearest(executor, ('local', 'ray'))}")
    for flag in flags:
        raise UserError(f"--{flag.replace('_', '-')} is of a Ray cluster: add --executor ray")
    return None


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """The flags of `sweep`."""

    config: str
    results: Path
    jobs: int = 1
    ray: RayRequest | None = None
    """Set where the runs go to a cluster."""
    shard: str = "1/1"
    task: str | None = None
    """Part of the file's, like `method`; None: all."""
    method: str | None = None
    seed: str | None = None
    """Instead of the file's."""
    assignments: Sequence[str] = ()
    force: bool = False
    retry_failed: bool = False
    log: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)

    def sweep(self) -> Sweep:
        """Read the sweep."""
        if is_one_of_several():
            raise UserError(
                "sweep: torchrun is for single runs (`run`); start a sweep without it, and --jobs "
                "shares its runs out"
            )
        from spafit_bench.config.sweep import narrowed, parse_shard, read_sweep, sweep_path

        found = read_sweep(sweep_path(self.config), self.flags, self.assignments)
        found = narrowed(found, self.task, self.method, self.seed)
        return replace(found, shard=parse_shard(self.shard))


def sweep(request: SweepRequest, *, as_json: bool) -> tuple[bool, str]:
    """Carry out a sweep, or the rest of it; tell whether all that is reported is there.

    Every input is found and checked before the first run starts.
    """
    matrix = request.sweep()
    check_log(request.log, on_cluster=request.ray is not None)
    from spafit_bench.base.stop import StopSignal
    from spafit_bench.cli.views.sweep import SweepView
    from spafit_bench.running.series import Options
    from spafit_bench.running.sweep_driver import run_sweep

    store = Store(request.results)
    options = Options(
        force=request.force,
        retry_failed=request.retry_failed,
        sharded=matrix.shard != (1, 1),
        log=request.log,
    )
    stop = StopSignal()
    agenda, executor = _agenda(request, matrix, options, stop)
    view = SweepView(request.config, matrix.keys, request.force)
    with view, stop:  # after Ray has set its own handlers
        done = run_sweep(agenda, store, executor, view, options, stop)
    if as_json:
        runs = [record.model_dump(mode="json") for record in done.records]
        return done.is_whole, to_json({"runs": runs})
    return done.is_whole, _sweep_summary(request, done)


def _agenda(
    request: SweepRequest, matrix: Sweep, options: Options, stop: Callable[[], bool]
) -> tuple[Agenda, Executor]:
    """Prepare the runs for where they will be carried out."""
    from spafit_bench.running.sweep_driver import Agenda

    store = Store(request.results)
    if request.ray is not None:
        from spafit_bench.running.ray_executor import RayExecutor, Resources, connect

        resources = Resources(request.ray.cpus_per_run, request.ray.gpus_per_run)
        cluster = connect(request.ray.address, resources)
        agenda = Agenda(matrix, cluster.preparer())
        return agenda, RayExecutor(cluster, store, options)
    from spafit_bench.running.executors import local_executor

    agenda = Agenda(matrix)
    return agenda, local_executor(request.jobs, agenda.expected(), store, options, stop)


def _sweep_summary(request: SweepRequest, done: MatrixResult) -> str:
    lines = [
        f"chosen for {group.method} on {group.task}: "
        + ("none, every trial failed or collapsed" if value is None else str(value))
        for group, value in done.chosen.items()
    ]
    failed = [record for record in done.records if record.status != "done"]
    lines += [f"{r.run_id}: {r.status} ({r.reason})" for r in failed]
    lines.append(f"{len(done.records) - len(failed)} of {len(done.records)} runs done")
    if failed and not done.is_whole:
        again = ["spafit-bench", *(word for word in sys.argv[1:] if word != "--force")]
        again += [] if request.retry_failed else ["--retry-failed"]
        lines.append(f"to try the failed ones again: {shlex.join(again)}")
    else:
        lines.append(f"next: spafit-bench table --results {shlex.quote(str(request.results))}")
    return "\n".join(lines)


def sweep_dry_run(request: SweepRequest, *, as_json: bool) -> str:
    """Say what a sweep would run and what it would take, about."""
    matrix = request.sweep()
    from spafit_bench.running.executors import divide_threads
    from spafit_bench.running.forecast import forecast_cells
    from spafit_bench.running.series import Options
    from spafit_bench.running.sweep_driver import Agenda

    if request.ray is not None:
        sys.stderr.write(
            "note: nodes may have another device, precision or number of threads than this "
            "machine, which are part of a run's name; what they finished is not counted then\n"
        )
    divide_threads(request.jobs)
    agenda, store = Agenda(matrix), Store(request.results)
    options = Options(force=request.force, retry_failed=request.retry_failed)
    trials = {run.run_id: _settled(store, run.run_id, options) for run in agenda.trial_runs()}
    agenda.follow({run_id: record for run_id, record in trials.items() if record is not None})
    rows = _forecasts(agenda.expected(), store, options)
    return _forecast_json(rows) if as_json else forecast_cells(rows, request.jobs)

"""What `run`, `demo` and `sweep` do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_bench.commands.output import rendered, to_json
from spafit_bench.errors import DamagedError
from spafit_bench.record import RunRecord
from spafit_bench.requests import RunRequest, run_configs
from spafit_bench.store import Store

if TYPE_CHECKING:
    from spafit_bench.matrix import MatrixResult
    from spafit_bench.prepare import PreparedRun
    from spafit_bench.sweep import Sweep


def prepare_runs(request: RunRequest) -> list[PreparedRun]:
    """Find and check the inputs of every requested run, before the first one starts."""
    configs = run_configs(request)
    from spafit_bench.prepare import Preparer

    preparer = Preparer()
    return [preparer.prepare(config) for config in configs]


def run(
    runs: Sequence[PreparedRun],
    results: Path,
    *,
    force: bool,
    retry_failed: bool,
    as_json: bool,
) -> tuple[list[RunRecord], str]:
    """Carry out runs; return their records, and tables (or JSON) of them."""
    from spafit_bench.progress import ProgressView
    from spafit_bench.run import Options, run_all

    view = ProgressView()
    try:
        options = Options(force=force, retry_failed=retry_failed)
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
    from spafit_bench.tables import build_tables

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


def demo(results: Path, jobs: int, *, as_json: bool) -> tuple[list[RunRecord], str]:
    """Run every task with four methods on the package's own model and data; tables of all."""
    request = SweepRequest(config="demo", results=results)
    arguments = ["sweep", "demo", "--results", str(results)]
    records, text = sweep_with_workers(request, arguments, jobs, as_json=as_json)
    if as_json:
        return records, text
    from spafit_bench.commands.results import table

    return records, table(results, "terminal", None) + _NEXT.format(results=results)


def dry_run(runs: Sequence[PreparedRun], results: Path, *, as_json: bool) -> str:
    """Say what would run and what it would cost, about."""
    from spafit_bench.forecast import forecast

    finished = _finished(runs, Store(results))
    rows = [forecast(prepared, finished=prepared.run_id in finished) for prepared in runs]
    if as_json:
        return to_json({"runs": [row.as_dict() for row in rows]})
    from spafit_bench.forecast import forecast_table

    return forecast_table(rows)


def _finished(runs: Sequence[PreparedRun], store: Store) -> set[str]:
    done = set()
    for run in runs:
        with suppress(DamagedError):  # it will be made anew
            record = store.find(run.run_id)
            done |= {run.run_id} if record and record.status == "done" else set()
    return done


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """The flags of `sweep`."""

    config: str
    results: Path
    shard: str = "1/1"
    force: bool = False
    retry_failed: bool = False
    flags: Mapping[str, Any] = field(default_factory=dict)

    def sweep(self) -> Sweep:
        """Read the sweep."""
        from spafit_bench.sweep import parse_shard, read_sweep, sweep_path

        found = read_sweep(sweep_path(self.config), self.flags)
        return replace(found, shard=parse_shard(self.shard))


def sweep(
    request: SweepRequest, *, as_json: bool, quiet: bool = False
) -> tuple[list[RunRecord], str]:
    """Carry out a sweep, or the rest of it."""
    matrix = request.sweep()
    from spafit_bench.matrix import run_sweep
    from spafit_bench.progress import ProgressView
    from spafit_bench.run import Options

    view = ProgressView(quiet=quiet)
    options = Options(force=request.force, retry_failed=request.retry_failed)
    try:
        done = run_sweep(matrix, Store(request.results), view, options)
    finally:
        view.close()
    if as_json:
        return [*done.records], to_json({"runs": [r.model_dump(mode="json") for r in done.records]})
    return [*done.records], _sweep_summary(request, done)


def sweep_with_workers(
    request: SweepRequest, arguments: Sequence[str], jobs: int, *, as_json: bool
) -> tuple[list[RunRecord], str]:
    """Carry out a sweep in several processes.

    Args:
        request: the sweep.
        arguments: of `spafit-bench`, for each process.
        jobs: processes; with one, it is this process that does the work.
        as_json: what to return.

    Raises:
        KeyboardInterrupt: the processes were stopped.
    """
    if jobs == 1:
        return sweep(request, as_json=as_json)
    request.sweep()  # a mistake is said once, not by every process
    import torch

    from spafit_bench.matrix import run_workers, threads_per_worker

    if run_workers(arguments, jobs, torch.cuda.device_count()) not in (0, 1):
        raise KeyboardInterrupt
    # Everything is settled; what is left is to read it. Runs are named by the number of threads.
    torch.set_num_threads(threads_per_worker(jobs))
    once = replace(request, force=False, retry_failed=False)
    return sweep(once, as_json=as_json, quiet=True)


def _sweep_summary(request: SweepRequest, done: MatrixResult) -> str:
    lines = [
        f"chosen for {group.method} on {group.task}: "
        + ("none, every trial failed or collapsed" if value is None else str(value))
        for group, value in done.chosen.items()
    ]
    failed = [record for record in done.records if record.status != "done"]
    lines += [f"{r.run_id}: {r.status} ({r.reason})" for r in failed]
    lines.append(f"{len(done.records) - len(failed)} of {len(done.records)} runs done")
    if failed:
        results = shlex.quote(str(request.results))
        again = f"spafit-bench sweep {shlex.quote(request.config)} --results {results}"
        lines.append(f"to try the others again: {again} --retry-failed")
    else:
        lines.append(f"next: spafit-bench table --results {shlex.quote(str(request.results))}")
    return "\n".join(lines)


def sweep_dry_run(request: SweepRequest, *, as_json: bool) -> str:
    """Say what a sweep would run and what it would take, about."""
    matrix = request.sweep()
    from spafit_bench.matrix import planned_runs

    return dry_run(planned_runs(matrix), request.results, as_json=as_json)

"""Commands that train: run, sweep and demo."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spafit_bench.base.errors import DamagedError, UserError, nearest
from spafit_bench.cli.app import app
from spafit_bench.cli.loading import load_libraries
from spafit_bench.cli.options import (
    AllowEmpty,
    ConfigFile,
    Data,
    Device,
    DryRun,
    Force,
    Jobs,
    Json,
    Log,
    Methods,
    Model,
    Offline,
    Preset,
    Results,
    RetryFailed,
    Revision,
    Seeds,
    Set,
    SweepMethods,
    SweepSeeds,
    SweepTasks,
    Tasks,
    complete_sweeps,
    complete_tasks,
    exit_unless,
    given,
    how,
    joined,
    keep,
    what,
    where,
)
from spafit_bench.cli.output import print_json, print_text, waiting
from spafit_bench.results.store import Store

if TYPE_CHECKING:
    from spafit_bench.config.run_config import RunConfig
    from spafit_bench.config.selection import RunRequest
    from spafit_bench.config.sweep import Sweep
    from spafit_bench.results.record import RunRecord
    from spafit_bench.running.agenda import Agenda
    from spafit_bench.running.runner import Options
    from spafit_bench.training.prepare import PreparedRun

_DEMO_JOBS = min(2, os.cpu_count() or 1)


@app.command(
    epilog="Example: `spafit-bench run --task mrpc,rte --method spafit,lora --seed 0,1,2` "
    "(a finished run is not repeated)"
)
def run(
    task: Tasks = None,
    method: Methods = None,
    model: Model = None,
    revision: Revision = None,
    data: Data = None,
    seed: Seeds = None,
    split: Annotated[
        float | None, what(help="Share of train that becomes dev, if the folder has no dev set.")
    ] = None,
    limit: Annotated[
        int | None, what(help="Train on the first N examples; dev stays whole.")
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    assignments: Set = None,
    lr: Annotated[float | None, how(help="Peak learning rate.")] = None,
    epochs: Annotated[float | None, how(help="Epochs.")] = None,
    batch_size: Annotated[int | None, how(help="Examples per optimizer step.")] = None,
    batch_tokens: Annotated[
        int | None, how(help="Tokens per optimizer step (about), instead of --batch-size.")
    ] = None,
    max_length: Annotated[int | None, how(help="Tokens per example at most.")] = None,
    warmup: Annotated[float | None, how(help="Fraction of steps if below 1, else steps.")] = None,
    weight_decay: Annotated[float | None, how(help="Decoupled weight decay.")] = None,
    allow_empty: AllowEmpty = False,
    select: Annotated[
        str | None,
        how(
            help="Report the last evaluation, or the best one on dev (optimistic).",
            metavar="last|best",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        where(help="auto: bf16 where the hardware has it.", metavar="auto|fp32|bf16|fp16"),
    ] = None,
    engine: Annotated[
        str | None,
        where(
            help="auto: fast if it supports the model; plain: transformers' own forward pass.",
            metavar="auto|fast|plain",
        ),
    ] = None,
    cache_prefix: Annotated[
        bool,
        how(
            "--cache-prefix",
            help="Compute the output of the frozen first layers once and cache it. These layers "
            "have no dropout then, which changes results.",
        ),
    ] = False,
    cuda_graphs: Annotated[
        bool,
        where(
            "--cuda-graphs", help="On a GPU, record the steps of each batch shape and replay them."
        ),
    ] = False,
    device: Device = None,
    offline: Offline = False,
    results: Results = Path("results"),
    processes: Annotated[
        int,
        where(
            min=1,
            help="Number of processes that share every batch. Each has a GPU, or some CPU threads.",
        ),
    ] = 1,
    predict_test: Annotated[
        bool | None,
        keep("--predict-test/--no-predict-test", help="Predict the test sets at the end."),
    ] = None,
    save_weights: Annotated[
        str | None,
        keep(
            help="Which trained tensors to store: of all evaluations, the reported one, or none.",
            metavar="all|best|none",
        ),
    ] = None,
    measure_forgetting: Annotated[
        bool,
        how(
            "--measure-forgetting", help="Record how far each layer moved from the pretrained one."
        ),
    ] = False,
    log: Log = None,
    force: Force = False,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train and evaluate one or more methods on one or more tasks."""
    from spafit_bench.config.selection import RunRequest
    from spafit_bench.running.launch import launch

    _check_log(log)
    if (code := launch(processes, sys.argv[1:])) is not None:
        raise typer.Exit(code)
    train = {
        "learning_rate": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "max_length": max_length,
        "warmup": warmup,
        "weight_decay": weight_decay,
    }
    flags = {
        "model": model,
        "revision": revision,
        "data": data,
        "split": split,
        "offline": offline or None,
        "limit": limit,
        "select": select,
        "precision": precision,
        "engine": engine,
        "allow_empty": allow_empty or None,
        "cache_prefix": cache_prefix or None,
        "cuda_graphs": cuda_graphs or None,
        "device": device,
        "predict_test": predict_test,
        "save_weights": save_weights,
        "measure_forgetting": measure_forgetting or None,
        "train": given(train) or None,
    }
    request = RunRequest(
        task=joined(task),
        method=joined(method),
        seed=joined(seed),
        preset=preset,
        config=config,
        assignments=tuple(assignments or ()),
        flags=given(flags),
    )
    runs = prepare_runs(request)
    from spafit_bench.base import distributed
    from spafit_bench.base.stop import StopSignal
    from spafit_bench.cli.views.progress import ProgressView
    from spafit_bench.running.agenda import Agenda
    from spafit_bench.running.driver import drive
    from spafit_bench.running.executors import InProcess
    from spafit_bench.running.runner import Options, follow

    store, agenda, stop = Store(results), Agenda(runs), StopSignal()
    options = Options(force=force, retry_failed=retry_failed, log=log)
    if dry_run:
        _print_forecast(runs, store, options, as_json=as_json)
        return
    if distributed.rank() > 0:
        follow(runs)
        return
    with ProgressView(force=force and len(runs) > 1) as view, stop:
        drive(agenda, store, InProcess(store, options, stop), view, options, stop)
    records = agenda.all_records()
    if as_json:
        bodies = [record.model_dump(mode="json") for record in records]
        print_json(bodies[0] if len(bodies) == 1 else {"runs": bodies})
    else:
        print_text(_score_tables(records) + _summary(agenda, results, options))
    exit_unless(agenda.is_whole)


@app.command(epilog="Offline, on two CPU cores, in minutes; finished runs are not repeated.")
def demo(
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "--tasks",
            help="Only these tasks. \\[GLUE's nine]",
            autocompletion=complete_tasks,
            metavar="T[,T]",
        ),
    ] = None,
    results: Results = Path("results/demo"),
    jobs: Jobs = _DEMO_JOBS,
    as_json: Json = False,
) -> None:
    """Run nine tasks x four methods on a tiny BERT and mini-GLUE, and show the tables."""
    from spafit_bench.running.runner import Options

    agenda = _carry_out_sweep(
        "demo", _read_sweep("demo", task=joined(task)), results, Options(), jobs
    )
    if as_json:
        _print_records(agenda)
    else:
        from spafit_bench.cli.results import tables_text

        print_text(tables_text(results) + _NEXT.format(results=results))
    exit_unless(agenda.is_whole)


@app.command(epilog="Example: `spafit-bench sweep paper --dry-run`, then without")
def sweep(
    config: Annotated[
        str,
        typer.Argument(
            help="YAML file, or a shipped one of `list sweeps`, such as paper.",
            autocompletion=complete_sweeps,
            metavar="CONFIG",
        ),
    ],
    results: Results = Path("results"),
    task: SweepTasks = None,
    method: SweepMethods = None,
    seed: SweepSeeds = None,
    model: Model = None,
    data: Data = None,
    assignments: Set = None,
    allow_empty: AllowEmpty = False,
    device: Device = None,
    offline: Offline = False,
    jobs: Jobs = 1,
    executor: Annotated[
        str,
        where(
            help="Where runs are computed: on this machine, or on a Ray cluster.",
            metavar="local|ray",
        ),
    ] = "local",
    address: Annotated[
        str | None,
        where(
            help="Ray cluster's address. \\[RAY_ADDRESS, else one on this machine, else a new one]",
            metavar="HOST:PORT",
        ),
    ] = None,
    cpus_per_run: Annotated[
        float | None, where(min=0.1, help="CPUs for each run on the Ray cluster. \\[1]")
    ] = None,
    gpus_per_run: Annotated[
        float | None, where(min=0, help="GPUs for each run on the Ray cluster. \\[0]")
    ] = None,
    shard: Annotated[
        str,
        where(
            help="Run only part i of n of the sweep, for a scheduler's job array.", metavar="i/n"
        ),
    ] = "1/1",
    log: Log = None,
    force: Force = False,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run a matrix of tasks, methods and seeds; the same command resumes after a stop."""
    cluster = (address, cpus_per_run, gpus_per_run)
    on_cluster = executor == "ray"
    _check_executor(executor, jobs, cluster)
    _check_log(log, on_cluster=on_cluster)
    flags = {"model": model, "data": data, "device": device, "offline": offline or None}
    flags["allow_empty"] = allow_empty or None
    matrix = _read_sweep(
        config,
        given(flags),
        assignments or (),
        task=joined(task),
        method=joined(method),
        seed=joined(seed),
        shard=shard,
    )
    from spafit_bench.running.runner import Options

    options = Options(
        force=force, retry_failed=retry_failed, sharded=matrix.shard != (1, 1), log=log
    )
    if dry_run:
        if on_cluster:
            sys.stderr.write(
                "note: device, precision and threads are part of a run's name. If the nodes differ "
                "from this machine, this plan counts runs that they have finished as still to run\n"
            )
        _print_sweep_forecast(matrix, Store(results), options, jobs, as_json=as_json)
        return
    agenda = _carry_out_sweep(
        config, matrix, results, options, jobs, cluster if on_cluster else None
    )
    if as_json:
        _print_records(agenda)
    else:
        print_text(_summary(agenda, results, options, sweep=True))
    exit_unless(agenda.is_whole)


def prepare_runs(request: RunRequest) -> list[PreparedRun]:
    """Find and check the inputs of every requested run, before the first one starts.

    If several processes share every batch, they meet here.
    """
    from spafit_bench.running.launch import is_one_of_several

    if not is_one_of_several():
        return _prepare_runs(request)
    is_first = os.environ.get("RANK") == "0"
    with waiting("loading PyTorch") if is_first else nullcontext():
        from spafit_bench.base import distributed
        from spafit_bench.training.environment import versions

        distributed.join()
    runs = distributed.in_one_voice(lambda: _prepare_runs(request))
    facts = [f"{name} {version}" for name, version in versions().items()]
    distributed.check_same([*facts, *(run.run_id for run in runs)])
    return runs


def _prepare_runs(request: RunRequest) -> list[PreparedRun]:
    from spafit_bench.config.selection import run_configs

    configs = run_configs(request)
    _load_libraries(configs)
    from spafit_bench.training.prepare import Preparer

    preparer = Preparer()
    with waiting("reading data and checking models"):
        return [preparer.prepare(config) for config in configs]


def _load_libraries(configs: Sequence[RunConfig]) -> None:
    """Import PyTorch and transformers, which takes seconds, if the models and data exist."""
    from spafit_bench.data.custom_tasks import find_task
    from spafit_bench.data.layouts import layout_of

    for task, data in dict.fromkeys((c.task, c.data) for c in configs):
        if data not in ("hub", "mini"):
            layout_of(find_task(task).task, data)
    checkpoints = dict.fromkeys((c.model, c.revision, c.offline) for c in configs)
    load_libraries(checkpoints, dict.fromkeys(c.device for c in configs))


def _check_log(log: str | None, *, on_cluster: bool = False) -> None:
    if log is not None and on_cluster:
        raise UserError(f"--log {log} does not work with --executor ray: logs stay on the nodes")
    from spafit_bench.running.tensorboard_log import check_log

    check_log(log)


Cluster = tuple[str | None, float | None, float | None]
"""The flags of `sweep` about a Ray cluster: address, CPUs and GPUs of a run."""


def _check_executor(executor: str, jobs: int, cluster: Cluster) -> None:
    """Refuse flags that would have no effect."""
    if executor == "ray":
        if jobs > 1:
            raise UserError(
                "--jobs only applies to local runs; with --executor ray, use --cpus-per-run"
            )
    elif executor != "local":
        raise UserError(f"--executor {executor}: {nearest(executor, ('local', 'ray'))}")
    else:
        for flag, value in zip(("address", "cpus-per-run", "gpus-per-run"), cluster, strict=True):
            if value is not None:
                raise UserError(f"--{flag} only applies to a Ray cluster: add --executor ray")


def _read_sweep(
    config: str,
    flags: Mapping[str, Any] = MappingProxyType({}),
    assignments: Sequence[str] = (),
    *,
    task: str | None = None,
    method: str | None = None,
    seed: str | None = None,
    shard: str = "1/1",
) -> Sweep:
    """Read a sweep and the part of it that the flags ask for; load the libraries for it."""
    from spafit_bench.running.launch import is_one_of_several

    if is_one_of_several():
        raise UserError(
            "sweep: torchrun only works with `run`; start the sweep without it, and use --jobs to "
            "carry out several runs at a time"
        )
    from spafit_bench.config.sweep import (
        final_configs,
        narrowed,
        parse_shard,
        read_sweep,
        sweep_path,
        trial_configs,
    )

    matrix = narrowed(read_sweep(sweep_path(config), flags, assignments), task, method, seed)
    matrix = replace(matrix, shard=parse_shard(shard))
    trials = [c for values in trial_configs(matrix).values() for cs in values.values() for c in cs]
    _load_libraries(trials or final_configs(matrix, {}))
    return matrix


def _carry_out_sweep(
    name: str,
    matrix: Sweep,
    results: Path,
    options: Options,
    jobs: int,
    cluster: Cluster | None = None,
) -> Agenda:
    """Carry out a sweep, or the rest of it; every input is checked before the first run starts."""
    from spafit_bench.base.stop import StopSignal
    from spafit_bench.cli.views.progress import ProgressView
    from spafit_bench.running.agenda import Agenda
    from spafit_bench.running.driver import drive
    from spafit_bench.running.executors import Executor, divide_threads, local_executor

    store, stop = Store(results), StopSignal()
    executor: Executor
    if cluster is None:
        num_threads = divide_threads(jobs)  # before runs get their names
        with waiting("reading data and checking models"):
            agenda = Agenda.of_sweep(matrix)
        executor = local_executor(jobs, num_threads, agenda.expected(), store, options, stop)
    else:
        from spafit_bench.running.ray_executor import RayExecutor, Resources, connect

        address, cpus, gpus = cluster
        ray = connect(address, Resources(1.0 if cpus is None else cpus, gpus or 0.0))
        agenda = Agenda.of_sweep(matrix, ray.preparer())
        executor = RayExecutor(ray, store, options)
    with ProgressView(name, matrix.keys, options.force) as view, stop:  # after Ray's own handlers
        drive(agenda, store, executor, view, options, stop)
    return agenda


def _print_sweep_forecast(
    matrix: Sweep, store: Store, options: Options, jobs: int, *, as_json: bool
) -> None:
    """Print what a sweep would run and what it would cost, cell by cell."""
    from spafit_bench.running.agenda import Agenda
    from spafit_bench.running.executors import divide_threads

    divide_threads(jobs)
    agenda = Agenda.of_sweep(matrix)
    for run in agenda.trials:
        record = _stored(store, run.run_id, options)
        agenda.records |= {} if record is None else {run.run_id: record}
    agenda.choose()
    _print_forecast(agenda.expected(), store, options, as_json=as_json, jobs=jobs)


def _print_forecast(
    runs: Sequence[PreparedRun],
    store: Store,
    options: Options,
    *,
    as_json: bool,
    jobs: int | None = None,
) -> None:
    """Print estimated costs: a line for each run, or for each cell if `jobs` is given."""
    from spafit_bench.running.estimate import forecast, forecast_cells, forecast_table

    rows = [forecast(run, finished=_stored(store, run.run_id, options) is not None) for run in runs]
    if as_json:
        print_json({"runs": [asdict(row) for row in rows]})
    else:
        print_text(forecast_table(rows) if jobs is None else forecast_cells(rows, jobs))


def _stored(store: Store, run_id: str, options: Options) -> RunRecord | None:
    """Return the record of a run that would not be repeated."""
    from spafit_bench.running.runner import is_settled

    with suppress(DamagedError):  # the run would be repeated
        record = store.find(run_id)
        return record if is_settled(record, options) else None
    return None


def _print_records(agenda: Agenda) -> None:
    print_json({"runs": [record.model_dump(mode="json") for record in agenda.all_records()]})


def _score_tables(records: Sequence[RunRecord]) -> str:
    done = [record for record in records if record.status == "done"]
    if not done:
        return ""
    from spafit_bench.analysis.tables import build_tables
    from spafit_bench.cli.results import rendered

    scores = [table for table in build_tables(done) if table.kind == "scores"]
    return rendered(scores, "terminal") + "\n"


def _summary(agenda: Agenda, results: Path, options: Options, *, sweep: bool = False) -> str:
    """Return what was chosen, what failed, how many runs are done, and what to do next."""
    records = agenda.all_records()
    failed = [record for record in records if record.status != "done"]
    lines = []
    for group, value in agenda.chosen.items():
        cell = f"{group.method} on {group.task}"
        if value is None:
            lines.append(
                f"nothing chosen for {cell}: with every value a trial failed or collapsed (it "
                "predicts one constant), so there are no reported runs; try other values"
            )
        elif agenda.choice is not None and len(agenda.choice.values) > 1:
            settings = agenda.choice.settings(value).items()
            lines.append(f"chosen for {cell}: {', '.join(f'{k} = {v}' for k, v in settings)}")
        else:
            lines.append(f"chosen for {cell}: {value}")
    lines += [f"{r.run_id}: {r.status} ({r.reason})" for r in failed]
    count = len(records) - len(failed)
    lines.append(f"{count} of {len(records)} runs done; records in {results / 'runs'}")
    if failed and not agenda.is_whole:
        again = ["spafit-bench", *(word for word in sys.argv[1:] if word != "--force")]
        again += [] if options.retry_failed else ["--retry-failed"]
        lines.append(f"to try the failed ones again: {shlex.join(again)}")
    elif sweep and agenda.finals:
        lines.append(f"next: spafit-bench table --results {shlex.quote(str(results))}")
    return "\n".join(lines)


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

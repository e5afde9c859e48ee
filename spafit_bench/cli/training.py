"""Commands that train: run and demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from spafit_bench.cli.app import app
from spafit_bench.cli.options import (
    HOW,
    KEEP,
    WHAT,
    WHERE,
    ConfigFile,
    Device,
    DryRun,
    Force,
    Json,
    Log,
    Model,
    Offline,
    Preset,
    Results,
    RetryFailed,
    Revision,
    Set,
    complete_methods,
    complete_sweeps,
    complete_tasks,
    exit_unless,
    given,
    joined,
)
from spafit_bench.cli.output import print_text


@app.command(
    epilog="Example: `spafit-bench run --task mrpc,rte --method spafit,lora --seed 0,1,2` "
    "(a finished run is not repeated)"
)
def run(
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Task, comma list, all, or a YAML file that describes another.",
            autocompletion=complete_tasks,
            rich_help_panel=WHAT,
            metavar="T[,T]|all",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method, comma list, all, a YAML file, or one line such as "
            "'0-4:frozen;5-9:bias;10-23:lora(query+value,r=8,alpha=16)'.",
            autocompletion=complete_methods,
            rich_help_panel=WHAT,
            metavar="M[,M]|all",
        ),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="hub, mini, or a folder: hub parquet, GLUE TSV, CSV/JSONL. \\[hub]",
            rich_help_panel=WHAT,
            metavar="hub|mini|PATH",
        ),
    ] = None,
    seed: Annotated[
        list[str] | None, typer.Option(help="Seeds: 0, 0,2 or 0-4. \\[0]", rich_help_panel=WHAT)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Train on the first N examples; dev stays whole.", rich_help_panel=WHAT),
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    assignments: Set = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate.", rich_help_panel=HOW)
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs.", rich_help_panel=HOW)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples per optimizer step.", rich_help_panel=HOW)
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens per optimizer step, about, instead of --batch-size.", rich_help_panel=HOW
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens per example at most.", rich_help_panel=HOW)
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help="Fraction of steps if below 1, else steps.", rich_help_panel=HOW),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Decoupled weight decay.", rich_help_panel=HOW)
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            help="Report the last evaluation or the best (optimistic).",
            rich_help_panel=HOW,
            metavar="last|best",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="auto: bf16 where the hardware has it.",
            rich_help_panel=WHERE,
            metavar="auto|fp32|bf16|fp16",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="auto: fast where it can be; plain: transformers' own forward pass.",
            rich_help_panel=WHERE,
            metavar="auto|fast|plain",
        ),
    ] = None,
    cache_prefix: Annotated[
        bool,
        typer.Option(
            "--cache-prefix",
            help="Compute the frozen first layers once and keep their output; without dropout "
            "there, which changes results.",
            rich_help_panel=HOW,
        ),
    ] = False,
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="On a GPU, replay the launches of a step whose shape has come before.",
            rich_help_panel=WHERE,
        ),
    ] = False,
    device: Device = None,
    offline: Offline = False,
    results: Results = Path("results"),
    processes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that share every batch: each has a GPU, or some CPU threads.",
            rich_help_panel=WHERE,
        ),
    ] = 1,
    predict_test: Annotated[
        bool | None,
        typer.Option(
            "--predict-test/--no-predict-test",
            help="Predict the test sets at the end.",
            rich_help_panel=KEEP,
        ),
    ] = None,
    save_weights: Annotated[
        str | None,
        typer.Option(
            help="Trained tensors to keep: of all evaluations, the reported one, or none.",
            rich_help_panel=KEEP,
            metavar="all|best|none",
        ),
    ] = None,
    measure_forgetting: Annotated[
        bool,
        typer.Option(
            "--measure-forgetting",
            help="Record how far each layer moved from the pretrained one.",
            rich_help_panel=KEEP,
        ),
    ] = False,
    log: Log = None,
    force: Force = False,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train and evaluate one or more methods on one or more tasks."""
    from spafit_bench.cli.commands import training
    from spafit_bench.config.selection import RunRequest

    training.check_log(log)
    if (code := training.launch(processes)) is not None:
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
        "offline": offline or None,
        "limit": limit,
        "select": select,
        "precision": precision,
        "engine": engine,
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
    runs = training.prepare_runs(request)
    if dry_run:
        print_text(
            training.dry_run(runs, results, force=force, retry_failed=retry_failed, as_json=as_json)
        )
        return
    records, text = training.run(
        runs, results, force=force, retry_failed=retry_failed, log=log, as_json=as_json
    )
    print_text(text)
    exit_unless(all(record.status == "done" for record in records))


@app.command(epilog="Offline, on two CPU cores, in minutes; finished runs are not repeated.")
def demo(
    results: Results = Path("results/demo"),
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes that share the runs.", rich_help_panel=WHERE)
    ] = min(2, os.cpu_count() or 1),
    as_json: Json = False,
) -> None:
    """Show it all: nine tasks x four methods on a tiny BERT and mini-GLUE."""
    from spafit_bench.cli.commands import training

    is_whole, text = training.demo(results, jobs, as_json=as_json)
    print_text(text)
    exit_unless(is_whole)


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
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Some of the file's tasks only.",
            autocompletion=complete_tasks,
            rich_help_panel=WHAT,
            metavar="T[,T]",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Some of the file's methods only.",
            autocompletion=complete_methods,
            rich_help_panel=WHAT,
            metavar="M[,M]",
        ),
    ] = None,
    seed: Annotated[
        list[str] | None,
        typer.Option(help="Instead of the file's: 0-4, 0,2.", rich_help_panel=WHAT),
    ] = None,
    model: Model = None,
    data: Annotated[
        str | None,
        typer.Option(help="Instead of the file's.", rich_help_panel=WHAT, metavar="hub|mini|PATH"),
    ] = None,
    assignments: Set = None,
    device: Device = None,
    offline: Offline = False,
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes that share the runs: each has a GPU, or its part of the CPU threads.",
            rich_help_panel=WHERE,
        ),
    ] = 1,
    executor: Annotated[
        str,
        typer.Option(
            help="Where the runs are carried out: here, or on a Ray cluster.",
            rich_help_panel=WHERE,
            metavar="local|ray",
        ),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Of the Ray cluster. \\[RAY_ADDRESS, or one that runs here, or a new one]",
            rich_help_panel=WHERE,
            metavar="HOST:PORT",
        ),
    ] = None,
    cpus_per_run: Annotated[
        float | None,
        typer.Option(min=0.1, help="On the cluster; 1 if not given.", rich_help_panel=WHERE),
    ] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(min=0, help="On the cluster; 0 if not given.", rich_help_panel=WHERE),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            help="This part of the cells, for a scheduler's array.",
            rich_help_panel=WHERE,
            metavar="i/n",
        ),
    ] = "1/1",
    log: Log = None,
    force: Force = False,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Carry out a matrix of runs; the same command goes on after a stop."""
    from spafit_bench.cli.commands import training

    flags = given({"model": model, "data": data, "device": device, "offline": offline or None})
    ray = {"address": address, "cpus_per_run": cpus_per_run, "gpus_per_run": gpus_per_run}
    request = training.SweepRequest(
        config=config,
        results=results,
        jobs=jobs,
        ray=training.ray_request(executor, given(ray), jobs),
        shard=shard,
        task=joined(task),
        method=joined(method),
        seed=joined(seed),
        assignments=assignments or (),
        force=force,
        retry_failed=retry_failed,
        log=log,
        flags=flags,
    )
    if dry_run:
        print_text(training.sweep_dry_run(request, as_json=as_json))
    else:
        is_whole, text = training.sweep(request, as_json=as_json)
        print_text(text)
        exit_unless(is_whole)

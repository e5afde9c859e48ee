"""Commands that list what there is and show one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.cli.app import app
from spafit_bench.cli.options import (
    Json,
    OnlyMethods,
    OnlyModels,
    OnlyTasks,
    Results,
    Where,
    given,
    selection_of,
)
from spafit_bench.cli.output import columns, print_json, print_text
from spafit_bench.results.store import Store

Rows = list[dict[str, Any]]


@app.command(name="list", epilog="Example: `spafit-bench list runs --json`")
def list_(
    what: Annotated[
        str, typer.Argument(help="tasks, methods, models, sweeps or runs.", metavar="WHAT")
    ],
    results: Results = Path("results"),
    task: OnlyTasks = None,
    method: OnlyMethods = None,
    model: OnlyModels = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """List tasks, methods, models, sweeps or runs."""
    chosen = {"task": task, "method": method, "model": model, "where": where}
    kinds = {
        "tasks": (_tasks, "task title metrics outputs train dev text"),
        "methods": (_methods, "method strata"),
        "models": (_models, "model where"),
        "sweeps": (_sweeps, "sweep description"),
        "runs": (
            lambda: _runs(results, chosen),
            "run_id status task method model seed score trainable_percent",
        ),
    }
    if what not in kinds:
        raise UserError(f"cannot list {what!r}: {nearest(what, kinds)}")
    if what != "runs" and given(chosen):
        raise UserError(f"list {what}: --task, --method, --model and --where are for `list runs`")
    rows_of, names = kinds[what]
    rows = rows_of()
    if as_json:
        print_json({what: rows})
    else:
        print_text(columns(names.split(), rows))


def _runs(results: Path, chosen: Mapping[str, list[str] | None]) -> Rows:
    from spafit_bench.analysis.selection import select

    records = select(Store(results).records(), selection_of(**chosen))
    return [record.model_dump(mode="json") for record in records]


def _tasks() -> Rows:
    from spafit_bench.data.custom_tasks import find_task, shipped_tasks
    from spafit_bench.data.tasks import TASKS

    return [
        {
            "task": task.name,
            "title": task.title,
            "metrics": "+".join(task.metrics),
            "outputs": task.num_labels,
            "train": task.rows["train"],
            "dev": "+".join(str(task.rows[split]) for split in task.dev_splits),
            "text": ", ".join(task.inputs),
        }
        for task in (*TASKS.values(), *(find_task(name).task for name in shipped_tasks()))
    ]


def _methods() -> Rows:
    from spafit_bench.methods.method import ablation_names, get_method, method_names

    methods = [(name, get_method(name)) for name in (*method_names(), *ablation_names())]
    return [
        {"method": name, "strata": method.spec, "description": method.description}
        for name, method in methods
    ]


def _models() -> Rows:
    from spafit_bench.methods.architectures import ARCHITECTURES
    from spafit_bench.models.checkpoint import SHIPPED_MODELS

    shipped = [{"model": name, "where": "inside the package"} for name in SHIPPED_MODELS]
    return shipped + [
        {"model": f"any {kind}", "where": "hub name or folder (model_type in config.json)"}
        for kind in sorted(ARCHITECTURES)
    ]


def _sweeps() -> Rows:
    from spafit_bench.base.yaml_files import read_mapping
    from spafit_bench.config.sweep import sweep_names, sweep_path

    return [
        {"sweep": name, "description": read_mapping(sweep_path(name))["description"]}
        for name in sweep_names()
    ]


@app.command(epilog="Example: `spafit-bench show mrpc-spafit` (any unambiguous beginning)")
def show(
    run_id: Annotated[
        str, typer.Argument(help="A run, or the beginning of its name.", metavar="RUN")
    ],
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Show one run in full."""
    from spafit_bench.cli.views.run import run_text
    from spafit_bench.results.lookup import find_run

    found = find_run(run_id, Store(results))
    if as_json:
        print_json(found.record.model_dump(mode="json"))
    else:
        print_text(run_text(found.record, found.folder))

"""The command that shows what a method trains."""

from __future__ import annotations

from typing import Annotated

import typer

from spafit_bench.cli.app import app
from spafit_bench.cli.options import (
    Json,
    Model,
    Offline,
    Revision,
    Set,
    complete_methods,
    complete_tasks,
    given,
    print_text,
)

PlanMethod = Annotated[
    str,
    typer.Option(
        help="Method, a YAML file, or the one-line form.", autocompletion=complete_methods
    ),
]
PlanTask = Annotated[
    str | None,
    typer.Option(
        help="Count with this task's outputs; two labels otherwise.", autocompletion=complete_tasks
    ),
]


@app.command(epilog="Example: `spafit-bench plan --method spafit-4-9-ii --model bert-large-cased`")
def plan(
    method: PlanMethod = "spafit",
    model: Model = None,
    task: PlanTask = None,
    revision: Revision = None,
    offline: Offline = False,
    assignments: Set = None,
    as_json: Json = False,
) -> None:
    """Show, layer by layer, what a method trains, without loading weights."""
    from spafit_bench.cli.commands import planning
    from spafit_bench.config.selection import RunRequest

    flags = given({"model": model, "revision": revision, "offline": offline or None})
    request = RunRequest(
        task=task, method=method, flags=flags, assignments=tuple(assignments or ())
    )
    print_text(planning.plan(request, as_json=as_json))


app.command(name="params", help="Alias of plan.", hidden=True)(plan)

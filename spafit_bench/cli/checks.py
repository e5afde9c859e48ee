"""The commands that check before anything is run: doctor and data verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spafit_bench.cli.app import app
from spafit_bench.cli.options import Json, Offline, Results, complete_tasks, joined, print_text

data = typer.Typer(no_args_is_help=True, help="Check data before it is trained on.")
app.add_typer(data, name="data")

BAD_ENVIRONMENT = 2


@app.command(epilog="Example: `spafit-bench doctor --results /shared/glue`")
def doctor(
    results: Results = Path("results"), offline: Offline = False, as_json: Json = False
) -> None:
    """Say whether this machine can run benchmarks, and what to mend (then exit code 2)."""
    from spafit_bench.cli.commands import checks

    sound, text = checks.doctor(results, offline=offline, as_json=as_json)
    print_text(text)
    if not sound:
        raise typer.Exit(BAD_ENVIRONMENT)


@data.command(
    epilog="Examples: `spafit-bench data verify --data glue`, "
    "`spafit-bench data verify --task reviews.yaml --data FOLDER`"
)
def verify(
    source: Annotated[
        str, typer.Option("--data", help="What to read.", metavar="hub|mini|PATH")
    ] = "hub",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Task, comma list, or a YAML file that describes another. \\[GLUE's nine]",
            autocompletion=complete_tasks,
            metavar="T[,T]|all",
        ),
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Read tasks' data whole: what is there, rows, official or not, and damage (exit code 2)."""
    from spafit_bench.cli.commands import checks

    sound, text = checks.verify_data(source, joined(task), offline=offline, as_json=as_json)
    print_text(text)
    if not sound:
        raise typer.Exit(BAD_ENVIRONMENT)

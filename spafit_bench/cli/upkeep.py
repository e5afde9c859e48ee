"""Commands that tidy results folders: runs rm, runs gc and merge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from spafit_bench.cli.app import app
from spafit_bench.cli.options import (
    Json,
    Results,
    complete_methods,
    complete_tasks,
    given,
    print_text,
)

runs = typer.Typer(no_args_is_help=True, help="Remove runs, or what stopped processes left behind.")
app.add_typer(runs, name="runs")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask (only a terminal is asked).")]


def _ask(question: str, *, yes: bool) -> bool:
    """Ask on a terminal; a script has decided already."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    return typer.confirm(question, err=True)


@runs.command(
    epilog="Examples: `spafit-bench runs rm mrpc-spafit`, `spafit-bench runs rm --status failed`"
)
def rm(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs, or beginnings of names.", metavar="RUN...")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Only these tasks.", autocompletion=complete_tasks)
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only these methods.", autocompletion=complete_methods)
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only these models.")] = None,
    seed: Annotated[list[str] | None, typer.Option(help="Only these seeds.")] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(help="Only these.", metavar="done|diverged|failed|interrupted"),
    ] = None,
    results: Results = Path("results"),
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove runs: those that are named, or that pass every filter (comma lists)."""
    from spafit_bench.cli.commands import upkeep
    from spafit_bench.config.selection import split_list

    filters = {"task": task, "method": method, "model": model, "seed": seed, "status": status}
    how = upkeep.Removal(dry_run=dry_run, as_json=as_json, ask=lambda q: _ask(q, yes=yes))
    values = {key: split_list(",".join(value)) for key, value in given(filters).items()}
    print_text(upkeep.remove_runs(results, names or (), values, how))


@runs.command(epilog="Example: `spafit-bench runs gc --dry-run`")
def gc(
    results: Results = Path("results"),
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove half-written files, snapshots of ended runs, superseded failures, dead lock files."""
    from spafit_bench.cli.commands import upkeep

    how = upkeep.Removal(dry_run=dry_run, as_json=as_json, ask=lambda q: _ask(q, yes=yes))
    print_text(upkeep.collect_garbage(results, how))


@app.command(epilog="Example: `spafit-bench merge node1/results node2/results --results all`")
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Results folders.", metavar="DIR...")],
    results: Results = Path("results"),
    keep_apart: Annotated[
        bool,
        typer.Option(
            "--keep-apart",
            help="Put runs with other metrics than the one of the same name into "
            "DIR/conflicts; without it they are refused and nothing is merged.",
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Join results folders; nothing is overwritten, a run that is there twice is there once."""
    from spafit_bench.cli.commands import upkeep

    text = upkeep.merge(sources, results, keep_apart=keep_apart, dry_run=dry_run, as_json=as_json)
    print_text(text)

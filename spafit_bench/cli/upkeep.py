"""Commands that tidy results folders: runs rm, runs gc and merge."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spafit_bench.base.errors import UserError
from spafit_bench.base.units import human_bytes
from spafit_bench.cli.app import Commands, app
from spafit_bench.cli.options import (
    Json,
    OnlyMethods,
    OnlyModels,
    OnlyTasks,
    Results,
    Where,
    given,
    only,
    selection_of,
)
from spafit_bench.cli.output import print_json, print_note, print_text
from spafit_bench.results.store import Store

if TYPE_CHECKING:
    from spafit_bench.results.cleanup import Leftover

runs = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Remove runs, or files of stopped processes."
)
app.add_typer(runs, name="runs")

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask (only a terminal is asked).")]


@runs.command(
    epilog="Examples: `spafit-bench runs rm mrpc-spafit`, `spafit-bench runs rm --status failed`"
)
def rm(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs, or beginnings of names.", metavar="RUN...")
    ] = None,
    task: OnlyTasks = None,
    method: OnlyMethods = None,
    model: OnlyModels = None,
    where: Where = None,
    seed: Annotated[list[str] | None, only("--seed", help="Only these seeds.")] = None,
    status: Annotated[
        list[str] | None,
        only(
            "--status",
            help="Only runs with this status.",
            metavar="done|diverged|failed|interrupted",
        ),
    ] = None,
    results: Results = Path("results"),
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove the named runs, or all runs that pass every filter (comma lists)."""
    from spafit_bench.analysis.selection import select
    from spafit_bench.results.cleanup import Leftover, named_runs, refuse_live

    filters = {"task": task, "method": method, "model": model, "where": where}
    filters |= {"seed": seed, "status": status}
    if not names and not given(filters):
        flags = ", ".join(f"--{key}" for key in filters)
        raise UserError(f"name the runs, or choose them with {flags}")
    store = Store(results)
    records = select(store.records(), selection_of(**filters))
    if names:
        named = {record.run_id for record in named_runs(store, names)}
        records = [record for record in records if record.run_id in named]
    refuse_live(store, records)
    chosen = [Leftover(store.runs / r.run_id, r.status, r.run_id, record=r) for r in records]
    _remove(store, chosen, "runs", dry_run=dry_run, yes=yes, as_json=as_json)


@runs.command(epilog="Example: `spafit-bench runs gc --dry-run`")
def gc(
    results: Results = Path("results"),
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove half-written files, snapshots of finished runs, repeated failures, unused locks."""
    from spafit_bench.config.run_config import WITHOUT_EFFECT
    from spafit_bench.results.cleanup import leftovers

    store = Store(results)
    _remove(
        store,
        leftovers(store, WITHOUT_EFFECT),
        "leftovers",
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )


def _remove(
    store: Store, found: Sequence[Leftover], what: str, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Show what was found, ask if a person is there, and remove it."""
    from spafit_bench.results.cleanup import Leftover, remove

    names = {each: str(each.path.relative_to(store.root)) for each in found}
    sizes = {each: each.num_bytes for each in found}
    size = human_bytes(sum(sizes.values()))
    lines = [f"{name}: {each.why}" for each, name in names.items()]
    if dry_run and not as_json:
        print_text("\n".join([*lines, f"{len(found)} {what} would be removed ({size})"]))
        return
    gone, kept = list(found), list[Leftover]()
    if found and not dry_run:
        print_note("\n".join(lines))
        agreed = _ask(f"Remove {len(found)} {what} ({size})?", yes=yes)
        kept = remove(store, found) if agreed else []
        gone = [each for each in found if each not in kept] if agreed else []
    if as_json:
        verb = "would_remove" if dry_run else "removed"
        body = {verb: [names[each] for each in gone], "bytes": sum(sizes[each] for each in gone)}
        print_json(body | ({"kept": [names[each] for each in kept]} if kept else {}))
    elif not found:
        print_text(f"no {what} to remove in {store.root}")
    else:
        left = [f"not removed: {names[each]} changed, or another process uses it" for each in kept]
        print_text("\n".join([*left, f"{len(gone)} {what} removed from {store.root}"]))


def _ask(question: str, *, yes: bool) -> bool:
    """Ask on a terminal; elsewhere the answer is yes, since a script has decided already."""
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    return typer.confirm(question, err=True)


@app.command(epilog="Example: `spafit-bench merge node1/results node2/results --results all`")
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Results folders.", metavar="DIR...")],
    results: Results = Path("results"),
    keep_apart: Annotated[
        bool,
        typer.Option(
            "--keep-apart",
            help="Store a run in DIR/conflicts if DIR has a run of the same name with other "
            "metrics. Without this flag, nothing is merged if there is such a run.",
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Join results folders. Nothing is overwritten; a run that both have appears once."""
    from spafit_bench.results.merge import carry_out, plan_merge

    plan = plan_merge(sources, results)
    if not dry_run:
        carry_out(plan, keep_apart=keep_apart)
    refused = bool(plan.conflicts) and not keep_apart  # also in a dry run
    new = [] if refused else [found.record.run_id for found in plan.new]
    conflicts = [f"{found.record.run_id} in {found.store.root}" for found in plan.conflicts]
    if as_json:
        verb = "would_merge" if dry_run else "merged"
        print_json({verb: new, "identical": plan.num_identical, "conflicts": conflicts})
        return
    verb = "would be merged" if dry_run else "merged"
    lines = [f"{len(new)} runs {verb} into {results}, {plan.num_identical} are there already"]
    lines += [f"conflict: {line}" for line in conflicts]
    if refused:
        lines.append(
            f"nothing is merged: {len(conflicts)} run(s) have other metrics than the run of the "
            "same name; add --keep-apart to store them in a separate folder"
        )
    elif conflicts and not dry_run:
        lines.append(f"{len(conflicts)} conflicting runs are in {results / 'conflicts'}")
    print_text("\n".join(lines))

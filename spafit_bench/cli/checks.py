"""Commands that check a machine and its data before anything runs: doctor and data verify."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from spafit_bench.base.errors import UserError
from spafit_bench.cli.app import Commands, app
from spafit_bench.cli.options import Json, Offline, Results, complete_tasks, joined
from spafit_bench.cli.output import columns, print_json, print_text, waiting

data = typer.Typer(cls=Commands, no_args_is_help=True, help="Check data before training on it.")
app.add_typer(data, name="data")

BAD_ENVIRONMENT = 2


@app.command(epilog="Example: `spafit-bench doctor --results /shared/glue`")
def doctor(
    results: Results = Path("results"), offline: Offline = False, as_json: Json = False
) -> None:
    """Check whether this machine can run benchmarks; exit code 2 if something must be fixed."""
    from spafit_bench.running.doctor import examine_machine

    with waiting("examining this machine"):
        checks = examine_machine(results, offline=offline)
    sound = not any(check.verdict == "broken" for check in checks)
    if as_json:
        print_json({"sound": sound, "checks": [asdict(check) for check in checks]})
    else:
        rows = [{"check": c.name, "verdict": c.verdict, "found": c.found} for c in checks]
        lines = [columns(("check", "verdict", "found"), rows), ""]
        lines += [f"{check.verdict}: {check.name}: {check.fix}" for check in checks if check.fix]
        lines.append("this machine can run benchmarks" if sound else "fix what is broken first")
        print_text("\n".join(lines))
    if not sound:
        raise typer.Exit(BAD_ENVIRONMENT)


@data.command(
    epilog="Examples: `spafit-bench data verify --data glue`, "
    "`spafit-bench data verify --task reviews.yaml --data FOLDER`"
)
def verify(
    source: Annotated[
        str, typer.Option("--data", help="Data to read.", metavar="hub|mini|PATH")
    ] = "hub",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks, or a YAML file that describes one. \\[GLUE's nine]",
            autocompletion=complete_tasks,
            metavar="T[,T]|all",
        ),
    ] = None,
    split: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Share of train that becomes dev, if the folder has no dev set."
        ),
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Read the complete data of tasks; report rows, official or not, and damage (exit code 2)."""
    from spafit_bench.config.selection import split_list
    from spafit_bench.data.custom_tasks import find_task
    from spafit_bench.data.tasks import TASKS
    from spafit_bench.data.verify import is_one_tasks_folder
    from spafit_bench.data.verify import verify as verify_task

    names = joined(task)
    named = [] if names in (None, "all") else [find_task(name).task for name in split_list(names)]
    if not named and source not in ("hub", "mini"):
        flat = [each.name for each in TASKS.values() if is_one_tasks_folder(each, source)]
        if flat:
            raise UserError(
                f"{source}: the folder itself holds the files of one task; name the task "
                f"with --task (it could be {', '.join(flat)})"
            )
    with waiting("reading data"):
        findings = [
            verify_task(each, source, offline=offline, split=split)
            for each in named or TASKS.values()
        ]
    if all(each.finding == "missing" for each in findings):
        missing = ", ".join(each.task for each in findings)
        raise UserError(f"{source}: no files of {missing}; check other tasks with --task NAME")
    bad = {"damaged", "incomplete"} | ({"missing"} if named else set())
    sound = not any(each.finding in bad for each in findings)
    if as_json:
        print_json({"data": source, "sound": sound, "tasks": [asdict(each) for each in findings]})
    else:
        rows = [
            {"task": f.task, "finding": f.finding}
            | {"rows": ", ".join(f"{key} {count:,}" for key, count in f.rows.items()) or "-"}
            for f in findings
        ]
        lines = [columns(("task", "finding", "rows"), rows), ""]
        lines += [
            f"{f.task}: {f.problem}" for f in findings if f.problem and f.finding != "missing"
        ]
        lines += [f"{f.task}: {note}" for f in findings for note in f.notes]
        print_text("\n".join(lines).rstrip())
    if not sound:
        raise typer.Exit(BAD_ENVIRONMENT)

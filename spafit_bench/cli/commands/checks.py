"""What `doctor` and `data verify` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_bench.base.errors import UserError
from spafit_bench.cli.commands.output import Listing, columns, to_json
from spafit_bench.config.selection import split_list
from spafit_bench.data.custom_tasks import find_task
from spafit_bench.data.tasks import TASKS, Task

if TYPE_CHECKING:
    from spafit_bench.data.verify import TaskFinding
    from spafit_bench.running.doctor import Check


def doctor(results: Path, *, offline: bool, as_json: bool) -> tuple[bool, str]:
    """Look at this machine; return whether it can run benchmarks, and what was found."""
    from spafit_bench.running.doctor import examine_machine

    checks = examine_machine(results, offline=offline)
    sound = not any(check.verdict == "broken" for check in checks)
    if as_json:
        return sound, to_json({"sound": sound, "checks": [asdict(check) for check in checks]})
    return sound, _checks_text(checks, sound=sound)


def _checks_text(checks: Sequence[Check], *, sound: bool) -> str:
    keys = ("check", "verdict", "found")
    rows = [{"check": c.name, "verdict": c.verdict, "found": c.found} for c in checks]
    lines = [columns(Listing(keys, rows)), ""]
    lines += [f"{check.verdict}: {check.name}: {check.fix}" for check in checks if check.fix]
    lines.append("this machine can run benchmarks" if sound else "mend what is broken first")
    return "\n".join(lines)


def verify_data(source: str, task: str | None, *, offline: bool, as_json: bool) -> tuple[bool, str]:
    """Read the data of tasks; return whether it is sound, and what was found.

    Raises:
        UserError: no such folder or task, or nothing of any task in the folder.
    """
    from spafit_bench.data.verify import is_one_tasks_folder, verify

    named = [] if task in (None, "all") else [find_task(name).task for name in split_list(task)]
    if not named and source not in ("hub", "mini"):
        flat = [each.name for each in TASKS.values() if is_one_tasks_folder(each, source)]
        if flat:
            raise UserError(
                f"{source}: the files of one task lie in the folder itself; say which task "
                f"with --task (it could be {', '.join(flat)})"
            )
    findings = [verify(each, source, offline=offline) for each in _wanted(named)]
    if all(each.finding == "missing" for each in findings):
        names = ", ".join(each.task for each in findings)
        raise UserError(f"{source}: no files of {names}; others are checked with --task NAME")
    bad = ("damaged", "missing") if named else ("damaged",)
    sound = not any(each.finding in bad for each in findings)
    if as_json:
        body = {"data": source, "sound": sound, "tasks": [asdict(each) for each in findings]}
        return sound, to_json(body)
    return sound, _findings_text(findings)


def _wanted(named: Sequence[Task]) -> Sequence[Task]:
    return named or tuple(TASKS.values())


def _findings_text(findings: Sequence[TaskFinding]) -> str:
    keys = ("task", "finding", "rows")
    rows = [
        {"task": f.task, "finding": f.finding}
        | {"rows": ", ".join(f"{key} {count:,}" for key, count in f.rows.items()) or "-"}
        for f in findings
    ]
    lines = [columns(Listing(keys, rows)), ""]
    lines += [f"{f.task}: {f.problem}" for f in findings if f.problem and f.finding != "missing"]
    lines += [f"{f.task}: {note}" for f in findings for note in f.notes]
    return "\n".join(lines).rstrip()

"""What the commands that tidy results folders do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_bench.commands.output import to_json
from spafit_bench.store import Store
from spafit_bench.units import human_bytes

if TYPE_CHECKING:
    from spafit_bench.cleanup import Leftover

Ask = Callable[[str], bool]
"""Asks the user; False stops."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """How something is removed."""

    dry_run: bool
    as_json: bool
    ask: Ask


def remove_runs(
    results: Path, names: Sequence[str], filters: Mapping[str, Sequence[str]], how: Removal
) -> str:
    """Remove the runs that a user chose."""
    from spafit_bench.cleanup import Leftover, chosen_runs, refuse_live

    store = Store(results)
    records = chosen_runs(store, names, filters)
    refuse_live(store, records)
    chosen = [Leftover(store.runs / r.run_id, r.status, r.run_id) for r in records]
    return _remove(store, chosen, how, "runs")


def collect_garbage(results: Path, how: Removal) -> str:
    """Remove what stopped processes left behind."""
    from spafit_bench.cleanup import leftovers

    store = Store(results)
    return _remove(store, leftovers(store), how, "leftovers")


def _remove(store: Store, found: Sequence[Leftover], how: Removal, what: str) -> str:
    from spafit_bench.cleanup import remove

    total = sum(each.num_bytes for each in found)
    names = [str(each.path.relative_to(store.root)) for each in found]
    lines = [f"{n}: {each.why}" for n, each in zip(names, found, strict=True)]
    removed = False
    if found and not how.dry_run:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        removed = how.ask(f"Remove {len(found)} {what} ({human_bytes(total)})?")
        kept = remove(store, found) if removed else found
        names = [n for n, each in zip(names, found, strict=True) if each not in kept]
    if how.as_json:
        return to_json({"removed" if removed else "would_remove": names, "bytes": total})
    if how.dry_run:
        lines.append(f"{len(found)} {what} would be removed ({human_bytes(total)})")
        return "\n".join(lines)
    if not found:
        return f"no {what} to remove in {store.root}"
    return f"{len(names) if removed else 0} {what} removed from {store.root}"


def merge(
    sources: Sequence[Path], results: Path, *, keep_apart: bool, dry_run: bool, as_json: bool
) -> str:
    """Join results folders."""
    from spafit_bench.merge import carry_out, plan_merge

    plan = plan_merge(sources, results)
    if not dry_run:
        carry_out(plan, keep_apart=keep_apart)
    new = [found.record.run_id for found in plan.new]
    conflicts = [f"{found.record.run_id} in {found.store.root}" for found in plan.conflicts]
    if as_json:
        return to_json({"merged": new, "identical": plan.num_identical, "conflicts": conflicts})
    verb = "would be merged" if dry_run else "merged"
    lines = [f"{len(new)} runs {verb} into {results}, {plan.num_identical} are there already"]
    lines += [f"conflict: {line}" for line in conflicts]
    if conflicts and not dry_run:
        lines.append(f"{len(conflicts)} conflicting runs are in {results / 'conflicts'}")
    return "\n".join(lines)

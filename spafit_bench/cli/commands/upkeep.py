"""What the commands that tidy results folders do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_bench.base.units import human_bytes
from spafit_bench.cli.commands.output import to_json
from spafit_bench.results.store import Store

if TYPE_CHECKING:
    from spafit_bench.results.cleanup import Leftover

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
    from spafit_bench.results.cleanup import Leftover, chosen_runs, refuse_live

    store = Store(results)
    records = chosen_runs(store, names, filters)
    refuse_live(store, records)
    chosen = [Leftover(store.runs / r.run_id, r.status, r.run_id, record=r) for r in records]
    return _remove(store, chosen, how, "runs")


def collect_garbage(results: Path, how: Removal) -> str:
    """Remove what stopped processes left behind."""
    from spafit_bench.results.cleanup import leftovers

    store = Store(results)
    return _remove(store, leftovers(store), how, "leftovers")


def _remove(store: Store, found: Sequence[Leftover], how: Removal, what: str) -> str:
    from spafit_bench.results.cleanup import Leftover, remove

    names = {each: str(each.path.relative_to(store.root)) for each in found}
    sizes = {each: each.num_bytes for each in found}
    lines = [f"{name}: {each.why}" for each, name in names.items()]
    size = human_bytes(sum(sizes.values()))
    if how.dry_run and not how.as_json:
        return "\n".join([*lines, f"{len(found)} {what} would be removed ({size})"])
    gone, kept = list(found), list[Leftover]()
    if found and not how.dry_run:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        agreed = how.ask(f"Remove {len(found)} {what} ({size})?")
        kept = remove(store, found) if agreed else []
        gone = [each for each in found if each not in kept] if agreed else []
    if how.as_json:
        verb = "would_remove" if how.dry_run else "removed"
        body = {verb: [names[each] for each in gone], "bytes": sum(sizes[each] for each in gone)}
        return to_json(body | ({"kept": [names[each] for each in kept]} if kept else {}))
    if not found:
        return f"no {what} to remove in {store.root}"
    left = [f"kept {names[each]}: it changed, or somebody works on it now" for each in kept]
    return "\n".join([*left, f"{len(gone)} {what} removed from {store.root}"])


def merge(
    sources: Sequence[Path], results: Path, *, keep_apart: bool, dry_run: bool, as_json: bool
) -> str:
    """Join results folders."""
    from spafit_bench.results.merge import carry_out, plan_merge

    plan = plan_merge(sources, results)
    if not dry_run:
        carry_out(plan, keep_apart=keep_apart)
    refused = bool(plan.conflicts) and not keep_apart  # by a dry run, too
    new = [] if refused else [found.record.run_id for found in plan.new]
    conflicts = [f"{found.record.run_id} in {found.store.root}" for found in plan.conflicts]
    if as_json:
        verb = "would_merge" if dry_run else "merged"
        return to_json({verb: new, "identical": plan.num_identical, "conflicts": conflicts})
    verb = "would be merged" if dry_run else "merged"
    lines = [f"{len(new)} runs {verb} into {results}, {plan.num_identical} are there already"]
    lines += [f"conflict: {line}" for line in conflicts]
    if refused:
        lines.append(
            f"nothing would be merged: {len(conflicts)} run(s) have other metrics than the run of "
            "the same name; --keep-apart sets them apart"
        )
    elif conflicts and not dry_run:
        lines.append(f"{len(conflicts)} conflicting runs are in {results / 'conflicts'}")
    return "\n".join(lines)

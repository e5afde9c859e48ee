"""Joins results folders: shards that ran apart become one. Nothing that is there is overwritten."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spafit_bench.base.checksums import check_folder
from spafit_bench.base.errors import UserError
from spafit_bench.results.damage import set_damaged_aside
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_files
from spafit_bench.results.store import Store

log = logging.getLogger(__name__)

_MOST_NAMED = 5


@dataclass(frozen=True)
class Found:
    """A run and the results folder that has it."""

    record: RunRecord
    store: Store


@dataclass(frozen=True)
class Merge:
    """What joining folders would do."""

    dest: Store
    new: tuple[Found, ...]
    """Runs that the destination lacks, or has without a result."""
    num_identical: int
    """Runs that are there already, with the same result."""
    conflicts: tuple[Found, ...]
    """Finished runs whose metrics are not those of the run of the same name."""


def plan_merge(sources: Sequence[Path], dest: Path) -> Merge:
    """Read every folder, and decide for every run; nothing is written.

    A finished run stands in for one that failed or was interrupted, whichever comes first.

    Raises:
        UserError: a folder without runs, the destination among the sources, or a damaged record.
    """
    there = Store(dest)
    best = {r.run_id: Found(r, there) for r in there.records()} if dest.is_dir() else {}
    before, conflicts, num_identical = dict(best), list[Found](), 0
    for source in sources:
        if source.resolve() == dest.resolve():
            raise UserError(f"{source} is the destination itself")
        store = Store(source)
        records, damages = store.survey()
        if damages:
            raise damages[0]
        if not records:
            raise UserError(f"{source}: no runs here; name results folders (with runs/ in them)")
        for record in records:
            other = best.get(record.run_id)
            if other is None or (other.record.status != "done" and record.status == "done"):
                best[record.run_id] = Found(record, store)
            elif record.status == "done" and not same_result(record, other.record):
                conflicts.append(Found(record, store))
            else:
                num_identical += 1
    new = [found for run_id, found in best.items() if before.get(run_id) is not found]
    for found in (*new, *conflicts):
        check_folder(found.store.runs / found.record.run_id)
    return Merge(there, tuple(new), num_identical, tuple(conflicts))


def same_result(left: RunRecord, right: RunRecord) -> bool:
    """Tell whether two finished runs of one name scored the same, at every evaluation."""
    return (left.metrics, left.evaluations) == (right.metrics, right.evaluations)


def carry_out(merge: Merge, *, keep_apart: bool) -> None:
    """Copy the runs, each whole or not at all.

    Args:
        merge: the plan.
        keep_apart: conflicting runs go into results folders of their own, `conflicts/1` and so on.

    Raises:
        UserError: conflicts that are not to be kept apart (nothing is copied then), or a folder
            that cannot be written.
    """
    if merge.conflicts and not keep_apart:
        names = ", ".join(
            f"{found.record.run_id} in {found.store.root}"
            for found in merge.conflicts[:_MOST_NAMED]
        )
        more = len(merge.conflicts) - _MOST_NAMED
        raise UserError(
            f"{len(merge.conflicts)} run(s) have other metrics than the run of the same name: "
            f"{names}{f' and {more} more' if more > 0 else ''}; nothing was merged. --keep-apart "
            f"puts them into {merge.dest.root / 'conflicts'}, results folders of their own"
        )
    merge.dest.check_writable()
    set_damaged_aside(merge.dest, partial(log.warning, "%s"))  # a copy may be about to replace it
    for found in merge.new:
        _copy(found, merge.dest)
    merge.dest.rebuild_csv()
    for found in merge.conflicts:
        _copy_apart(found, merge.dest.root / "conflicts")


def _copy(found: Found, dest: Store) -> None:
    dest.save(found.record, read_files(found.store.runs / found.record.run_id), renew_csv=False)


def _copy_apart(found: Found, folder: Path) -> None:
    number = 1
    while (there := Store(folder / str(number)).find(found.record.run_id)) is not None:
        if same_result(there, found.record):
            return
        number += 1
    _copy(found, Store(folder / str(number)))
    Store(folder / str(number)).rebuild_csv()

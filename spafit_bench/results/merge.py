"""Join results folders, such as the parts of a sweep; nothing in the destination is overwritten."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spafit_bench.base.checksums import check_folder
from spafit_bench.base.errors import DamagedError, UserError
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_files
from spafit_bench.results.store import Store

log = logging.getLogger(__name__)

_MOST_NAMED = 5


@dataclass(frozen=True)
class Candidate:
    """A run and the results folder that has it."""

    record: RunRecord
    store: Store

    def copy_to(self, dest: Store) -> None:
        """Save the run in another results folder, which does not renew its `results.csv`."""
        dest.save(self.record, read_files(self.store.runs / self.record.run_id), renew_csv=False)


@dataclass(frozen=True)
class Merge:
    """What joining results folders would do."""

    dest: Store
    new: tuple[Candidate, ...]
    """Runs that the destination lacks, has damaged, or has without a result."""
    num_identical: int
    """Runs that the destination (or an earlier folder) has with the same result."""
    conflicts: tuple[Candidate, ...]
    """Finished runs whose metrics differ from those of the run of the same name."""


def plan_merge(sources: Sequence[Path], dest: Path) -> Merge:
    """Read every folder and decide for every run; nothing is written.

    A finished run takes the place of one that failed or was interrupted, whichever comes first.
    A folder without runs, a damaged run and the destination among the sources are errors.
    """
    there = Store(dest)
    records = there.records() if dest.is_dir() else []
    before = {r.run_id: Candidate(r, there) for r in records if _is_whole(there, r)}
    best, conflicts, num_identical = dict(before), list[Candidate](), 0
    for source in sources:
        if source.resolve() == dest.resolve():
            raise UserError(f"{source} is the destination itself")
        store = Store(source)
        records, bad = store.survey()
        if bad:
            raise bad[0]
        if not records:
            raise UserError(f"{source}: no runs here; name results folders (with runs/ in them)")
        for record in records:
            check_folder(store.runs / record.run_id)
            other = best.get(record.run_id)
            if other is None or (other.record.status != "done" and record.status == "done"):
                best[record.run_id] = Candidate(record, store)
            elif record.status == "done" and not same_result(record, other.record):
                conflicts.append(Candidate(record, store))
            else:
                num_identical += 1
    new = [run for run_id, run in best.items() if before.get(run_id) is not run]
    return Merge(there, tuple(new), num_identical, tuple(conflicts))


def _is_whole(store: Store, record: RunRecord) -> bool:
    try:
        check_folder(store.runs / record.run_id)
    except DamagedError:
        return False
    return True


def same_result(left: RunRecord, right: RunRecord) -> bool:
    """Return whether two finished runs of one name have the same metrics at every evaluation."""
    return (left.metrics, left.evaluations) == (right.metrics, right.evaluations)


def carry_out(merge: Merge, *, keep_apart: bool) -> None:
    """Copy the runs, each whole or not at all.

    Conflicting runs are an error and nothing is copied, unless `keep_apart`: then they go into
    results folders of their own, `conflicts/1` and so on.
    """
    apart = merge.dest.root / "conflicts"
    if merge.conflicts and not keep_apart:
        some = merge.conflicts[:_MOST_NAMED]
        names = ", ".join(f"{run.record.run_id} in {run.store.root}" for run in some)
        more = len(merge.conflicts) - len(some)
        raise UserError(
            f"{len(merge.conflicts)} run(s) have other metrics than the run of the same name: "
            f"{names}{f' and {more} more' if more else ''}; nothing was merged. --keep-apart puts "
            f"them into {apart}, results folders of their own"
        )
    merge.dest.check_writable()
    warn = partial(log.warning, "%s")
    merge.dest.set_damaged_aside(warn)
    for run in merge.new:
        merge.dest.examine(run.record.run_id, warn)  # the copy must not replace a damaged run
        run.copy_to(merge.dest)
    merge.dest.rebuild_csv()
    for run in merge.conflicts:
        number = 1
        while there := Store(apart / str(number)).find(run.record.run_id):
            if same_result(there, run.record):
                break
            number += 1
        else:
            run.copy_to(Store(apart / str(number)))
            Store(apart / str(number)).rebuild_csv()

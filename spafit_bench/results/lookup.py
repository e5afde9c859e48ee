"""Find the run that a user means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_record
from spafit_bench.results.store import Store


@dataclass(frozen=True)
class FoundRun:
    """A run and the folder of its files."""

    record: RunRecord
    folder: Path


def find_run(name: str, store: Store) -> FoundRun:
    """Return the run that a user named.

    Args:
        name: a run's name, any unambiguous beginning of it, or a folder with a `record.json` (a
            run's own, or what `export --format delta` writes).
        store: the results folder in which names are looked up.

    Raises:
        UserError: no such run, several, or one whose record cannot be used.
    """
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's fails for unknown users
    if _has_record(folder):
        return FoundRun(read_record(folder / "record.json"), folder)
    record = store.find(name) if "/" not in name else None
    if record is None:
        records, bad = store.survey()
        matches = [record for record in records if record.run_id.startswith(name)]
        bad = [error for error in bad if store.run_of(error).startswith(name)]
        if bad and not matches:
            raise bad[0]
        if not matches:
            names = [record.run_id for record in records]
            hint = nearest(name, names) if len(names) <= 20 else "see spafit-bench list runs"
            hint = hint if names else "it has no runs"
            raise UserError(f"no run {name[:80]!r} in {store.root}: {hint}")
        if len(matches) > 1:
            some = ", ".join(record.run_id for record in matches[:8])
            raise UserError(f"{name!r} could be any of {len(matches)} runs: {some}")
        record = matches[0]
    return FoundRun(record, store.runs / record.run_id)


def _has_record(folder: Path) -> bool:
    try:
        return (folder / "record.json").is_file()
    except OSError:  # too long to be a path
        return False

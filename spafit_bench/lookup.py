"""Finds the run that a user means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spafit_bench.errors import UserError, nearest
from spafit_bench.record import RunRecord
from spafit_bench.store import Store, read_record


@dataclass(frozen=True)
class FoundRun:
    """A run and where its files are."""

    record: RunRecord
    folder: Path


def find_run(name: str, store: Store) -> FoundRun:
    """Find a run.

    Args:
        name: a run's name, any unambiguous beginning of it, or a folder with a `record.json` (a
            run's own, or what `export --format delta` writes).
        store: where names are looked up.

    Raises:
        UserError: no such run, several, or a damaged record.
    """
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's fails for unknown users
    if _has_record(folder):
        return FoundRun(read_record(folder / "record.json"), folder)
    record = store.find(name) if "/" not in name else None
    if record is None:
        matches = [r for r in store.records() if r.run_id.startswith(name)]
        if len(matches) != 1:
            raise _ambiguous(name, matches, store)
        record = matches[0]
    return FoundRun(record, store.runs / record.run_id)


def _has_record(folder: Path) -> bool:
    try:
        return (folder / "record.json").is_file()
    except OSError:  # too long to be a path
        return False


def _ambiguous(name: str, matches: Sequence[RunRecord], store: Store) -> UserError:
    if matches:
        some = ", ".join(record.run_id for record in matches[:8])
        return UserError(f"{name!r} could be any of {len(matches)} runs: {some}")
    names = [record.run_id for record in store.records()]
    hint = nearest(name, names) if len(names) <= 20 else "see spafit-bench list runs"
    return UserError(f"no run {name[:80]!r} in {store.root}: {hint if names else 'it has no runs'}")

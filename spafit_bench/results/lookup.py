"""Finds the run that a user means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_record
from spafit_bench.results.store import Store


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
        DamagedError: the record is not as it was written.
        UserError: no such run, or several.
    """
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's fails for unknown users
    if _has_record(folder):
        return FoundRun(read_record(folder / "record.json"), folder)
    record = store.find(name) if "/" not in name else None
    if record is None:
        records, damages = store.survey()
        matches = [r for r in records if r.run_id.startswith(name)]
        damaged = [d for d in damages if d.path.relative_to(store.runs).parts[0].startswith(name)]
        if damaged and not matches:
            raise damaged[0]
        if len(matches) != 1:
            raise _ambiguous(name, matches, [record.run_id for record in records], store)
        record = matches[0]
    return FoundRun(record, store.runs / record.run_id)


def _has_record(folder: Path) -> bool:
    try:
        return (folder / "record.json").is_file()
    except OSError:  # too long to be a path
        return False


def _ambiguous(
    name: str, matches: Sequence[RunRecord], names: Sequence[str], store: Store
) -> UserError:
    if matches:
        some = ", ".join(record.run_id for record in matches[:8])
        return UserError(f"{name!r} could be any of {len(matches)} runs: {some}")
    hint = nearest(name, names) if len(names) <= 20 else "see spafit-bench list runs"
    return UserError(f"no run {name[:80]!r} in {store.root}: {hint if names else 'it has no runs'}")

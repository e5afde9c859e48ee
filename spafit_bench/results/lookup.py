"""Find the run that a user means."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    note: str = ""
    """Which of several seeds this is, if the user named none."""


def find_run(name: str, store: Store) -> FoundRun:
    """Return the run that a user named.

    Args:
        name: a run's name, any unambiguous beginning of it, or a folder with a `record.json` (a
            run's own, or what `export --format delta` writes).
        store: the results folder in which names are looked up.

    Raises:
        UserError: no such run, several, or one whose record cannot be used.
    """
    matches = _matches(name, store)
    if len(matches) > 1:
        raise _several(name, matches)
    return matches[0]


def find_model(name: str, store: Store, seed: int | None = None) -> FoundRun:
    """Return the run whose model a user named; of several seeds, the best on the dev set.

    Args:
        name: as in `find_run`, but runs that differ only in their seed may share it.
        store: the results folder in which names are looked up.
        seed: of the run, if the user names one.

    Raises:
        UserError: no such run, or several that differ in more than the seed.
    """
    matches = _matches(name, store)
    if seed is not None:
        chosen = [found for found in matches if found.record.seed == seed]
        if not chosen:
            seeds = ", ".join(sorted({str(found.record.seed) for found in matches}))
            raise UserError(f"--seed {seed}: no run {name[:80]!r} has it; seeds: {seeds}")
        matches = chosen
    if len(matches) == 1:
        return matches[0]
    done = [found for found in matches if found.record.status == "done"]
    if not done or len({_apart_from_seed(found.record) for found in matches}) > 1:
        raise _several(name, matches)
    best = max(done, key=lambda found: found.record.score or 0.0)
    note = (
        f"{name!r} has {len(done)} finished seeds; this is {best.record.run_id}, the best on the "
        "dev set (--seed chooses another)"
    )
    return replace(best, note=note) if len(done) > 1 else best


def _apart_from_seed(record: RunRecord) -> str:
    """Return everything that the user chose, without the seed."""
    facts = {
        "config": {key: value for key, value in record.config.items() if key != "seed"},
        "data": record.data.fingerprint,
        "weights": record.weights.weights_sha256,
        "precision": record.environment.precision,
    }
    return json.dumps(facts, sort_keys=True)


def _several(name: str, matches: Sequence[FoundRun]) -> UserError:
    some = ", ".join(found.record.run_id for found in matches[:8])
    return UserError(f"{name!r} could be any of {len(matches)} runs: {some}")


def _matches(name: str, store: Store) -> list[FoundRun]:
    """Return every run whose name begins so, at least one."""
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - pathlib's fails for unknown users
    if _has_record(folder):
        return [FoundRun(read_record(folder / "record.json"), folder)]
    if "/" not in name and (record := store.find(name)):
        return [FoundRun(record, store.runs / record.run_id)]
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
    return [FoundRun(record, store.runs / record.run_id) for record in matches]


def _has_record(folder: Path) -> bool:
    try:
        return (folder / "record.json").is_file()
    except OSError:  # too long to be a path
        return False

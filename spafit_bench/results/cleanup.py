"""Remove chosen runs from a results folder, and what stopped processes left behind."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from spafit_bench.base.errors import UserError
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.lookup import find_run
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store

_HOUR_S = 3600.0
"""A file that is written under another name is renamed within minutes."""
_FORGOTTEN_S = 30 * 24 * _HOUR_S


@dataclass(frozen=True)
class Leftover:
    """Something that can be removed."""

    path: Path
    why: str
    run_id: str | None = None
    """The run that must be locked to remove it; None for what belongs to no run."""
    record: RunRecord | None = field(default=None, compare=False)
    """Set if it is a whole run."""

    @property
    def num_bytes(self) -> int:
        """Size on disk, of files."""
        with suppress(OSError):
            if self.path.is_dir():
                return sum(p.lstat().st_size for p in self.path.rglob("*") if p.is_file())
            return self.path.lstat().st_size
        return 0


def named_runs(store: Store, names: Sequence[str]) -> list[RunRecord]:
    """Return the runs of some names, or unambiguous beginnings of names, each once."""
    runs = {}
    for name in names:
        found = find_run(name, store)
        run_id = found.record.run_id
        if found.folder.resolve() != (store.runs / run_id).resolve():
            raise UserError(
                f"{name} is no run of {store.root}: name its results folder, --results DIR"
            )
        runs[run_id] = found.record
    return list(runs.values())


def refuse_live(store: Store, records: Sequence[RunRecord]) -> None:
    """Raise a UserError if a process works on one of these runs."""
    with RunLocks(store.root, needed=False) as locks:
        for run_id in locks.held() & {record.run_id for record in records}:
            raise UserError(f"{run_id}: {locks.holder(run_id)} works on it; stop that first")


def leftovers(store: Store, without_effect: Collection[str]) -> list[Leftover]:
    """Return everything that is of no use any more, and of no run that a process works on.

    Args:
        store: the results folder.
        without_effect: settings in which two attempts at one result may differ.
    """
    records = {record.run_id: record for record in store.records()}
    with RunLocks(store.root, needed=False) as locks:
        live = locks.held()
    found = [
        *_temporary(store),
        *_snapshots(store, records),
        *_superseded(store, records, without_effect),
        *_logs(store),
    ]
    return [each for each in found if each.run_id not in live]


def _temporary(store: Store) -> Iterator[Leftover]:
    if (claims := store.root / "claims").is_dir():
        yield Leftover(claims, "claims of an earlier version, which had no locks")
    places = [
        (store.runs, ".unfinished-*"),
        (store.root, ".results.csv-*"),
        (store.root / "tables", ".*-*"),
        (store.root / "unfinished", ".*.snapshot-*"),
    ]
    for folder, pattern in places:
        for path in sorted(folder.glob(pattern)):
            if _age_s(path) > _HOUR_S:
                yield Leftover(path, "half written, by a process that was killed")


def _snapshots(store: Store, records: Mapping[str, RunRecord]) -> Iterator[Leftover]:
    for path in sorted((store.root / "set-aside").glob("*")):
        yield Leftover(path, "damaged, and set aside")
    for path in sorted((store.root / "unfinished").glob("[!.]*")):
        record = records.get(path.stem)
        if record is not None and record.status in ("done", "diverged"):
            yield Leftover(path, f"a snapshot of a run that is {record.status}", path.stem)
        elif _age_s(path) > _FORGOTTEN_S:
            yield Leftover(path, "a snapshot that no run resumed for 30 days", path.stem)


def _superseded(
    store: Store, records: Mapping[str, RunRecord], without_effect: Collection[str]
) -> Iterator[Leftover]:
    """Yield runs without a result if another attempt at the same one has it."""

    def purpose(record: RunRecord) -> str:
        settings = {k: v for k, v in record.config.items() if k not in without_effect}
        machine = record.environment  # `auto` has become what was used
        settings |= {"precision": machine.precision, "engine": machine.engine}
        inputs = (record.weights.weights_sha256, record.data.fingerprint)
        return json.dumps((inputs, settings), sort_keys=True)

    done = {purpose(record): run_id for run_id, record in records.items() if record.metrics}
    for run_id, record in records.items():
        other = done.get(purpose(record))
        if record.status in ("failed", "interrupted") and other:
            why = f"{record.status}, and {other} has the result"
            yield Leftover(store.runs / run_id, why, run_id, record)


def _logs(store: Store) -> Iterator[Leftover]:
    for path in sorted(store.logs.glob("[!.]*")):
        if not (store.runs / path.name).exists() and not store.has_snapshot(path.name):
            yield Leftover(path, "logs of a run that is gone", path.name)


def remove(store: Store, found: Sequence[Leftover]) -> list[Leftover]:
    """Remove leftovers; return those that were kept: they changed, or a process works on them."""
    kept, runs = [], []
    run_ids = {each.run_id for each in found if each.run_id is not None}
    with RunLocks(store.root, needed=False) as locks:  # held until all runs are gone
        locked = {run_id for run_id in run_ids if locks.acquire(run_id)}
        for each in found:
            if each.run_id not in locked | {None}:
                kept.append(each)
            elif each.record is None:
                _remove_path(each.path)
            elif store.find(each.record.run_id) == each.record:
                runs.append(each.record.run_id)
            else:
                kept.append(each)
        if runs:
            store.remove(runs)
    return kept


def _remove_path(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror})") from None


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0

"""The results folder: one folder per run, each written whole or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import glob
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from spafit_bench.base.durable import (
    make_durably,
    remove_temporary,
    replacing,
    sync_folder,
    umask,
    write_durably,
)
from spafit_bench.base.errors import DamagedError, UserError
from spafit_bench.results.locks import UNSUPPORTED
from spafit_bench.results.record import RUN_ID, RunRecord
from spafit_bench.results.run_folder import read_run, write_files

log = logging.getLogger(__name__)

_UNFINISHED = ".unfinished-"
"""Prefix of a run folder that is still being written; never read as a result."""
_REPLACED = ".replaced-"
"""Prefix of a run folder that another is about to replace; put back if that did not happen."""


@dataclass(frozen=True)
class Store:
    """A results folder: `runs/<run_id>/` with its record, and `results.csv` derived from them."""

    root: Path

    @property
    def logs(self) -> Path:
        """Logs for looking at, by run."""
        return self.root / "tensorboard"

    @property
    def runs(self) -> Path:
        """Where the run folders are."""
        return self.root / "runs"

    def check_writable(self) -> None:
        """Make sure that results can be written, before hours are spent on them.

        Raises:
            UserError: they cannot; the message says why.
        """
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.runs):
                pass
        except OSError as error:
            raise UserError(
                f"--results {self.root}: cannot be written ({error.strerror}: {error.filename}); "
                "choose another folder"
            ) from None

    def find(self, run_id: str) -> RunRecord | None:
        """Return the record of a run, or None.

        Raises:
            DamagedError: its record is not as it was written.
            UserError: its record is of another version of this package.
        """
        if not re.match(RUN_ID, run_id):
            return None
        self._restore_replaced()
        return self._read_surely(self.runs / run_id)

    def records(self) -> list[RunRecord]:
        """Return every sound record, sorted by run; warn of those that are damaged.

        Raises:
            UserError: the folder does not exist, or a record is of another version.
        """
        records, damages = self.survey()
        for damage in damages:
            log.warning("%s; it is left out", damage)
        return records

    def survey(self) -> tuple[list[RunRecord], list[DamagedError]]:
        """Return every sound record, sorted by run, and what is wrong with the others.

        Raises:
            UserError: as `records`.
        """
        if not self.root.is_dir():
            raise UserError(f"--results {self.root}: no such folder")
        self._restore_replaced()
        return self._survey(self._read_surely)

    def _survey(
        self, read: Callable[[Path], RunRecord | None]
    ) -> tuple[list[RunRecord], list[DamagedError]]:
        records, damages = [], []
        for folder in sorted(self.runs.glob("[!.]*")):
            try:
                record = read(folder)
            except DamagedError as damage:
                damages.append(damage)
            else:
                records += [record] if record else []
        return records, damages

    def _read_surely(self, folder: Path) -> RunRecord | None:
        """Read a record; where it looks damaged, again while no other process can replace it."""
        try:
            return read_run(folder)
        except DamagedError:
            try:
                with self.locked():
                    return read_run(folder)
            except OSError:  # nobody writes here, or nobody can
                return read_run(folder)

    def set_aside(self, path: Path, why: str) -> Path:
        """Move what is damaged to `set-aside/`, where nothing reads it; return where it is now.

        No sync: were the move lost with the power, the damage would be found again.

        Raises:
            OSError: it cannot be moved.
        """
        number, place = 1, self.root / "set-aside" / path.name
        while place.exists():
            number += 1
            place = place.with_name(f"{path.name}.{number}")
        place.mkdir(parents=True)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        (place / "reason.txt").write_text(f"{when} {why}\n", encoding="utf-8", errors="replace")
        return path.rename(place / path.name)

    def save(
        self, record: RunRecord, write: Mapping[str, bytes], *, renew_csv: bool = True
    ) -> Path:
        """Write a run, replacing an earlier one of the same name; then renew `results.csv`.

        The folder is written under another name and renamed, so that a reader (or a crash) sees
        the whole run or none of it.

        Args:
            record: what happened.
            write: further files of the run, by name.
            renew_csv: False where many runs are saved and `rebuild_csv` follows.

        Raises:
            UserError: the folder cannot be written.
        """
        final = self.runs / record.run_id
        # JSON writes a path's undecodable bytes as escapes, which is what backslashreplace makes
        files = {**write, "record.json": record.to_json().encode(errors="backslashreplace")}
        with _for_the_user(final):
            make_durably(self.runs)
            folder = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{final.name}-", dir=self.runs))
            try:
                folder.chmod(0o777 & ~umask())
                write_files(folder, files)
                with self.locked():
                    self._put(folder, final)
                    if renew_csv:
                        self._try_to_write_csv()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return final

    def remove(self, run_ids: Sequence[str]) -> None:
        """Remove runs, each at once, and their snapshots; then renew `results.csv`.

        Raises:
            UserError: something cannot be removed.
        """
        with _for_the_user(self.runs), self.locked():
            for run_id in run_ids:
                trash = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.runs))
                (self.runs / run_id).rename(trash / run_id)
                shutil.rmtree(trash)
                self.drop_snapshot(run_id)
            self._write_csv()

    def _put(self, folder: Path, final: Path) -> None:
        """Rename a whole folder to its place; a crash in between is mended by the next reader."""
        replaced = self.runs / f"{_REPLACED}{final.name}"
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        folder.rename(final)
        sync_folder(self.runs)
        shutil.rmtree(replaced, ignore_errors=True)

    def _restore_replaced(self) -> None:
        """Put back what a crash moved aside and did not replace."""
        if not any(self.runs.glob(f"{_REPLACED}*")):
            return
        with _for_the_user(self.runs), self.locked():
            for folder in sorted(self.runs.glob(f"{_REPLACED}*")):
                final = self.runs / folder.name.removeprefix(_REPLACED)
                if final.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    folder.rename(final)

    def snapshot(self, run_id: str) -> bytes | None:
        """Return the kept state of an unfinished run.

        Raises:
            OSError: it cannot be read.
        """
        try:
            return self.snapshot_path(run_id).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def keep_snapshot(self, run_id: str, *pieces: bytes | memoryview) -> None:
        """Keep the state of an unfinished run, replacing an earlier one.

        Raises:
            OSError: it cannot be written; the earlier one is still there.
        """
        path = self.snapshot_path(run_id)
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            write_durably(temporary, *pieces)
        sync_folder(path.parent)  # before this the power may fail: then the earlier one is back

    def drop_snapshot(self, run_id: str) -> None:
        """Forget the state of a run that has ended."""
        with suppress(FileNotFoundError, NotADirectoryError):
            self.snapshot_path(run_id).unlink()

    def snapshot_is_newer(self, run_id: str) -> bool:
        """Tell whether a run's snapshot was kept after its record: by a repetition (`--force`)."""
        with suppress(OSError):
            record = self.runs / run_id / "record.json"
            return self.snapshot_path(run_id).stat().st_mtime_ns > record.stat().st_mtime_ns
        return False

    def remove_litter(self, run_id: str) -> None:
        """Remove what killed processes left half written of a run that this process has locked.

        Only the holder of the lock writes a run, so there is no living process to disturb.
        """
        for folder in self.runs.glob(f"{_UNFINISHED}{glob.escape(run_id)}-????????"):
            shutil.rmtree(folder, ignore_errors=True)
        remove_temporary(self.snapshot_path(run_id))

    def snapshot_path(self, run_id: str) -> Path:
        """Where the kept state of an unfinished run is.

        Raises:
            ValueError: not a plain file name.
        """
        if not re.match(RUN_ID, run_id):
            raise ValueError(f"not a run id: {run_id!r}")
        return self.root / "unfinished" / f"{run_id}.snapshot"

    def rebuild_csv(self) -> Path:
        """Write `results.csv` anew from the sound records.

        Raises:
            UserError: it cannot be written.
        """
        self._restore_replaced()
        with _for_the_user(self.root / "results.csv"), self.locked():
            return self._write_csv()

    def _try_to_write_csv(self) -> None:
        """Renew `results.csv`, but do not fail a saved run for it: any command makes it again."""
        try:
            self._write_csv()
        except OSError as error:
            log.warning("%s: cannot be renewed (%s)", self.root / "results.csv", error.strerror)

    def _write_csv(self) -> Path:
        """Write `results.csv`, with the lock held; unsynced, since it can always be made again."""
        rows = [flatten(record) for record in self._survey(read_run)[0]]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        path = self.root / "results.csv"
        remove_temporary(path)
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from moving run folders and from writing `results.csv`.

        Raises:
            OSError: nothing can be written here.
        """
        # Not truncated: whoever can write here could have made it a link to another file.
        handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            yield
        finally:
            os.close(handle)


def prediction_rows(
    logits: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
) -> bytes:
    """Return `predictions.parquet`: one row per example of every predicted split.

    Columns: `split`, `index` (position in the data), `label` (null in test sets), `prediction` (a
    class number, or a score), `logits` (all outputs).

    Args:
        logits: split -> (num_examples, num_outputs).
        predictions: split -> (num_examples,).
        labels: split -> (num_examples,), dev splits only.
    """
    import io

    import pandas as pd

    frames = []
    for split, outputs in logits.items():
        known = labels.get(split)
        frame = pd.DataFrame({"split": split, "index": np.arange(len(outputs))})
        frame["label"] = np.nan if known is None else known.astype(np.float64)
        frame["prediction"] = predictions[split].astype(np.float64)
        frame["logits"] = list(outputs.astype(np.float32))
        frames.append(frame)
    buffer = io.BytesIO()
    pd.concat(frames, ignore_index=True).to_parquet(buffer, index=False)
    return buffer.getvalue()


def flatten(record: RunRecord) -> dict[str, Any]:
    """Return one row of `results.csv`: scalars by name, nested values with dotted names."""
    left_out = {"evaluations", "strata", "last", "best", "movement", "task_definition"}
    body = record.model_dump(mode="json", exclude=left_out)
    row: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            row[prefix] = json.dumps(value) if isinstance(value, list) else value

    add("", body)
    return row


@contextmanager
def _for_the_user(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; free some space: the same command goes on where it stopped" if full else ""
        raise UserError(f"{path}: cannot be written ({error.strerror}){remedy}") from error

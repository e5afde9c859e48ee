"""The results folder: one folder per run, each written whole or not at all."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spafit_bench.errors import UserError
from spafit_bench.record import RunRecord, parse_record

_UNFINISHED = ".unfinished-"
"""Prefix of a run folder that is still being written; never read as a result."""
_REPLACED = ".replaced-"
"""Prefix of a run folder that another is about to replace; put back if that did not happen."""


@dataclass(frozen=True)
class Store:
    """A results folder: `runs/<run_id>/` with its record, and `results.csv` derived from them."""

    root: Path

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
            UserError: a record is there and damaged.
        """
        self._restore_replaced()
        path = self.runs / run_id / "record.json"
        try:
            return read_record(path) if path.is_file() else None
        except OSError:  # a name too long to be that of a run
            return None

    def records(self) -> list[RunRecord]:
        """Return every record, sorted by run.

        Raises:
            UserError: the folder does not exist, or a record is damaged.
        """
        if not self.root.is_dir():
            raise UserError(f"--results {self.root}: no such folder")
        self._restore_replaced()
        return self._read_records()

    def _read_records(self) -> list[RunRecord]:
        return [read_record(path) for path in sorted(self.runs.glob("[!.]*/record.json"))]

    def save(self, record: RunRecord, write: Mapping[str, bytes]) -> Path:
        """Write a run, replacing an earlier one of the same name; then renew `results.csv`.

        The folder is written under another name and renamed, so that a reader (or a crash) sees
        the whole run or none of it.

        Args:
            record: what happened.
            write: further files of the run, by name.

        Raises:
            UserError: the folder cannot be written.
        """
        final = self.runs / record.run_id
        # JSON writes a path's undecodable bytes as escapes, which is what backslashreplace makes
        files = {**write, "record.json": record.to_json().encode(errors="backslashreplace")}
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.runs))
            try:
                folder.chmod(0o777 & ~_umask())
                for name, content in files.items():
                    _write_durably(folder / name, content)
                _sync_folder(folder)
                with self._locked():
                    self._put(folder, final)
                    self._write_csv()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise UserError(f"{final}: cannot be written ({error.strerror})") from error
        return final

    def _put(self, folder: Path, final: Path) -> None:
        """Rename a whole folder to its place; a crash in between is mended by the next reader."""
        replaced = self.runs / f"{_REPLACED}{final.name}"
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        folder.rename(final)
        _sync_folder(self.runs)
        shutil.rmtree(replaced, ignore_errors=True)

    def _restore_replaced(self) -> None:
        """Put back what a crash moved aside and did not replace."""
        if not any(self.runs.glob(f"{_REPLACED}*")):
            return
        with self._locked():
            for folder in sorted(self.runs.glob(f"{_REPLACED}*")):
                final = self.runs / folder.name.removeprefix(_REPLACED)
                if final.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    folder.rename(final)

    def snapshot(self, run_id: str) -> bytes | None:
        """Return the kept state of an unfinished run."""
        try:
            return self._snapshot_path(run_id).read_bytes()
        except FileNotFoundError:
            return None

    def keep_snapshot(self, run_id: str, content: bytes) -> None:
        """Keep the state of an unfinished run, replacing an earlier one.

        Raises:
            OSError: it cannot be written; the earlier one is still there.
        """
        path = self._snapshot_path(run_id)
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            _write_durably(temporary, content)

    def set_snapshot_aside(self, run_id: str) -> Path:
        """Rename a damaged snapshot so that it is not read again; return where it is."""
        path = self._snapshot_path(run_id)
        return path.replace(path.with_suffix(".damaged"))

    def drop_snapshot(self, run_id: str) -> None:
        """Forget the state of a run that has ended."""
        self._snapshot_path(run_id).unlink(missing_ok=True)

    def _snapshot_path(self, run_id: str) -> Path:
        return self.root / "unfinished" / f"{run_id}.snapshot"

    def rebuild_csv(self) -> Path:
        """Write `results.csv` anew from the records."""
        self._restore_replaced()
        with self._locked():
            return self._write_csv()

    def _write_csv(self) -> Path:
        rows = [flatten(record) for record in self._read_records()]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        path = self.root / "results.csv"
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return path

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_record(path: Path) -> RunRecord:
    """Read a `record.json`.

    Raises:
        UserError: not readable, or damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove {path.parent}") from None
    return parse_record(text, str(path))


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
    left_out = {"evaluations", "strata", "last", "best", "movement"}
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
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path that replaces `path` if the block succeeds."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

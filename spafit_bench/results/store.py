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
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spafit_bench.base.checksums import check_folder
from spafit_bench.base.durable import (
    make_durably,
    remove_temporary,
    replacing,
    sync_folder,
    write_durably,
)
from spafit_bench.base.errors import BadFileError, DamagedError, UserError
from spafit_bench.base.escaping import csv_cell
from spafit_bench.results.locks import UNSUPPORTED
from spafit_bench.results.record import RUN_ID, RunRecord, checked_run_id
from spafit_bench.results.run_folder import read_run, write_files

log = logging.getLogger(__name__)

_UNFINISHED = ".unfinished-"
"""Prefix of a run folder that is still being written; never read as a result."""
_REPLACED = ".replaced-"
"""Prefix of a run folder that another is about to replace; put back if that did not happen."""
_FOLDERS = ("runs", "unfinished", "set-aside", "locks", "tables", "plots")
_FOLDERS_OF_FOLDERS = ("tensorboard", "conflicts")


@dataclass(frozen=True)
class Store:
    """A results folder: `runs/<run_id>/` with its record, and `results.csv` derived from them."""

    root: Path

    @property
    def runs(self) -> Path:
        """The folder of the run folders."""
        return self.root / "runs"

    @property
    def logs(self) -> Path:
        """The folder of TensorBoard logs, one folder per run."""
        return self.root / "tensorboard"

    def check_writable(self) -> None:
        """Raise a UserError if results cannot be written; call it before the first run."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._refuse_links()
            self.runs.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.runs):
                pass
        except OSError as error:
            raise UserError(
                f"--results {self.root}: cannot be written ({error.strerror}: {error.filename}); "
                "choose another folder"
            ) from None

    def find(self, run_id: str) -> RunRecord | None:
        """Return the record of a run, or None if there is no such run.

        Raises:
            DamagedError: its record was changed after it was written.
            UserError: its record cannot be read, or is of another version of this package.
        """
        if not re.match(RUN_ID, run_id):
            return None
        self._restore_replaced()
        return self._read_surely(self.runs / run_id)

    def records(self) -> list[RunRecord]:
        """Return every sound record, sorted by run; warn of those that cannot be used."""
        records, bad = self.survey()
        for error in bad:
            log.warning("%s; it is left out", error)
        return records

    def survey(self) -> tuple[list[RunRecord], list[BadFileError]]:
        """Return every sound record, sorted by run, and what is wrong with the others.

        Raises:
            UserError: the folder does not exist, or a record is of another version.
        """
        if not self.root.is_dir():
            raise UserError(f"results folder {self.root} does not exist")
        self._restore_replaced()
        return self._survey(self._read_surely)

    def _survey(
        self, read: Callable[[Path], RunRecord | None]
    ) -> tuple[list[RunRecord], list[BadFileError]]:
        records, bad = list[RunRecord](), list[BadFileError]()
        try:
            folders = sorted(path for path in self.runs.iterdir() if path.name[0] != ".")
        except FileNotFoundError:
            return records, bad
        except OSError as error:
            raise UserError(f"{self.runs}: cannot be read ({error.strerror})") from None
        for folder in folders:
            try:
                record = read(folder)
            except BadFileError as error:
                bad.append(error)
            else:
                records += [record] if record else []
        return records, bad

    def _read_surely(self, folder: Path) -> RunRecord | None:
        """Read a record; if it looks damaged, read again while no other process can replace it."""
        try:
            return read_run(folder)
        except DamagedError:
            with suppress(OSError), self.locked():  # a read-only folder cannot be locked
                return read_run(folder)
            raise

    def examine(self, run_id: str, warn: Callable[[str], None]) -> RunRecord | None:
        """Return a run's record if its files are sound; set a damaged run aside.

        `warn` receives a message that says what was damaged and where it is now.

        Raises:
            UserError: the run cannot be read, is of another version, or is damaged and cannot be
                moved.
        """
        folder = self.runs / run_id
        try:
            record = self.find(run_id)
            check_folder(folder)
            return record
        except DamagedError:
            pass
        try:
            with self.locked():  # another process may have set it aside or replaced it by now
                try:
                    record = read_run(folder)
                    check_folder(folder)
                    return record
                except DamagedError as damage:
                    place = self.set_aside(folder, damage.problem)
                    warn(f"{damage.problem}: set aside as {place}")
                    return None
        except OSError as error:
            raise UserError(
                f"{folder}: is damaged and cannot be moved ({error.strerror})"
            ) from None

    def set_damaged_aside(self, warn: Callable[[str], None]) -> None:
        """Set every run aside whose record is damaged."""
        for error in self.survey()[1]:
            if isinstance(error, DamagedError):
                self.examine(self.run_of(error), warn)

    def run_of(self, error: BadFileError) -> str:
        """Return the name of the run whose file cannot be used."""
        return error.path.relative_to(self.runs).parts[0]

    def set_aside(self, path: Path, why: str) -> Path:
        """Move what is damaged to `set-aside/`, where nothing reads it; return its new path.

        Nothing is synced: if a power failure takes the move back, the damage is found again.
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
        self, record: RunRecord, files: Mapping[str, bytes], *, renew_csv: bool = True
    ) -> Path:
        """Write a run, replacing an earlier one of the same name; then renew `results.csv`.

        The folder is written under another name and renamed, so that a reader (or a crash) sees
        the whole run or none of it.

        Args:
            record: the run's record.
            files: further files of the run, by name.
            renew_csv: False if many runs are saved and `rebuild_csv` follows.
        """
        self._refuse_links()
        final = self.runs / record.run_id
        folder = self.runs / f"{_UNFINISHED}{record.run_id}-{secrets.token_hex(4)}"
        # JSON writes a path's undecodable bytes as escapes, which is what backslashreplace makes.
        content = record.to_json().encode(errors="backslashreplace")
        with _for_the_user(final):
            make_durably(self.runs)
            folder.mkdir()
            try:
                write_files(folder, {**files, "record.json": content})
                with self.locked():
                    self._put(folder, final)
                    if renew_csv:
                        self._renew_csv()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        return final

    def _put(self, folder: Path, final: Path) -> None:
        """Rename a whole folder to its place; the next reader mends a crash in between."""
        replaced = self.runs / f"{_REPLACED}{final.name}"
        if final.is_symlink():  # `read_run` does not believe it
            final.unlink()
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        folder.rename(final)
        sync_folder(self.runs)
        shutil.rmtree(replaced, ignore_errors=True)

    def _restore_replaced(self) -> None:
        """Put back what a crash moved away and did not replace."""
        self._refuse_links()
        if not any(self.runs.glob(f"{_REPLACED}*")):
            return
        with _for_the_user(self.runs), self.locked():
            for folder in sorted(self.runs.glob(f"{_REPLACED}*")):
                final = self.runs / folder.name.removeprefix(_REPLACED)
                if final.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    folder.rename(final)

    def _refuse_links(self) -> None:
        """Refuse links in place of our folders: one from somebody else could lead anywhere."""
        with suppress(OSError):  # what follows says why nothing can be read here
            places = [self.root / name for name in (*_FOLDERS, *_FOLDERS_OF_FOLDERS, ".lock")]
            for name in _FOLDERS_OF_FOLDERS:
                places += (self.root / name).glob("*")
            for path in places:
                if path.is_symlink():
                    raise UserError(
                        f"{path}: is a symbolic link; inside a results folder only plain files "
                        "and folders are used: replace the link by what it points to, or name "
                        "another folder with --results"
                    )

    def remove(self, run_ids: Sequence[str]) -> None:
        """Remove runs, each at once, and their snapshots; then renew `results.csv`."""
        with _for_the_user(self.runs), self.locked():
            for run_id in run_ids:
                trash = self.runs / f"{_UNFINISHED}{secrets.token_hex(4)}"
                (self.runs / run_id).rename(trash)
                shutil.rmtree(trash)
                self.drop_snapshot(run_id)
            self._write_csv()

    def has_snapshot(self, run_id: str) -> bool:
        """Return whether an unfinished run has saved its state."""
        with suppress(OSError):
            return self.snapshot_path(run_id).exists()
        return False

    def snapshot(self, run_id: str) -> bytes | None:
        """Return the saved state of an unfinished run, or None if there is none.

        Raises:
            UserError: it cannot be read now; it may be sound.
        """
        path = self.snapshot_path(run_id)
        try:
            return path.read_bytes() if path.is_file() else None
        except OSError as error:
            raise UserError(
                f"{path}: the saved state of this run cannot be read ({error.strerror}); once it "
                "can be read, run the same command to resume"
            ) from None

    def keep_snapshot(self, run_id: str, *pieces: bytes | memoryview) -> None:
        """Save the state of an unfinished run; if that fails, the earlier one is still there."""
        path = self.snapshot_path(run_id)
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            write_durably(temporary, *pieces)
        sync_folder(path.parent)  # before this a power failure brings the earlier one back

    def drop_snapshot(self, run_id: str) -> None:
        """Remove the saved state of a run that has ended; the next command tries again."""
        path = self.snapshot_path(run_id)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            log.warning("%s: cannot be removed (%s); its run has ended", path, error.strerror)

    def snapshot_is_newer(self, run_id: str) -> bool:
        """Return whether a run's snapshot was saved after its record, by a repetition."""
        with suppress(OSError):
            record = self.runs / run_id / "record.json"
            return self.snapshot_path(run_id).stat().st_mtime_ns > record.stat().st_mtime_ns
        return False

    def snapshot_path(self, run_id: str) -> Path:
        """Return the path of an unfinished run's saved state."""
        return self.root / "unfinished" / f"{checked_run_id(run_id)}.snapshot"

    def remove_litter(self, run_id: str) -> None:
        """Remove the half-written files that killed processes left of a run.

        The caller holds the run's lock, so no living process is writing it.
        """
        for folder in self.runs.glob(f"{_UNFINISHED}{glob.escape(run_id)}-????????"):
            shutil.rmtree(folder, ignore_errors=True)
        remove_temporary(self.snapshot_path(run_id))

    def rebuild_csv(self) -> Path:
        """Write `results.csv` anew from the sound records."""
        self._restore_replaced()
        with _for_the_user(self.root / "results.csv"), self.locked():
            return self._write_csv()

    def _renew_csv(self) -> None:
        """Renew `results.csv`; a failure costs no saved run, since any command renews it."""
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
            writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in rows)
        return path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from moving run folders and from writing `results.csv`."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        handle = os.open(self.root / ".lock", flags, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            yield
        finally:
            os.close(handle)


def flatten(record: RunRecord) -> dict[str, Any]:
    """Return one row of `results.csv`: scalars by name, nested values with dotted names."""
    left_out = {"evaluations", "strata", "last", "best", "movement", "task_definition", "confusion"}
    left_out |= {"retry"}
    row: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            row[prefix] = json.dumps(value) if isinstance(value, list) else value

    add("", record.model_dump(mode="json", exclude=left_out))
    return row


@contextmanager
def _for_the_user(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; free some space, then run the same command to resume" if full else ""
        raise UserError(f"{path}: cannot be written ({error.strerror}){remedy}") from error

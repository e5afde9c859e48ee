"""The folder of one run: written with checksums, and believed only if they are right."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_bench.base.checksums import SUMS, check_file, read_checked, read_sums, sums_of
from spafit_bench.base.durable import sync_folder, write_durably
from spafit_bench.base.errors import DamagedError, cannot_read
from spafit_bench.results.record import RunRecord, parse_record

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a run's files and their checksums so that they survive a power failure.

    The checksums are written last, so a file with a later time was changed (`check_folder`).

    Args:
        folder: an empty folder.
        files: name -> content.
    """
    for name, content in (*files.items(), (SUMS, sums_of(files))):
        write_durably(folder / name, content)
    sync_folder(folder)


def read_files(folder: Path) -> dict[str, bytes]:
    """Return a run's files by name, without its record, each checked."""
    names = read_sums(folder) or [path.name for path in folder.iterdir() if path.is_file()]
    return {n: read_checked(folder / n) for n in names if n not in ("record.json", SUMS)}


def read_run(folder: Path) -> RunRecord | None:
    """Return the record of a folder of `runs/`, or None if the folder holds no run.

    A results folder may come from somebody else, so only plain files are read: a link could lead
    anywhere, and a named pipe would block.

    Raises:
        DamagedError: the record was changed, or belongs to another run.
        UserError: as `read_record`.
    """
    path = folder / "record.json"
    try:
        if not path.exists() and not (folder / SUMS).exists():
            return None
        if folder.is_symlink():
            raise DamagedError(folder, "is a symbolic link")
        for entry in os.scandir(folder):
            if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                raise DamagedError(Path(entry.path), "is not a plain file")
    except OSError as error:
        raise cannot_read(folder, error) from None
    record = read_record(path)
    if record.run_id != folder.name:
        raise DamagedError(path, f"belongs to another run, {record.run_id:.80}")
    return record


def read_record(path: Path) -> RunRecord:
    """Read a `record.json` and check that it is what was written.

    Raises:
        DamagedError: missing, truncated, edited, or not a record.
        UnreadableError: it cannot be read now.
        UserError: it is a sound record of another version of this package.
    """
    content = read_checked(path)
    try:
        return parse_record(content.decode(), str(path), sealed=(path.parent / SUMS).exists())
    except UnicodeDecodeError as error:
        raise DamagedError(path, f"cannot be read ({error})") from None


def prediction_rows(
    logits: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
) -> bytes:
    """Return `predictions.parquet`: one row per example of every predicted split.

    Columns: `split`, `index` (position in the data), `label` (null if it is not known),
    `prediction` (a class number, or a score), `logits` (all outputs).

    Args:
        logits: split -> (num_examples, num_outputs).
        predictions: split -> (num_examples,).
        labels: split -> (num_examples,), of splits that have labels.
    """
    import numpy as np
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


def read_rows(
    path: Path, columns: Sequence[str], splits: Sequence[str] | None = None
) -> pd.DataFrame | None:
    """Return `split` and other columns of a `predictions.parquet`, or None if there is none.

    Args:
        path: the file.
        columns: names, as in `prediction_rows`.
        splits: which rows (default: all).

    Raises:
        BadFileError: missing or altered since it was written, not such a table, or unreadable.
    """
    import pandas as pd
    from pyarrow import ArrowException

    try:
        if not path.exists() and path.name not in (read_sums(path.parent) or {}):
            return None
    except OSError as error:
        raise cannot_read(path, error) from None
    check_file(path)
    wanted = None if splits is None else [("split", "in", list(splits))]
    try:
        return pd.read_parquet(path, columns=["split", *columns], filters=wanted)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(path, f"cannot be read ({reason:.200})") from None

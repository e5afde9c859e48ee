"""The GLUE server's format: a zip of one tab-separated file for each test set.

Source: the FAQ of gluebenchmark.com.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from spafit_bench.base.durable import replacing
from spafit_bench.base.errors import UserError
from spafit_bench.data.tasks import TASKS, Task, TestSet

FILES = (
    *("CoLA", "SST-2", "MRPC", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "RTE", "WNLI", "AX"),
)
"""What the server wants in a zip, without `.tsv`."""
TEST_SETS: Mapping[str, tuple[Task, TestSet]] = {
    test.submission: (task, test) for task in TASKS.values() for test in task.test_sets
}
"""File -> what it predicts."""
_HEADER = "index\tprediction"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def server_value(task: Task, value: float) -> str:
    """Write a class id or a score as the server takes it.

    Raises:
        ValueError: it is no prediction for the task.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is no prediction")
    if task.label_range is not None:
        low, high = task.label_range
        return f"{min(max(value, low), high) + 0.0:.3f}"
    if value not in range(task.num_labels):
        raise ValueError(f"{value:g} is no class of {task.name}")
    return task.labels[int(value)] if task.submit_names else str(int(value))


def write_zip(path: Path, predictions: Mapping[str, Sequence[str]]) -> None:
    """Write a zip, whole or not at all, after checking every row of it.

    Two zips of the same predictions are byte for byte the same.

    Args:
        path: where; an earlier file is replaced.
        predictions: file -> the server's values, in the order of the test set.

    Raises:
        UserError: it cannot be written, or the server would refuse it.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(_zip(predictions))
            check_zip(temporary, {name: len(values) for name, values in predictions.items()})
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror})") from None


def _zip(predictions: Mapping[str, Sequence[str]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, values in predictions.items():
            lines = (f"{index}\t{value}" for index, value in enumerate(values))
            member = zipfile.ZipInfo(f"{name}.tsv", date_time=_EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3
            member.external_attr = 0o644 << 16
            archive.writestr(member, "\n".join((_HEADER, *lines, "")))
    return buffer.getvalue()


def check_zip(path: Path, rows: Mapping[str, int] | None = None) -> None:
    """Check that a zip is what the GLUE server takes.

    Args:
        path: the zip.
        rows: rows that each file must have (default: those of the official test sets).

    Raises:
        UserError: it is not; the message names file and line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            wrong = {f"{name}.tsv" for name in FILES}.symmetric_difference(names)
            if wrong or len(names) != len(FILES):
                listed = ", ".join(sorted(wrong)) or "a file is there twice"
                raise UserError(f"{path}: missing or unexpected: {listed}")
            for name in FILES:
                text = archive.read(f"{name}.tsv").decode("ascii")
                _check_file(f"{path}: {name}.tsv", name, text, rows)
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error})") from None


def _check_file(where: str, name: str, text: str, rows: Mapping[str, int] | None) -> None:
    task, test = TEST_SETS[name]
    header, *lines = text.removesuffix("\n").split("\n")
    expected = task.rows[test.key] if rows is None else rows[name]
    if header != _HEADER:
        raise UserError(f"{where}: the first line is {header!r}, not {_HEADER!r}")
    if len(lines) != expected:
        raise UserError(f"{where}: {len(lines)} rows, not {expected}")
    ids = (str(number) for number in range(task.num_labels))
    allowed = frozenset(task.labels if task.submit_names else ids)
    for index, line in enumerate(lines):
        found, _, value = line.partition("\t")
        if found != str(index):
            raise UserError(f"{where}, line {index + 2}: index {found!r}, not {index}")
        if not (_is_score(task, value) if task.is_regression else value in allowed):
            raise UserError(f"{where}, line {index + 2}: {value!r} is no label of {task.title}")


def _is_score(task: Task, value: str) -> bool:
    assert task.label_range is not None
    low, high = task.label_range
    digits = value.replace(".", "", 1)
    return digits.isdecimal() and value[-4:-3] == "." and low <= float(value) <= high

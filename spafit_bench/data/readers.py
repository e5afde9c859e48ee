"""One data file -> the cells that a task needs, not yet judged.

Four formats: parquet (as on the Hugging Face hub), GLUE's TSV (no quoting at all), CSV and JSON
lines. Only the columns asked for are read, so the labels of a test set are never touched.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spafit_bench.base.errors import UserError, nearest

LONGEST_FIELD = 2**31 - 1
"""Characters of a CSV field: Python's own limit is that of a long document."""

MAX_TORN_FRACTION = 1e-3
"""More torn rows than this are a damaged file, not GLUE's own few."""

Cell = Any
"""What a file has where a text or a label belongs: anything, until it is validated."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns to read, by their names in the file."""

    texts: tuple[str, ...]
    label: str | None
    """None where labels are not to be read (test sets)."""
    class_names: tuple[str, ...] = ()
    """Class names in label order; empty for a regression task."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Text columns, then the label column if it is read."""
        return self.texts if self.label is None else (*self.texts, self.label)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The wanted columns of one file, each a list with one cell per row."""

    path: str
    columns: Columns
    cells: tuple[list[Cell], ...]
    """One list per name in `columns.wanted`, all of one length."""
    positions: Sequence[int]
    """Where each row is: a line (from 1), or in parquet a row (from 0)."""
    unit: str = "line"

    def where(self, row: int, column: str) -> str:
        """Name a cell for a message."""
        counted = " (counted from 0)" if self.unit == "row" else ""
        return f"{self.path}, {self.unit} {self.positions[row]}{counted}, column {column!r}"


def read_parquet(path: Path, columns: Columns) -> Table:
    """Read a parquet file.

    Raises:
        UserError: the file cannot be read, lacks a column, or has one of another type or with
            its classes in another order.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_not_empty(path)
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _find_columns(path, schema.names, columns.wanted)
            _check_types(path, schema, columns)
            _check_class_order(path, schema.metadata or {}, columns)
            table = file.read(columns=list(columns.wanted))
        cells = tuple(table.column(name).to_pylist() for name in columns.wanted)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path}: cannot be read as parquet ({_one_line(error)}); "
            "the file is damaged or incomplete, download it again"
        ) from error
    return Table(
        path=str(path), columns=columns, cells=cells, positions=range(len(cells[0])), unit="row"
    )


def _check_types(path: Path, schema: Any, columns: Columns) -> None:
    from pyarrow import types

    def is_text(kind: Any) -> bool:
        plain = kind.value_type if types.is_dictionary(kind) else kind
        checks = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
        return any(check(plain) for check in checks)

    def is_label(kind: Any) -> bool:
        if columns.class_names:
            truth = {"False", "True"} <= set(columns.class_names) and types.is_boolean(kind)
            return bool(types.is_integer(kind) or truth) or is_text(kind)
        checks = (types.is_floating, types.is_integer, types.is_null)
        return any(check(kind) for check in checks)

    for name in columns.wanted:
        kind = schema.field(name).type
        right = is_label(kind) if name == columns.label else is_text(kind)
        if not right:
            wanted = "text"
            if name == columns.label:
                wanted = "an integer or a class name" if columns.class_names else "a number"
            raise UserError(f"{path}: column {name!r} has type {kind}, but must be {wanted}")


def _check_class_order(path: Path, metadata: dict[bytes, bytes], columns: Columns) -> None:
    """Refuse ids that mean other classes than the task's: the MNLI label order trap."""
    try:
        info = json.loads(metadata.get(b"huggingface", b"{}"))
        names = info["info"]["features"][columns.label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if not isinstance(names, list) or not columns.class_names:
        return
    found = tuple(str(name) for name in names)
    if found not in (columns.class_names, tuple(map(str, range(len(columns.class_names))))):
        raise UserError(
            f"{path}: column {columns.label!r} says that its ids mean {', '.join(found)} (from 0), "
            f"but the task's order is {', '.join(columns.class_names)}; "
            "write the labels again in the task's order, or as class names"
        )


def read_tsv(
    path: Path, columns: Columns, *, header: tuple[str, ...] = (), torn_rows: bool = False
) -> Table:
    r"""Read one of GLUE's TSV files: UTF-8, a row per `\n`, no quoting, a BOM or CRLF tolerated.

    Args:
        path: the file.
        columns: what to read.
        header: column names, for a file without a header line.
        torn_rows: leave out rows that a line break inside a text has torn apart, if few.

    Raises:
        UserError: the file cannot be read, lacks a column or has a row of another width.
    """
    _check_not_empty(path)
    cells: tuple[list[Cell], ...] = tuple([] for _ in columns.wanted)
    positions: list[int] = []
    torn: list[str] = []
    names = header
    indices = _find_columns(path, names, columns.wanted) if names else ()
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            fields = line.split(b"\t")
            if not names:
                names = tuple(_decode(path, number, name, "header") for name in fields)
                indices = _find_columns(path, names, columns.wanted)
            elif len(fields) != len(names) or (torn_rows and b"\r" in line):
                if fields != [b""]:
                    torn.append(_width_message(path, number, len(fields), names))
                    if not torn_rows:
                        raise UserError(torn[0])
            else:
                for name, column, index in zip(columns.wanted, cells, indices, strict=True):
                    column.append(_decode(path, number, fields[index], name))
                positions.append(number)
    if len(torn) > MAX_TORN_FRACTION * len(positions):
        raise UserError(torn[0])
    return Table(path=str(path), columns=columns, cells=cells, positions=positions)


def _decode(path: Path, line: int, field: bytes, column: str) -> str:
    try:
        return field.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {line}, column {column!r}: not UTF-8 ({error.reason}); "
            "convert the file to UTF-8"
        ) from error


def _width_message(path: Path, line: int, width: int, names: Sequence[str]) -> str:
    return (
        f"{path}, line {line}: {width} fields, but {len(names)} are needed "
        f"({', '.join(names)}); is a line cut short, or a tab or line break inside a text?"
    )


def read_csv(path: Path, columns: Columns) -> Table:
    """Read a CSV file with a header line, quoted as by the `csv` module.

    Raises:
        UserError: the file cannot be read, lacks a column or has a row of another width.
    """
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    cells: tuple[list[Cell], ...] = tuple([] for _ in columns.wanted)
    positions: list[int] = []
    try:
        names = next(reader, [])
        indices = _find_columns(path, names, columns.wanted)
        start = reader.line_num + 1
        for fields in reader:
            if len(fields) == len(names):
                for column, index in zip(cells, indices, strict=True):
                    column.append(fields[index])
                positions.append(start)
            elif fields:
                raise UserError(_width_message(path, start, len(fields), names))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    return Table(path=str(path), columns=columns, cells=cells, positions=positions)


def read_jsonl(path: Path, columns: Columns) -> Table:
    """Read JSON lines: one object per line.

    Raises:
        UserError: the file cannot be read, a line is no object or lacks a column.
    """
    cells: tuple[list[Cell], ...] = tuple([] for _ in columns.wanted)
    positions: list[int] = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not JSON ({_one_line(error)})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: {type(row).__name__}, but must be an object")
        if not row.keys() >= set(columns.wanted):
            _find_columns(f"{path}, line {number}", list(row), columns.wanted)
        for column, name in zip(cells, columns.wanted, strict=True):
            column.append(row[name])
        positions.append(number)
    return Table(path=str(path), columns=columns, cells=cells, positions=positions)


def _check_not_empty(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if size == 0:
        raise UserError(f"{path}: the file is empty; was its download interrupted?")


def _read_text(path: Path) -> str:
    _check_not_empty(path)
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 ({error.reason}); convert the file to UTF-8"
        ) from error


def _find_columns(
    where: Path | str, present: Sequence[str], wanted: Sequence[str]
) -> tuple[int, ...]:
    for name in wanted:
        if name not in present:
            raise UserError(f"{where}: no column {name!r}: {_nearest_of(name, present)}")
        if list(present).count(name) > 1:
            raise UserError(f"{where}: column {name!r} is there more than once")
    return tuple(list(present).index(name) for name in wanted)


def _nearest_of(name: str, present: Sequence[str]) -> str:
    readable = ["".join(c if c.isprintable() else "?" for c in str(p)[:40]) for p in present[:20]]
    return nearest(name, readable) if readable else "there are no columns"


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

"""One data file -> the cells that a task needs, not yet judged.

Parquet as on the Hugging Face hub, GLUE's TSV, CSV and JSON lines. Only the wanted columns are
kept, so the labels of GLUE's test sets are never touched.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spafit_bench.base.errors import UserError
from spafit_bench.data.text_files import no_column, one_line, read_rows

MAX_TORN_FRACTION = 1e-3
"""With more torn rows than this, a file is damaged: GLUE's own has fewer."""

Cell = Any
"""What a file has where a text or a label belongs: anything, until it is validated."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns to read, by their names in the file."""

    texts: tuple[str, ...]
    label: str | None
    """None if labels are not to be read (GLUE's test sets)."""
    class_names: tuple[str, ...] = ()
    """Class names in label order; empty for a regression task."""
    label_is_optional: bool = False
    """Whether the file of a test set may lack the label, or have a placeholder in its place."""

    def present(self, names: Collection[str]) -> Columns:
        """Return the columns to read from a file with these names."""
        lacking = self.label_is_optional and self.label not in names
        return replace(self, label=None) if lacking else self

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


def read_text(
    path: Path, columns: Columns, *, header: Sequence[str] = (), torn_rows: bool = False
) -> Table:
    """Read CSV, TSV or JSON lines, by the file's ending.

    Args:
        path: the file.
        columns: what to read.
        header: column names of a TSV file without a header line.
        torn_rows: leave out rows that a line break inside a text has torn apart, if few.

    Raises:
        UserError: the file cannot be read, lacks a column or has a row of another width.
    """
    _check_readable(path)
    format_ = path.suffix.removeprefix(".")
    torn: list[str] | None = [] if torn_rows else None
    cells: tuple[list[Cell], ...] = ()
    positions: list[int] = []
    with path.open("rb") as file:
        for line, row in read_rows(file, format_, str(path), header=header, torn=torn):
            if not positions:
                columns = columns.present(row)
                cells = tuple([] for _ in columns.wanted)
            for name, column in zip(columns.wanted, cells, strict=True):
                if name not in row:
                    where = f"{path}, line {line}" if format_ == "jsonl" else str(path)
                    raise no_column(where, name, row)
                column.append(row[name])
            positions.append(line)
    if torn and len(torn) > MAX_TORN_FRACTION * len(positions):
        raise UserError(torn[0])
    return Table(path=str(path), columns=columns, cells=cells, positions=positions)


def read_parquet(path: Path, columns: Columns) -> Table:
    """Read a parquet file.

    Raises:
        UserError: the file cannot be read, lacks a column, or has classes in another order.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_readable(path)
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            columns = columns.present(schema.names)
            for name in columns.wanted:
                if name not in schema.names:
                    raise no_column(str(path), name, schema.names)
                if schema.names.count(name) > 1:
                    raise UserError(f"{path}: column {name!r} is there more than once")
            _check_class_order(path, schema.metadata or {}, columns)
            table = file.read(columns=list(columns.wanted))
        cells = tuple(table.column(name).to_pylist() for name in columns.wanted)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path}: cannot be read as parquet ({one_line(error)}); "
            "the file is damaged or incomplete, download it again"
        ) from error
    return Table(
        path=str(path), columns=columns, cells=cells, positions=range(len(cells[0])), unit="row"
    )


def _check_class_order(path: Path, metadata: dict[bytes, bytes], columns: Columns) -> None:
    """Refuse ids that mean other classes than the task's: copies of MNLI disagree on the order."""
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


def _check_readable(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if size == 0:
        raise UserError(f"{path}: the file is empty; was its download interrupted?")

"""The rows of a text file, one at a time: CSV, TSV, JSON lines or plain lines, always UTF-8."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from spafit_bench.base.errors import UserError, nearest

FORMATS = ("csv", "tsv", "jsonl", "txt")

LONGEST_FIELD = 2**31 - 1
"""Characters of a CSV field: Python's own limit is shorter than a long document."""

Rows = Iterator[tuple[int, dict[str, Any]]]
"""The line on which a row begins, from 1, and its cells by column."""


def read_rows(
    file: Iterable[bytes],
    format_: str,
    where: str,
    *,
    header: Sequence[str] = (),
    torn: list[str] | None = None,
) -> Rows:
    """Yield the rows of a file, reading no more of it than has been asked for.

    Args:
        file: its lines. A byte order mark is left out.
        format_: one of `FORMATS`. Quotes have no meaning in TSV and `txt`, as in GLUE's own files;
            `txt` is TSV in which an empty line is a row.
        where: the file's name in messages.
        header: column names of a TSV or `txt` file without a header line.
        torn: receives a message for each row of another width, which is then left out; None
            refuses such a row.

    Raises:
        UserError: not UTF-8, not of this format, or a row of another width than the header.
    """
    lines = _decoded(file, where)
    if format_ == "jsonl":
        yield from _objects(lines, where)
        return
    names = list(header)
    for line, fields in _csv(lines, where) if format_ == "csv" else _tabs(lines, format_):
        if not names:
            names = fields
            _check_header(names, format_, f"{where}, line {line}")
        elif len(fields) == len(names) and not (torn is not None and "\r" in "".join(fields)):
            yield line, dict(zip(names, fields, strict=True))
        else:
            problem = (
                f"{where}, line {line}: {len(fields)} fields, but {len(names)} are needed "
                f"({', '.join(names)}); is a line cut short, or a tab or line break inside a text?"
            )
            if torn is None:
                raise UserError(problem)
            torn.append(problem)
    if not names:
        raise UserError(f"{where}: the file is empty; its first line must name the columns")


def _decoded(file: Iterable[bytes], where: str) -> Iterator[str]:
    for number, raw in enumerate(file, start=1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}, line {number}: not UTF-8 ({error.reason}); convert the file to UTF-8"
            ) from None


def _csv(lines: Iterator[str], where: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LONGEST_FIELD)
    # StringIO also splits at a lone \r, the line break of old spreadsheets.
    pieces = (piece for line in lines for piece in io.StringIO(line, newline=""))
    reader = csv.reader(pieces, strict=True)
    start = 1
    try:
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{where}, line {reader.line_num}: not CSV ({error})") from None


def _tabs(lines: Iterator[str], format_: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, start=1):
        fields = line.removesuffix("\n").removesuffix("\r").split("\t")
        if format_ == "txt" or fields != [""]:
            yield number, fields


def _objects(lines: Iterator[str], where: str) -> Rows:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}, line {number}: not JSON ({one_line(error)})") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}, line {number}: {type(row).__name__}, but must be an object")
        yield number, row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in row if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there more than once")
    return row


def _check_header(names: Sequence[str], format_: str, where: str) -> None:
    for separator, called in ((";", "semicolons"), ("\t", "tabs")):
        if format_ == "csv" and len(names) == 1 and separator in names[0]:
            raise UserError(
                f"{where}: the columns are separated by {called}; save the file with commas"
            )
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(
                f"{where}: column {name[:40]!r} is there more than once; rename or remove one"
            )


def no_column(where: str, wanted: str, present: Iterable[str]) -> UserError:
    """Return the error that a column is missing, with the nearest of those that are there."""
    names = ["".join(c if c.isprintable() else "?" for c in str(p)[:40]) for p in present][:20]
    hint = nearest(wanted, names) if names else "there are no columns"
    return UserError(f"{where}: no column {wanted!r}: {hint}")


def text_problem(cell: Any, *, may_be_empty: bool) -> str:
    """Say what is wrong with the cell of a text, and what to do; empty if nothing is."""
    if not isinstance(cell, str):
        what = "no text (null)" if cell is None else f"{type(cell).__name__}, but must be text"
        return f"{what}; fill in the text or remove the row"
    if not may_be_empty and not cell.strip():
        return "empty text; fill it in or remove the row"
    try:
        cell.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, which is no character; write the character itself"
    return ""


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to a readable length."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

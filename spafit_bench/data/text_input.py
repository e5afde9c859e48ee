"""Texts to predict, one example at a time: from the command line, a file or standard input."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.data.readers import LONGEST_FIELD
from spafit_bench.data.tasks import Task

KINDS = ("csv", "tsv", "jsonl", "txt")

Texts = tuple[str, ...]
"""One text, or two for a pair."""


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Where a user says that texts are; standard input where nothing is given."""

    texts: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    """The second text of each pair."""
    file: Path | None = None
    kind: str | None = None
    """One of `KINDS`; None: by the file's ending, `txt` for standard input."""

    @property
    def is_stream(self) -> bool:
        """Whether texts may arrive slowly, so that answers should not wait for many of them."""
        return not self.texts and (self.file is None or str(self.file) == "-")


def read_texts(task: Task, source: TextSource) -> Iterator[Texts]:
    """Yield examples in order, reading no more of a file than has been asked for.

    Args:
        task: decides how many texts an example has and how columns may be called.
        source: CSV and TSV need a header line; JSON lines are objects; `txt` has an example per
            line, the two texts of a pair separated by a tab.

    Raises:
        UserError: texts are missing, or a line is not what the task needs; the message names it.
    """
    if source.texts or source.pairs:
        if source.file is not None:
            raise UserError("--text and --file: give one of the two")
        return _from_arguments(task, source)
    kind = _kind(source)
    readers = {"csv": _from_csv, "tsv": _from_tsv, "jsonl": _from_jsonl, "txt": _from_lines}
    return _from_file(task, source, readers[kind])


def _kind(source: TextSource) -> str:
    kind = source.kind
    if kind is None:
        kind = "txt" if source.is_stream else str(source.file).rpartition(".")[2].lower()
    if kind not in KINDS:
        hint = "" if source.kind else "; say which with --input-format"
        raise UserError(f"{source.file or 'input'}: unknown kind of file{hint}: {', '.join(KINDS)}")
    return kind


def _from_arguments(task: Task, source: TextSource) -> Iterator[Texts]:
    columns = (source.texts, source.pairs) if source.pairs else (source.texts,)
    if len(columns) != len(task.text_columns):
        forms = {1: "--text alone", 2: "--text A --text-pair B"}
        wanted = forms.get(len(task.text_columns), "--file with these columns")
        raise UserError(f"{task.name} takes {_names(task)}: give {wanted}")
    if len({len(column) for column in columns}) > 1:
        raise UserError(
            f"{len(source.texts)} --text but {len(source.pairs)} --text-pair: give as many of each"
        )
    return (
        _checked(task, texts, f"--text number {number}")
        for number, texts in enumerate(zip(*columns, strict=True), start=1)
    )


def _names(task: Task) -> str:
    names = " and ".join(task.text_columns)
    kinds = {1: f"one text ({names})", 2: f"pairs of texts ({names})"}
    return kinds.get(len(task.text_columns), f"texts in columns ({names})")


def _from_file(task: Task, source: TextSource, read: Any) -> Iterator[Texts]:
    where = "standard input" if source.is_stream else str(source.file)
    with _opened(source, where) as file:
        try:
            for line, texts in read(task, file, where):
                yield _checked(task, texts, f"{where}, line {line}")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: not UTF-8 ({error.reason}); convert the file to UTF-8"
            ) from None


@contextmanager
def _opened(source: TextSource, where: str) -> Iterator[Iterator[str]]:
    """Give decoded lines: UTF-8, whatever the terminal's encoding is; a BOM is left out."""
    if source.is_stream:
        if sys.stdin.isatty():
            sys.stderr.write("reading texts from the keyboard, one per line; Ctrl-D ends\n")
        yield _decoded(sys.stdin.buffer)
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(str(source.file)).open("rb"))
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror})") from None
        yield _decoded(file)


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, raw in enumerate(lines):
        yield raw.decode("utf-8" if number else "utf-8-sig")


Rows = Iterator[tuple[int, Sequence[Any]]]
"""Line (from 1) and the texts found there."""


def _from_csv(task: Task, file: Iterable[str], where: str) -> Rows:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(file, strict=True)
    try:
        yield from _rows_with_header(task, reader, where, lambda: reader.line_num)
    except csv.Error as error:
        raise UserError(f"{where}, line {reader.line_num}: not CSV ({error})") from None


def _from_tsv(task: Task, file: Iterable[str], where: str) -> Rows:
    """Read tab-separated lines as GLUE's are: quotes have no meaning."""
    number = 0

    def fields() -> Iterator[list[str]]:
        nonlocal number
        for line in _lines(file):
            number += 1
            yield line.split("\t")

    yield from _rows_with_header(task, fields(), where, lambda: number)


def _rows_with_header(task: Task, rows: Iterator[list[str]], where: str, line: Any) -> Rows:
    header = next(rows, None)
    if header is None:
        raise UserError(f"{where}: empty; the first line must name the columns")
    columns = _columns(task, header, f"{where}, line 1")
    indices = [header.index(column) for column in columns]
    for fields in rows:
        if not fields:
            continue
        if len(fields) != len(header):
            raise UserError(
                f"{where}, line {line()}: {len(fields)} fields, but the header has {len(header)}"
            )
        yield line(), [fields[index] for index in indices]


def _from_jsonl(task: Task, file: Iterable[str], where: str) -> Rows:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}, line {number}: not JSON ({error})") from None
        if not isinstance(row, Mapping):
            raise UserError(f"{where}, line {number}: must be an object with {_names(task)}")
        columns = _columns(task, list(row), f"{where}, line {number}")
        yield number, [row[column] for column in columns]


def _from_lines(task: Task, file: Iterable[str], where: str) -> Rows:
    for number, line in enumerate(_lines(file), start=1):
        texts = line.split("\t")
        if len(texts) != len(task.text_columns):
            kinds = {1: "no tab", 2: "a tab between the two"}
            tabs = kinds.get(len(task.text_columns), "tabs between them")
            raise UserError(
                f"{where}, line {number}: {task.name} takes {_names(task)}, with {tabs}; "
                f"found {len(texts)} texts"
            )
        yield number, texts


def _lines(file: Iterable[str]) -> Iterator[str]:
    for line in file:
        yield line.removesuffix("\n").removesuffix("\r")


_GENERIC: dict[int, tuple[tuple[str, ...], ...]] = {
    1: (("sentence",), ("text",)),
    2: (("sentence1", "sentence2"), ("text", "text_pair")),
}
"""Number of texts -> other names that their columns may have."""


def _columns(task: Task, present: Sequence[str], where: str) -> tuple[str, ...]:
    """Find the columns of texts, under any of the names that they may have."""
    generic = _GENERIC.get(len(task.text_columns), ())
    choices = (task.text_columns, task.tsv.text_columns, *generic)
    for names in choices:
        if set(names) <= set(present):
            return names
    wanted = " or ".join("+".join(names) for names in dict.fromkeys(choices))
    there = [name[:40] for name in present[:20]]
    hint = nearest(task.text_columns[0], there) if there else "there are none"
    raise UserError(f"{where}: no columns {wanted}: {hint}")


def _checked(task: Task, texts: Sequence[Any], where: str) -> Texts:
    for name, text in zip(task.text_columns, texts, strict=True):
        if not isinstance(text, str):
            raise UserError(f"{where}: {name} is {type(text).__name__}, but must be text")
        if not text.strip() and not task.empty_texts:
            raise UserError(f"{where}: {name} is empty; fill it in or remove the line")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: {name} has a character that is not Unicode text") from None
    return tuple(texts)

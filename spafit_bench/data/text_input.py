"""Texts to predict, one example at a time: from the command line, a file or standard input."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spafit_bench.base.errors import UserError
from spafit_bench.data.tasks import Task
from spafit_bench.data.text_files import FORMATS, no_column, read_rows, text_problem

Texts = tuple[str, ...]
"""One text, or two for a pair; the cells of every column if the task has templates."""


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Where a user says that texts are; standard input if nothing is given."""

    texts: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    """The second text of each pair."""
    file: Path | None = None
    kind: str | None = None
    """One of `text_files.FORMATS`; None: by the file's ending, `txt` for standard input."""

    @property
    def is_stream(self) -> bool:
        """Whether texts may arrive slowly, so that answers should not wait for many of them."""
        return not self.texts and (self.file is None or str(self.file) == "-")

    @property
    def name(self) -> str:
        """What messages call the source."""
        return "standard input" if self.is_stream else str(self.file)

    @property
    def format(self) -> str:
        """How the file is written.

        Raises:
            UserError: its ending does not say, or `kind` is unknown.
        """
        ending = "txt" if self.is_stream else str(self.file).rpartition(".")[2].lower()
        found = self.kind or ending
        if found not in FORMATS:
            hint = "" if self.kind else "; say which with --input-format"
            raise UserError(f"{self.name}: unknown kind of file{hint}: {', '.join(FORMATS)}")
        return found


def read_texts(task: Task, source: TextSource) -> Iterator[Texts]:
    """Yield the texts of the examples in order; see `read_examples`."""
    return (texts for texts, _ in read_examples(task, source))


def read_examples(task: Task, source: TextSource) -> Iterator[tuple[Texts, dict[str, Any]]]:
    """Yield texts and all columns of examples, reading no more of a file than is asked for.

    Args:
        task: decides how many texts an example has and how columns may be called.
        source: CSV and TSV need a header line; JSON lines are objects; `txt` has an example per
            line, the two texts of a pair separated by a tab.

    Raises:
        UserError: texts are missing, or a line is not what the task needs; the message names it.
    """
    if not (source.texts or source.pairs):
        return _from_file(task, source, source.format)
    if source.file is not None:
        raise UserError("--text and --file: give one of the two")
    return _from_arguments(task, source)


def _from_arguments(task: Task, source: TextSource) -> Iterator[tuple[Texts, dict[str, Any]]]:
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
        (
            _checked(task, texts, f"--text number {number}"),
            dict(zip(task.text_columns, texts, strict=True)),
        )
        for number, texts in enumerate(zip(*columns, strict=True), start=1)
    )


def _names(task: Task) -> str:
    names = " and ".join(task.text_columns)
    kinds = {1: f"one text ({names})", 2: f"pairs of texts ({names})"}
    return kinds.get(len(task.text_columns), f"texts in columns ({names})")


def _from_file(
    task: Task, source: TextSource, format_: str
) -> Iterator[tuple[Texts, dict[str, Any]]]:
    header = task.text_columns if format_ == "txt" else ()
    with _opened(source) as file:
        for line, row in read_rows(file, format_, source.name, header=header):
            where = f"{source.name}, line {line}"
            columns = text_columns(task, row, where)
            yield _checked(task, [row[column] for column in columns], where), row


@contextmanager
def _opened(source: TextSource) -> Iterator[BinaryIO]:
    """Give the bytes: texts are UTF-8, whatever the terminal's encoding is."""
    if source.is_stream:
        if sys.stdin.isatty():
            sys.stderr.write("reading texts from the keyboard, one per line; Ctrl-D ends\n")
        yield sys.stdin.buffer
        return
    try:
        file = Path(str(source.file)).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{source.name}: cannot be read ({error.strerror})") from None
    with file:
        yield file


_GENERIC: Mapping[int, Sequence[tuple[str, ...]]] = {
    1: (("sentence",), ("text",)),
    2: (("sentence1", "sentence2"), ("text", "text_pair")),
}
"""Number of texts -> other names that their columns may have."""


def text_columns(task: Task, present: Collection[str], where: str) -> tuple[str, ...]:
    """Return the columns that hold a task's texts, under any of the names that they may have.

    Raises:
        UserError: they are not among the columns that are present.
    """
    generic = _GENERIC.get(len(task.text_columns), ())
    choices = dict.fromkeys((task.text_columns, task.tsv_columns, *generic))
    for names in choices:
        if all(name in present for name in names):
            return names
    raise no_column(where, " or ".join("+".join(names) for names in choices), present)


def _checked(task: Task, texts: Sequence[Any], where: str) -> Texts:
    for name, text in zip(task.text_columns, texts, strict=True):
        problem = text_problem(text, may_be_empty=task.empty_texts)
        if problem:
            raise UserError(f"{where}, column {name!r}: {problem}")
    return tuple(texts)

"""Result tables as text: for a terminal, Markdown, LaTeX (booktabs), HTML, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from spafit_bench.analysis.tables.cells import MISSING, Cell, ResultTable, marks_text
from spafit_bench.analysis.tables.html import html_fragment
from spafit_bench.analysis.tables.latex import latex_document
from spafit_bench.analysis.tables.terminal import terminal_table
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.base.escaping import csv_cell, markdown, printable_fields

_LONG_FORM = (
    *("kind", "model", "data", "method", "setting", "task", "split", "metric", "unit"),
    *("mean", "sd", "n", "seeds", "marks", "source"),
)


def render(
    tables: Sequence[ResultTable],
    format: str,  # noqa: A002 (the command line's word for it)
    width: int | None = None,
    *,
    color: bool = False,
) -> str:
    """Write tables as one text.

    CSV is the long form, one line per method, task, split and metric, with one heading whatever
    the tables; `write_tables` has a wide CSV for each table as well.

    Args:
        tables: what `build_tables` made.
        format: `terminal`, `md`, `csv`, `latex`, `html` or `json`.
        width: columns of the terminal (default: those of this one); other formats ignore it.
        color: whether the terminal's text has ANSI styles. It says the same without.

    Raises:
        UserError: the format is not one of these.
    """
    if format == "terminal":
        columns = width or shutil.get_terminal_size((100, 24)).columns
        shown = printable_fields(tuple(tables))
        return "\n".join(terminal_table(table, columns, color) for table in shown)
    if format not in _FORMATS:
        raise UserError(f"unknown table format {format!r}: {nearest(format, FORMATS)}")
    return _FORMATS[format](tables if format == "json" else printable_fields(tuple(tables)))


def write_tables(tables: Sequence[ResultTable]) -> dict[str, str]:
    """Name and fill the files of a results folder's `tables/`: nothing is written here.

    Returns:
        File name -> content: a wide CSV and a Markdown file for each table, and `metrics.csv` in
        the long form. With several models or data sets the names end in theirs.
    """
    kinds: dict[str, list[ResultTable]] = defaultdict(list)
    tables = printable_fields(tuple(tables))
    for table in tables:
        kinds[table.kind].append(table)
    files = {}
    for kind, alike in kinds.items():
        for table in alike:
            stem = f"{kind}-{table.slug}" if len(alike) > 1 else kind
            files[f"{stem}.csv"] = _wide_csv(table)
            files[f"{stem}.md"] = _markdown(table)
    return files | {"metrics.csv": _long_csv(tables)}


def is_table_file(name: str) -> bool:
    """Tell whether `write_tables` may have named a file so, in this or an earlier call."""
    pattern = r"metrics\.csv|(scores|parameters|cost|trials)(-.+)?\.(csv|md)"
    return re.fullmatch(pattern, name) is not None


# Markdown


def _markdown_all(tables: Sequence[ResultTable]) -> str:
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: ResultTable) -> str:
    heads = [
        markdown(f"{column.title} ({column.subtitle})" if column.subtitle else column.title)
        for column in table.columns
    ]
    lines = [[*table.lead_titles, *heads]]
    for divider, row in table.divided_rows():
        if divider:
            lines.append([f"*{divider}*", *[""] * (len(lines[0]) - 1)])
        leads = [markdown(text) for text in table.leads(row)]
        lines.append([*leads, *(_md_cell(cell) for cell in row.cells)])
    widths = [max(3, *map(len, texts)) for texts in zip(*lines, strict=True)]
    left = len(table.lead_titles)

    def line(texts: Sequence[str]) -> str:
        cells = [
            text.ljust(size) if index < left else text.rjust(size)
            for index, (text, size) in enumerate(zip(texts, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * size if index < left else "-" * (size - 1) + ":" for index, size in enumerate(widths)
    ]
    body = "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])])
    ranking = table.ranking_note("**bold**: best mean", "<ins>underlined</ins>: second best")
    notes = [f"- {note}" for note in [*ranking, *map(markdown, table.notes)]]
    return "\n".join(
        [f"## {markdown(table.title)}", "", markdown(table.caption), "", body, "", *notes, ""]
    )


def _md_cell(cell: Cell) -> str:
    text = markdown(cell.text)
    if cell.bold:
        text = f"**{text}**"
    elif cell.underline:
        text = f"<ins>{text}</ins>"
    spread = f" ± {cell.spread}" if cell.spread else ""
    aside = f" ({cell.aside})" if cell.aside else ""
    return text + spread + markdown(cell.symbols) + aside


# CSV and JSON


def _wide_csv(table: ResultTable) -> str:
    """One line per row in the columns' raw units, a mean followed by its spread, n and marks."""
    spread = {
        index
        for index in range(len(table.columns))
        if any(row.cells[index].n for row in table.rows)
    }
    marked = {
        index
        for index in range(len(table.columns))
        if any(row.cells[index].marks for row in table.rows)
    }
    heads = [title.lower() for title in table.lead_titles]
    for index, column in enumerate(table.columns):
        heads.append(column.key)
        heads += [f"{column.key}_sd", f"{column.key}_n"] if index in spread else []
        heads += [f"{column.key}_marks"] if index in marked else []
    sourced = any(row.source for row in table.rows)
    heads += ["source"] * sourced
    lines: list[list[Any]] = [heads]
    for row in table.rows:
        line: list[Any] = [row.group, row.name] if len(table.lead_titles) > 1 else [row.name]
        for index, cell in enumerate(row.cells):
            line.append(_raw(cell))
            line += [_number(cell.sd), cell.n or ""] if index in spread else []
            line += ["; ".join(marks_text(cell.marks))] if index in marked else []
        lines.append([*line, *[row.source] * sourced])
    return _csv(lines)


def _raw(cell: Cell) -> str:
    """Write a value in full; a range, which has no single value, as its text."""
    return _number(cell.value) if cell.value is not None else cell.text.replace(MISSING, "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _long_csv(tables: Sequence[ResultTable]) -> str:
    lines: list[list[Any]] = [list(_LONG_FORM)]
    for line in _measurements(tables):
        texts = line | {
            "mean": _number(line["mean"]),
            "sd": _number(line["sd"]),
            "seeds": " ".join(map(str, line["seeds"])),
            "marks": "; ".join(line["marks"]),
        }
        lines.append([texts[field] for field in _LONG_FORM])
    return _csv(lines)


def _measurements(tables: Sequence[ResultTable]) -> Iterator[dict[str, Any]]:
    for table in tables:
        where = {"kind": table.kind, "model": table.model, "data": table.data}
        for line in table.measurements:
            yield where | asdict(line)


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([map(csv_cell, line) for line in lines])
    return stream.getvalue()


def _json(tables: Sequence[ResultTable]) -> str:
    content = {
        "tables": [_json_table(table) for table in tables],
        "measurements": list(_measurements(tables)),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _json_table(table: ResultTable) -> dict[str, Any]:
    rows = [
        {
            "method": row.name,
            **({"task": row.group} if row.group else {}),
            "baseline": row.baseline,
            "source": row.source or None,
            "cells": {
                column.key: {
                    **{key: getattr(cell, key) for key in ("value", "sd", "n")},
                    **({"range": cell.text} if cell.value is None and cell.text != MISSING else {}),
                    "marks": marks_text(cell.marks),
                    "best": cell.bold,
                    "second": cell.underline,
                }
                for column, cell in zip(table.columns, row.cells, strict=True)
            },
        }
        for row in table.rows
    ]
    head = {key: getattr(table, key) for key in ("kind", "title", "model", "data", "caption")}
    columns = [asdict(column) for column in table.columns]
    return head | {"columns": columns, "rows": rows, "notes": table.notes}


_FORMATS: Mapping[str, Callable[[Sequence[ResultTable]], str]] = MappingProxyType(
    {
        **{"md": _markdown_all, "csv": _long_csv, "latex": latex_document},
        **{"html": html_fragment, "json": _json},
    }
)
FORMATS = ("terminal", *_FORMATS)

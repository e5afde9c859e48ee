"""A result table for a terminal of any width; it says the same with and without colour."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spafit_bench.analysis.tables.cells import Cell, ResultTable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_BEST, _SECOND = "●", "○"
_COLUMN_GAP = 2  # one of padding, one that rich puts between columns
_LONGEST_TITLE = 24  # of a column; longer ones wrap


def terminal_table(table: ResultTable, width: int, color: bool) -> str:
    """Write title, caption, table and notes; too wide a table is parted into blocks of columns.

    Args:
        table: what to write.
        width: columns of the terminal.
        color: whether to add ANSI styles.
    """
    from rich.console import Console
    from rich.text import Text

    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
    )
    console.print(Text(table.title, style="bold"))
    console.print(Text(table.caption, style="dim"))
    for block in _blocks(table, width):
        console.print(_terminal_block(table, block, width))
        console.print()
    for note in table.ranking_note(f"{_BEST} best mean", f"{_SECOND} second best"):
        console.print(Text(note, style="dim"))
    for note in table.notes:
        console.print(Text(note, style="dim"))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _cell_lines(cell: Cell, mark_width: int) -> list[str]:
    """Write a value with room for the column's marks, so that decimals line up."""
    rank = _BEST if cell.bold else _SECOND if cell.underline else ""
    lines = [f"{rank}{cell.text}{cell.symbols:<{mark_width}}"]
    if cell.spread:
        lines.append(f"±{cell.spread}{'':<{mark_width}}")
    if cell.aside:
        lines.append(f"{cell.aside}{'':<{mark_width}}")
    return lines


def _column_lines(table: ResultTable, index: int) -> list[list[str]]:
    cells = [row.cells[index] for row in table.rows]
    mark_width = max((len(cell.symbols) for cell in cells), default=0)
    return [_cell_lines(cell, mark_width) for cell in cells]


def _lead_widths(table: ResultTable, width: int) -> list[int]:
    """Return the widths of the columns of text, which together take half the width at most."""
    leads = zip(*(table.leads(row) for row in table.rows), strict=True)
    most = max(1, width // (2 * len(table.lead_titles)) - _COLUMN_GAP)
    return [
        min(most, max(map(len, (title, *texts))))
        for title, texts in zip(table.lead_titles, leads, strict=True)
    ]


def _column_width(table: ResultTable, index: int) -> int:
    column = table.columns[index]
    titles = [min(len(text), _LONGEST_TITLE) for text in (column.title, column.subtitle)]
    return max(*titles, *(len(line) for cell in _column_lines(table, index) for line in cell))


def _blocks(table: ResultTable, width: int) -> list[list[int]]:
    """Part the columns into as few blocks as fit the width, of about equal length."""
    room = width - sum(lead + _COLUMN_GAP for lead in _lead_widths(table, width))
    widths = [_column_width(table, at) + _COLUMN_GAP for at in range(len(table.columns))]
    for count in range(1, len(widths) + 1):
        size = -(-len(widths) // count)
        blocks = [
            list(range(at, min(at + size, len(widths)))) for at in range(0, len(widths), size)
        ]
        if all(sum(widths[index] for index in block) <= room for block in blocks):
            return blocks
    return [[index] for index in range(len(widths))]


def _terminal_block(table: ResultTable, block: Sequence[int], width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for title, lead in zip(table.lead_titles, _lead_widths(table, width), strict=True):
        grid.add_column(title, overflow="fold", max_width=lead)
    for index in block:
        column = table.columns[index]
        heading = Text(column.title)
        if any(column.subtitle for column in table.columns):
            heading.append(f"\n{column.subtitle}", style="dim")
        most = _column_width(table, index)
        grid.add_column(heading, justify="right", overflow="fold", max_width=most)
    lines = {index: _column_lines(table, index) for index in block}
    previous = ""
    for number, (divider, row) in enumerate(table.divided_rows()):
        if divider is not None:
            grid.add_section()
        if divider:
            grid.add_row(Text(divider), style="dim italic")
        leads = table.leads(row)
        if row.group and row.group == previous:
            leads = ("", *leads[1:])
        previous = row.group
        style = "dim" if row.baseline else ""
        values = [_styled(row.cells[index], lines[index][number]) for index in block]
        grid.add_row(*map(Text, leads), *values, style=style)
    return grid


def _styled(cell: Cell, lines: Sequence[str]) -> Text:
    from rich.text import Text

    style = "bold" if cell.bold else "underline" if cell.underline else ""
    first, *rest = lines
    text = Text(first, style=style)
    for line in rest:
        text.append(f"\n{line}", style="not bold not underline dim")
    return text

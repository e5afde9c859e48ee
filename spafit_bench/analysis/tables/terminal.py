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
        console.print(_terminal_block(table, block))
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


def _blocks(table: ResultTable, width: int) -> list[list[int]]:
    """Part the columns into as few blocks as fit the width, of about equal length."""
    leads = [*zip(*(table.leads(row) for row in table.rows), strict=True)]
    taken = sum(
        max(map(len, (title, *texts))) + _COLUMN_GAP
        for title, texts in zip(table.lead_titles, leads, strict=True)
    )
    widths = []
    for index, column in enumerate(table.columns):
        lines = [line for cell in _column_lines(table, index) for line in cell]
        widths.append(max(map(len, (column.title, column.subtitle, *lines))) + _COLUMN_GAP)
    room = width - taken
    for count in range(1, len(widths) + 1):
        size = -(-len(widths) // count)
        blocks = [
            list(range(at, min(at + size, len(widths)))) for at in range(0, len(widths), size)
        ]
        if all(sum(widths[index] for index in block) <= room for block in blocks):
            return blocks
    return [[index] for index in range(len(widths))]


def _terminal_block(table: ResultTable, block: Sequence[int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for title in table.lead_titles:
        grid.add_column(title, no_wrap=True)
    for index in block:
        column = table.columns[index]
        heading = Text(column.title)
        if any(column.subtitle for column in table.columns):
            heading.append(f"\n{column.subtitle}", style="dim")
        grid.add_column(heading, justify="right", no_wrap=True)
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

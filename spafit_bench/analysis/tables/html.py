"""Result tables as a fragment of HTML with its own style, to paste into a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from spafit_bench.analysis.tables.cells import Cell, ResultTable, Row

_STYLE = """\
.spafit-bench { font: 14px/1.4 system-ui, sans-serif; overflow-x: auto; margin-bottom: 2em; }
.spafit-bench table { border-collapse: collapse; border-bottom: 2px solid; }
.spafit-bench caption { text-align: left; padding-bottom: .5em; }
.spafit-bench th, .spafit-bench td { padding: .15em .6em; text-align: right; white-space: nowrap; }
.spafit-bench th[scope=row], .spafit-bench .lead { text-align: left; font-weight: normal; }
.spafit-bench thead { border-top: 2px solid; }
.spafit-bench tbody { border-top: 1px solid; }
.spafit-bench small { opacity: .7; font-weight: normal; }
.spafit-bench ul { font-size: 12px; padding-left: 1.2em; }"""


def html_fragment(tables: Sequence[ResultTable]) -> str:
    """Write a style element and one block for each table; every text is escaped."""
    return f"<style>\n{_STYLE}\n</style>\n" + "\n".join(map(html_block, tables))


def html_block(table: ResultTable) -> str:
    """Write one table with caption and notes, without a style."""
    notes = [
        *table.ranking_note("<b>bold</b>: best mean", "<u>underlined</u>: second best"),
        *map(escape, table.notes),
    ]
    lines = [
        '<div class="spafit-bench">',
        f"<table>\n<caption><b>{escape(table.title)}</b><br>{escape(table.caption)}</caption>",
        f"<thead>\n{_heading(table)}\n</thead>\n<tbody>",
        *_body(table),
        "</tbody>\n</table>\n<ul>",
        *(f"<li>{note}</li>" for note in notes),
        "</ul>\n</div>\n",
    ]
    return "\n".join(lines)


def _heading(table: ResultTable) -> str:
    leads = [f'<th scope="col" class="lead">{escape(title)}</th>' for title in table.lead_titles]
    columns = [
        f'<th scope="col">{escape(column.title)}<br><small>{escape(column.subtitle)}</small></th>'
        for column in table.columns
    ]
    return f"<tr>{''.join(leads)}{''.join(columns)}</tr>"


def _body(table: ResultTable) -> Iterator[str]:
    span = len(table.lead_titles) + len(table.columns)
    for divider, row in table.divided_rows():
        if divider is not None:
            yield "</tbody>\n<tbody>"
        if divider:
            heading = f'<th scope="rowgroup" colspan="{span}" class="lead">{escape(divider)}</th>'
            yield f"<tr>{heading}</tr>"
        yield _row(table, row)


def _row(table: ResultTable, row: Row) -> str:
    *groups, label = table.leads(row)
    leads = [f'<td class="lead">{escape(group)}</td>' for group in groups]
    title = f' title="{escape(row.source)}"' if row.source else ""
    leads.append(f'<th scope="row"{title}>{escape(label)}</th>')
    return f"<tr>{''.join(leads)}{''.join(map(_cell, row.cells))}</tr>"


def _cell(cell: Cell) -> str:
    tag = "b" if cell.bold else "u" if cell.underline else ""
    text = f"<{tag}>{escape(cell.text)}</{tag}>" if tag else escape(cell.text)
    small = f" ± {cell.spread}" * bool(cell.spread) + f" ({cell.aside})" * bool(cell.aside)
    marks = f"<sup>{escape(cell.symbols)}</sup>" if cell.marks else ""
    return f"<td>{text}{f'<small>{small}</small>' if small else ''}{marks}</td>"

"""A result table as LaTeX, for the booktabs package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from spafit_bench.analysis.tables.cells import Cell, ResultTable

_SIGNS: Mapping[str, str] = MappingProxyType(
    {
        "*": "*",
        "†": r"\dagger",
        "‡": r"\ddagger",
        "§": r"\S",
        "¶": r"\P",
        "≠": r"\neq",
        "↑": r"\uparrow",
    }
    | {"↓": r"\downarrow"}
)
_LATEX: Mapping[int, str] = MappingProxyType(
    str.maketrans(
        {
            "\\": r"\textbackslash{}",
            "~": r"\textasciitilde{}",
            "^": r"\textasciicircum{}",
            **{character: f"\\{character}" for character in "&%$#_{}"},
            "<": r"\textless{}",
            ">": r"\textgreater{}",
            "|": r"\textbar{}",
            '"': "''",
            "·": r"\textperiodcentered{}",
            "±": r"$\pm$",
            "×": r"$\times$",
            "—": "---",
            "…": r"\ldots{}",
            **{sign: f"$^{{{name}}}$" for sign, name in _SIGNS.items()},
        }
    )
)


_FULL_WIDTH = 8


def latex_document(tables: Sequence[ResultTable]) -> str:
    """Write floats to include in a document; the first line names the packages they need."""
    preamble = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
    return preamble + "\n".join(_latex(table) for table in tables)


def _latex(table: ResultTable) -> str:
    left = len(table.lead_titles)
    wide = len(table.columns) > _FULL_WIDTH
    lines = [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{_tex(f'{table.title}. {table.caption}')}}}",
        rf"\label{{tab:{table.kind}-{table.slug}}}",
        *([r"\setlength{\tabcolsep}{4pt}", r"\resizebox{\textwidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{{'l' * left}{'r' * len(table.columns)}}}",
        r"\toprule",
        _tex_row([*table.lead_titles, *(column.title for column in table.columns)]),
    ]
    if any(column.subtitle for column in table.columns):
        lines.append(_tex_row([*[""] * left, *(column.subtitle for column in table.columns)]))
    lines.append(r"\midrule")
    for divider, row in table.divided_rows():
        if divider is not None:
            lines.append(r"\midrule")
        if divider:
            span = left + len(table.columns)
            lines.append(rf"\multicolumn{{{span}}}{{l}}{{\emph{{{_tex(divider)}}}}} \\")
        leads = [_tex(text) for text in table.leads(row)]
        spreads = [_tex_spread(cell) for cell in row.cells]
        cells = [
            _tex_cell(cell) + (f" {spread}" if spread and not wide else "")
            for cell, spread in zip(row.cells, spreads, strict=True)
        ]
        lines.append(" & ".join([*leads, *cells]) + r" \\")
        if wide and any(spreads):
            lines.append(" & ".join([*[""] * left, *spreads]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}" + "}" * wide]
    lines.append(r"\par\smallskip\footnotesize\raggedright")
    lines += table.ranking_note(r"\textbf{bold}: best mean", r"\underline{underlined}: second best")
    return "\n".join([*lines, *map(_tex, table.notes), r"\end{table*}", ""])


def _tex(text: str) -> str:
    return text.translate(_LATEX)


def _tex_row(texts: Sequence[str]) -> str:
    return " & ".join(map(_tex, texts)) + r" \\"


def _tex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    if cell.bold:
        text = rf"\textbf{{{text}}}"
    elif cell.underline:
        text = rf"\underline{{{text}}}"
    signs = "".join(_SIGNS.get(character, character) for character in cell.symbols)
    aside = rf" {{\scriptsize ({cell.aside})}}" if cell.aside else ""
    return text + (f"$^{{{signs}}}$" if signs else "") + aside


def _tex_spread(cell: Cell) -> str:
    """Write the spread: beside the value, or below it where a table is wide."""
    return rf"{{\scriptsize $\pm$ {cell.spread}}}" if cell.spread else ""

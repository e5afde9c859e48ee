"""Text from outside is data: what a terminal, Markdown or a spreadsheet would act on is escaped."""

from __future__ import annotations

import pytest

from spafit_bench.base.escaping import csv_cell, markdown, markdown_code, printable


def test_printable_shows_control_characters() -> None:
    """Escapes, carriage returns, turned writing and undecodable bytes become visible."""
    assert printable("a\x1b[31mred\x07\r\u202e\udcff") == r"a\x1b[31mred\x07\r\u202e\udcff"
    assert printable("tab\tline\nä · ↑ 好") == "tab\tline\nä · ↑ 好"


def test_markdown_has_no_markup() -> None:
    """HTML, table cells, links and lines stay text, also in a code span."""
    assert markdown("<b>|[x](y)\n# h") == r"\<b>\|\[x\](y) # h"
    assert markdown_code("a`b\nc") == "`` a`b c ``"
    assert markdown_code("full") == "`full`"


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    """A text that begins as a formula gets an apostrophe; numbers stay."""
    assert csv_cell(text) == printable(f"'{text}")
    for value in ("-1.5", "+2", "-1e-05", "plain", "a=b", -1.5, None):
        assert csv_cell(value) == value

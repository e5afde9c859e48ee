"""Text from outside (names, messages, cells) made harmless where it is shown.

Each kind of output escapes in one place: a terminal what would move its cursor or change its
colours, Markdown what it would take for markup, CSV what a spreadsheet would take for a formula.
HTML is escaped by `html.escape`.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and newline
    "\u2028-\u202e\u2066-\u2069"  # line separators; what turns the direction of writing
    "\ud800-\udfff]"  # undecodable bytes of a path
)
_MARKUP = re.compile(r"([\\|*_<`\[\]])")


def printable(text: str) -> str:
    """Return the text with control characters as backslash escapes; tabs and newlines stay."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return JSON in which every control character is escaped as JSON escapes it."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def printable_fields(value: T) -> T:
    """Return a dataclass, tuple or text with every text in it made printable."""
    found: Any = value
    if isinstance(found, str):
        found = printable(found)
    elif isinstance(found, tuple):
        found = tuple(map(printable_fields, found))
    elif is_dataclass(found) and not isinstance(found, type):
        shown = {f.name: printable_fields(getattr(found, f.name)) for f in fields(found)}
        found = replace(found, **shown)
    return found


def markdown(text: str) -> str:
    """Return the text on one line, without anything that Markdown or HTML takes for markup."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(text.split("\n"))))


def markdown_code(text: str) -> str:
    """Return the text as a code span on one line; no backtick in it ends the span."""
    line = printable(" ".join(text.split("\n")))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def csv_cell(value: Any) -> Any:
    """Return a CSV cell: printable, and no text that a spreadsheet takes for a formula."""
    if not isinstance(value, str):
        return value
    try:
        float(value)
    except ValueError:
        is_formula = value.startswith(("=", "+", "-", "@", "\t", "\r"))
        return printable(f"'{value}" if is_formula else value)
    return value

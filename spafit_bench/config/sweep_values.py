"""The values that a sweep's file gives to a setting: lists, ranges, one for all or cell by cell.

    [64, 128]                                    a list
    0-4                                          whole numbers, both ends counted
    { from: 8, to: 64, step: 8 }                 whole numbers or fractions, both ends counted
    { from: 1.0e-5, to: 1.0e-3, num: 5 }         so many, evenly spaced
    { from: 1.0e-5, to: 1.0e-3, num: 5, spacing: log }
    { all: [1.0e-5], lora: [1.0e-4], rte: [2.0e-5], rte/lora: [2.0e-4] }

In the last form the most exact name counts: task/method, then method, then task, then `all`.
Spaced values are rounded to three significant digits: they are looked at, and part of names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from spafit_bench.base.errors import UserError, nearest

Cell = tuple[str, str]
"""A task and a method."""
Values = Mapping[Cell, tuple[Any, ...]]

ALL = "all"
_MOST = 10_000
_FORMS = (
    "give a list, a range like 0-4, {from: 1, to: 9, step: 2}, or "
    "{from: 1.0e-5, to: 1.0e-3, num: 5, spacing: log}"
)


@dataclass(frozen=True)
class Cells:
    """What values are given for."""

    tasks: Sequence[str]
    methods: Sequence[str]

    def values(
        self, given: Any, where: str, read: Callable[[Any, str], tuple[Any, ...]] | None = None
    ) -> Values:
        """Read values given for all cells, or cell by cell.

        Args:
            given: as YAML reads it.
            where: named in messages.
            read: reads the values of one cell; `value_list` if not given.

        Raises:
            UserError: none of the forms, a name that is no cell's, or a cell without values.
        """
        read = read or value_list
        if not isinstance(given, dict) or "from" in given:
            every = read(given, where)
            return {(task, method): every for task in self.tasks for method in self.methods}
        names = self._names()
        for name in given:
            if name not in names:
                raise UserError(f"{where}: {name!r} is not in this sweep: {nearest(name, names)}")
        lists = {name: read(values, f"{where}.{name}") for name, values in given.items()}
        return {
            (task, method): _most_exact(lists, task, method, where)
            for task in self.tasks
            for method in self.methods
        }

    def _names(self) -> list[str]:
        both = [f"{task}/{method}" for task in self.tasks for method in self.methods]
        return [ALL, *self.methods, *self.tasks, *both]


def _most_exact(lists: Mapping[str, Any], task: str, method: str, where: str) -> tuple[Any, ...]:
    for name in (f"{task}/{method}", method, task, ALL):
        if name in lists:
            return lists[name]
    raise UserError(
        f"{where}: no values for {task}/{method}; add them, or default values under `all`"
    )


def value_list(given: Any, where: str) -> tuple[Any, ...]:
    """Read a list or a range.

    Raises:
        UserError: neither.
    """
    if isinstance(given, list) and given:
        return tuple(given)
    if isinstance(given, str) and (match := re.fullmatch(r"(\d{1,9})-(\d{1,9})", given)):
        given = {"from": int(match[1]), "to": int(match[2]), "step": 1}
    if isinstance(given, dict) and {"from", "to"} <= set(given):
        numbers = {key: _number(value) for key, value in given.items() if key != "spacing"}
        if None not in numbers.values():
            return _span(numbers, given.get("spacing"), where)
    raise UserError(f"{where}: {_FORMS}")


def _number(value: Any) -> Any:
    """Return a finite number or None; YAML reads 1e-5, without a point, as text."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    sound = isinstance(value, int | float) and not isinstance(value, bool)
    return value if sound and math.isfinite(value) else None


def _span(given: Mapping[str, Any], spacing: Any, where: str) -> tuple[Any, ...]:
    first, last, rest = given["from"], given["to"], set(given) - {"from", "to"}
    if rest == {"step"} and spacing is None and given["step"] > 0 and first <= last:
        return _stepped(first, last, given["step"], where)
    num, spacing = given.get("num"), "linear" if spacing is None else spacing
    sound = rest == {"num"} and spacing in ("linear", "log")
    if not sound or not isinstance(num, int) or not 2 <= num <= _MOST:
        raise UserError(f"{where}: {_FORMS}")
    if spacing == "log" and not (first > 0 and last > 0):
        raise UserError(f"{where}: spacing: log needs from and to above 0")
    shares = [n / (num - 1) for n in range(num)]
    if spacing == "log":
        exact = [first * (last / first) ** share for share in shares]
    else:
        exact = [first + (last - first) * share for share in shares]
    return tuple(dict.fromkeys(float(f"{value:.3g}") for value in exact))


def _stepped(first: float, last: float, step: float, where: str) -> tuple[Any, ...]:
    count = math.floor((last - first) / step + 1e-9) + 1
    if count > _MOST:
        raise UserError(f"{where}: the range has {count:,} values; at most {_MOST:,} are allowed")
    if all(isinstance(value, int) for value in (first, last, step)):
        return tuple(first + n * step for n in range(count))
    return tuple(float(f"{first + n * step:.12g}") for n in range(count))

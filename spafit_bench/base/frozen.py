"""The base of typed values that cannot change: settings, records, events."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationError

from spafit_bench.base.errors import nearest


class Frozen(BaseModel):
    """A typed value that cannot change and has no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


def first_problem(error: ValidationError, known: Iterable[str] = ()) -> tuple[str, str]:
    """Return the dotted key of the first problem and a sentence about it.

    Args:
        error: of any model.
        known: keys that exist, to suggest one for an unknown key.
    """
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "missing":
        return key, f"{key!r} is missing"
    if first["type"] == "extra_forbidden":
        return key, f"unknown key {key!r}" + (f": {nearest(key, known)}" if known else "")
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return key, f"{key} = {first.get('input')!r:.80}: {message}" if key else message

"""Every key of a configuration file and of a sweep, read from the types that check them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from spafit_bench.config.run_config import RunConfig, section_of
from spafit_bench.config.sweep import CHOOSE_KEYS, SWEEP_KEYS

_BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
}
_KINDS = {"integer": "whole number", "number": "number", "boolean": "true, false"}


@dataclass(frozen=True)
class Key:
    """One key."""

    name: str
    """With dots, as `--set` takes it."""
    values: str
    default: str
    """Empty if there is none, or if the shipped defaults decide by method and task."""
    meaning: str


def configuration_keys() -> list[Key]:
    """Return every setting of a run, in the order of the types."""
    schema = RunConfig.model_json_schema()
    return list(_keys(RunConfig, schema, schema["$defs"]))


def sweep_keys() -> list[Key]:
    """Return every key of a sweep's file."""
    every = SWEEP_KEYS | {f"choose.{key}": text for key, text in CHOOSE_KEYS.items()}
    return [Key(key, "", "", meaning) for key, meaning in every.items()]


def _keys(
    model: type[BaseModel], schema: dict[str, Any], definitions: dict[str, Any], path: str = ""
) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            yield from _keys(section, definitions[section.__name__], definitions, f"{path}{name}.")
            continue
        default = "" if field.is_required() or field.default is None else str(field.default)
        if isinstance(field.default, bool):
            default = default.lower()
        meaning = " ".join((field.description or "").split())
        yield Key(f"{path}{name}", _values(schema["properties"][name]), default, meaning)


def _values(schema: dict[str, Any]) -> str:
    """Describe in words what a JSON schema accepts."""
    if "anyOf" in schema:
        return " or ".join(_values(part) for part in schema["anyOf"] if part != {"type": "null"})
    if "enum" in schema:
        return ", ".join(schema["enum"])
    limits = [
        f"{word} {schema[key]:,}"
        for key, word in _BOUNDS.items()
        if key in schema and schema[key] < 2**31
    ]
    return " ".join([_KINDS.get(schema["type"], "text"), *limits])

"""Nested settings: how one source overrides another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_settings(
    into: dict[str, Any],
    settings: Mapping[str, Any],
    sources: dict[str, str],
    where: str,
    path: str = "",
) -> None:
    """Merge settings into others, section by section, and note where each value is from.

    Args:
        into: changed in place; nothing of `settings` is shared with it.
        settings: override what is there.
        sources: dotted key -> where its value is from; changed in place.
        where: `settings` are from.
        path: of this section, ending in a dot; empty for all.
    """
    if path == "train." and "batch_size" in settings:
        into.pop("batch_tokens", None)  # a batch is given in one of the two
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge_settings(into[key], value, sources, where, f"{path}{key}.")
            continue
        into[key] = _copy(value)
        for leaf in _leaves(value, f"{path}{key}"):
            sources[leaf] = where


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _leaves(value: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [path]
    return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}")]

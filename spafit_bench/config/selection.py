"""From what a user asked for to runs that can start."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spafit_bench.base.errors import UserError, known_name
from spafit_bench.config.run_config import (
    RunConfig,
    SettingsSource,
    check_method_sections,
    load_sources,
    resolve,
)
from spafit_bench.data.custom_tasks import shipped_tasks
from spafit_bench.data.tasks import TASKS
from spafit_bench.methods.method import known_method, method_names


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """The flags of `run`, unresolved."""

    task: str | None = None
    method: str | None = None
    seed: str | None = None
    preset: str | None = None
    config: Path | None = None
    assignments: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)

    def sources(self) -> tuple[SettingsSource, ...]:
        """Collect every source of settings.

        Raises:
            UserError: a batch given in examples and in tokens, or what `load_sources` refuses.
        """
        if {"batch_size", "batch_tokens"} <= self.flags.get("train", {}).keys():
            raise UserError("--batch-size and --batch-tokens: a batch is given in one of the two")
        return load_sources(
            preset=self.preset,
            config=self.config,
            assignments=self.assignments,
            flags=self.flags,
        )


def run_configs(request: RunRequest) -> list[RunConfig]:
    """Resolve tasks x methods x seeds; runs of one task stand together.

    Raises:
        UserError: a wrong name or value, or LoRA settings where no method has LoRA.
    """
    sources = request.sources()
    tasks = _names("task", request.task or _named(sources, "task"), tuple(TASKS))
    methods = _names("method", request.method or _named(sources, "method"), method_names())
    set_ = [source for source in sources if source.where.startswith("--set ")]
    if request.method and (other := _named(set_, "method")):
        raise UserError(f"--method {request.method}, but --set method={other}: name it once")
    check_method_sections(sources, methods)
    seeds = parse_seeds(request.seed or _named(sources, "seed") or "0")
    configs = [
        resolve(sources, task=task, method=method, seed=seed)
        for task in tasks
        for method in methods
        for seed in seeds
    ]
    check_lora_settings(configs)
    return configs


def _names(kind: str, text: str | None, every: Sequence[str]) -> list[str]:
    if text is None:
        raise UserError(f"--{kind} is missing: give one of {', '.join(every)}, or all")
    names = list(every) if text == "all" else split_list(text)
    if not names:
        raise UserError(f"--{kind} {text!r} names nothing")
    return list(dict.fromkeys(known(kind, name) for name in names))


def known(kind: str, name: str) -> str:
    """Return the name of a task or method as the package writes it: `SST-2` means `sst2`."""
    return known_method(name) if kind == "method" else known_name(name, (*TASKS, *shipped_tasks()))


def split_list(text: str) -> list[str]:
    """Split at commas that are not inside parentheses."""
    return [item.strip() for item in re.split(r",(?![^()]*\))", text) if item.strip()]


def parse_seeds(text: str) -> list[int]:
    """Read `0`, `0,1,2` or `0-4`.

    Raises:
        UserError: not a list of numbers.
    """
    seeds: list[int] = []
    for item in split_list(text):
        match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", item)
        if not match:
            raise UserError(f"--seed {text!r}: write a number, a comma list, or a range like 0-4")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first > 10_000:
            raise UserError(
                f"--seed {text!r}: the range has {last - first + 1:,} seeds; at most 10,001"
            )
        seeds += range(first, last + 1)
    if not seeds:
        raise UserError(f"--seed {text!r}: this names no seed; write 0, 0,2 or 0-4")
    return list(dict.fromkeys(seeds))


def _named(sources: Sequence[SettingsSource], key: str) -> str | None:
    """Return the task, method or seed that a configuration file names, if any."""
    found = None
    for source in sources:
        value = source.body.get(key)
        if isinstance(value, dict):
            value = value.get("name")
        if isinstance(value, list):
            value = ",".join(str(item) for item in value)
        found = found if value is None else str(value)
    return found


def check_lora_settings(configs: Sequence[RunConfig]) -> None:
    """Refuse LoRA settings that would change nothing: a silent no-op looks like a result.

    Raises:
        UserError: one is set, and no run has LoRA.
    """
    keys = [
        key
        for key in ("rank", "alpha", "dropout", "rslora", "dora", "alpha_per_rank")
        if any(getattr(config.method, key) is not None for config in configs)
    ]
    if keys and not any(config.resolved_method().loras for config in configs):
        names = ", ".join(dict.fromkeys(config.method.name for config in configs))
        raise UserError(f"method.{keys[0]} has no effect: {names} has no LoRA")

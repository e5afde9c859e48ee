"""A matrix of runs from one YAML file: tasks x methods x seeds x any settings.

    tasks: [mrpc, rte]            # or all
    methods: [full, spafit]       # or all; names, one-line forms, YAML files
    seeds: 0-4                    # or for some cells: { all: 0-4, full: 0-2 }
    preset: smoke                 # optional
    settings:                     # as in a configuration file, with tasks: and methods: sections
      head: { pooler: full }
    grid:                         # every combination; the forms of values are in sweep_values.py
      train.max_length: [64, 128]
      method.rank: { from: 8, to: 64, step: 8 }
      train.learning_rate: { all: [2e-5], spafit: [1e-4, 3e-4], rte/spafit: [1e-3] }
    choose:                       # one value for each task x method (and grid point), not a column
      key: train.learning_rate
      values: { full: [1e-5, 3e-5], spafit: [1e-4, 3e-4] }
      holdout: 0.1                # share of train that the values are judged on; dev is not touched
      seeds: 0

`choose` over several settings tries every combination of their values:

    choose:
      keys: { train.learning_rate: [1e-4, 3e-4], train.epochs: { all: [3], rte: [10, 20] } }

A chosen setting is the one with the best mean score on the held-out slice, over the seeds of
`choose`; among equals the first listed. A collapsed or failed run cannot be chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.base.yaml_files import config_folder, read_mapping
from spafit_bench.config.run_config import (
    RunConfig,
    SettingsSource,
    assignment,
    check_method_sections,
    check_settings,
    chosen_by,
    load_sources,
    resolve,
)
from spafit_bench.config.selection import check_lora_settings, known, parse_seeds, split_list
from spafit_bench.config.sweep_values import Cells, Values
from spafit_bench.data.custom_tasks import find_task
from spafit_bench.data.tasks import TASKS
from spafit_bench.methods.method import get_method, method_names

SWEEP_KEYS = {
    "description": "One line for `list sweeps`.",
    "tasks": "A list of tasks, or all.",
    "methods": "A list of methods (names, one-line forms, YAML files), or all.",
    "seeds": "0, [0, 1] or 0-4; or for some cells: { all: 0-4, full: 0-2 }. Without it: 0.",
    "preset": "A preset such as smoke, below `settings`.",
    "settings": "Settings as in a configuration file, with tasks: and methods: sections.",
    "grid": "Settings and their values; every combination is run and reported.",
    "choose": "Settings of which one combination a cell is chosen on held-out training rows.",
}
"""Key of a sweep's file -> its meaning."""
CHOOSE_KEYS = {
    "key": "The setting to choose, with `values`.",
    "values": "Its values.",
    "keys": "Several settings and their values, in place of `key` and `values`.",
    "holdout": "Share of train that the values are judged on. Without it: 0.1.",
    "seeds": "Seeds of the trials. Without it: 0.",
}
"""Key of `choose` -> its meaning."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Settings chosen together on a held-out slice of train."""

    values: Mapping[str, Values]
    """Setting -> its values."""
    holdout: float
    seeds: tuple[int, ...]

    def candidates(self, group: SweepCell) -> list[Any]:
        """Return what a cell can choose from: values of one setting, or combinations of several."""
        axes = [values[group.task, group.method] for values in self.values.values()]
        return list(axes[0]) if len(axes) == 1 else list(itertools.product(*axes))

    def settings(self, candidate: Any) -> dict[str, Any]:
        """Return the settings that a candidate stands for."""
        parts = (candidate,) if len(self.values) == 1 else candidate
        return dict(zip(self.values, parts, strict=True))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A matrix of runs."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: Values
    sources: tuple[SettingsSource, ...]
    grid: Mapping[str, Values]
    choice: Choice | None
    shard: tuple[int, int] = (1, 1)
    """This part, counted from 1, and the number of parts."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Settings that differ between the runs of one task, method and seed."""
        return (*self.grid, *(self.choice.values if self.choice else ()))


@dataclass(frozen=True)
class SweepCell:
    """One cell of the matrix at one point of the grid: the seeds that a score averages over."""

    task: str
    method: str
    settings: tuple[tuple[str, Any], ...]
    """Grid keys and their values."""


def sweep_names() -> list[str]:
    """Return the names of the shipped sweeps."""
    return sorted(file.stem for file in config_folder().glob("*.yaml") if file.stem != "defaults")


def sweep_path(name: str) -> Path:
    """Find a sweep file: a path, or the name of a shipped one such as `paper`.

    Raises:
        UserError: neither.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        shipped = config_folder() / path
        return shipped if not path.exists() and shipped.exists() else path
    if name not in sweep_names():
        raise UserError(f"no sweep {name!r}: {nearest(name, sweep_names())}, or give a YAML file")
    return config_folder() / f"{name}.yaml"


def read_sweep(path: Path, flags: Mapping[str, Any], assignments: Sequence[str] = ()) -> Sweep:
    """Read and check a sweep.

    Args:
        path: the YAML file.
        flags: settings from the command line, which override the file's.
        assignments: `key=value` texts of `--set`, which override the file's settings, too.

    Raises:
        UserError: unreadable, an unknown key, or a value that cannot be.
    """
    body = read_mapping(path)
    for key in body:
        if key not in SWEEP_KEYS:
            raise UserError(f"{path}: unknown key {key!r}: {nearest(str(key), SWEEP_KEYS)}")
    tasks = _names(body.get("tasks"), "tasks", tuple(TASKS), path)
    methods = _names(body.get("methods"), "methods", method_names(), path)
    for task in tasks:
        find_task(task)
    for method in methods:
        get_method(method)
    settings = body.get("settings") or {}
    check_settings(settings, f"{path}, settings")
    _check_chosen_elsewhere(settings, f"{path}, settings")
    sources = load_sources(
        preset=body.get("preset"), config=None, assignments=assignments, flags=flags
    )
    last = len(sources) - len(assignments) - 1
    sources = (*sources[:last], SettingsSource(f"{path}, settings", settings), *sources[last:])
    check_method_sections(sources, methods)
    cells = Cells(tasks, methods)
    grid = body.get("grid") or {}
    if not isinstance(grid, dict) or not all(isinstance(key, str) for key in grid):
        raise UserError(f"{path}: grid must be a mapping from settings to values")
    _check_chosen_elsewhere(grid, f"{path}, grid")
    sweep = Sweep(
        tasks=tasks,
        methods=methods,
        seeds=cells.values(body.get("seeds", 0), f"{path}, seeds", _seeds),
        sources=sources,
        grid={key: cells.values(value, f"{path}, grid.{key}") for key, value in grid.items()},
        choice=_choice(body.get("choose"), cells, path),
    )
    _check_choice(sweep, path)
    _check_overrides(sweep, flags, assignments)
    check_lora_settings([_config(sweep, group, 0, {}) for group in _every_group(sweep)])
    return sweep


def _check_overrides(sweep: Sweep, flags: Mapping[str, Any], assignments: Sequence[str]) -> None:
    """Refuse a setting from the command line that the sweep itself goes through values of."""
    for text in assignments:
        key, _, value = text.partition("=")
        _check_chosen_elsewhere({key.strip(): value}, f"--set {text}")
        if key.strip() in sweep.keys:
            raise UserError(f"--set {text}: the sweep itself goes through values of {key.strip()}")
    for key in sweep.keys:
        if (flag := _given(flags, key)) is not None:
            raise UserError(
                f"{key} = {flag} is given, and the sweep itself goes through its values"
            )


def _given(settings: Any, key: str) -> Any | None:
    """Look a dotted key up; None where it is not set."""
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def narrowed(sweep: Sweep, tasks: str | None, methods: str | None, seeds: str | None) -> Sweep:
    """Keep part of a matrix, or give it other seeds; None keeps all.

    Raises:
        UserError: a task or method that the sweep does not have, or no seeds.
    """

    def part(given: str | None, every: tuple[str, ...], flag: str) -> tuple[str, ...]:
        names = every if given in (None, "all") else tuple(split_list(str(given)))
        names = tuple(known(flag.removeprefix("--"), name) for name in names)
        for name in names:
            if name not in every:
                raise UserError(f"{flag} {name}: not in this sweep: {nearest(name, every)}")
        return tuple(name for name in every if name in names)

    sweep = replace(
        sweep,
        tasks=part(tasks, sweep.tasks, "--task"),
        methods=part(methods, sweep.methods, "--method"),
    )
    if seeds is None:
        return sweep
    return replace(sweep, seeds=dict.fromkeys(sweep.seeds, tuple(parse_seeds(seeds))))


def _check_chosen_elsewhere(settings: Mapping[Any, Any], where: str) -> None:
    """Refuse what would be without effect: tasks, methods and seeds have keys of their own."""
    for key, value in settings.items():
        first, _, rest = str(key).partition(".")
        if chosen := chosen_by(first, {rest: value} if rest else value):
            raise UserError(f"{where}: {key!r} is not set here; give `{chosen}s:` in the sweep")


def _check_choice(sweep: Sweep, path: Path) -> None:
    """Refuse what cannot be told apart: choices are looked up by their values."""
    if sweep.choice is None:
        return
    for key in sweep.choice.values:
        if key in sweep.grid:
            raise UserError(f"{path}: {key} is in grid and in choose; leave one out")
    given = {f"grid.{key}": values for key, values in sweep.grid.items()}
    chosen = {f"choose, {key}": values for key, values in sweep.choice.values.items()}
    for where, values in (given | chosen).items():
        for value in itertools.chain(*values.values()):
            if isinstance(value, list | dict) or (value is None and where not in given):
                raise UserError(
                    f"{path}, {where}: {value!r} cannot be a value in a sweep with choose"
                )


def parse_shard(text: str) -> tuple[int, int]:
    """Read `i/n`, i from 1.

    Raises:
        UserError: not of that form.
    """
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise UserError(f"--shard {text}: write i/n with 1 <= i <= n, e.g. 1/4")
    return int(first), int(count)


def _names(value: Any, key: str, every: Sequence[str], path: Path) -> tuple[str, ...]:
    if value is None:
        raise UserError(f"{path}: {key!r} is missing: a list, or all")
    names = value if isinstance(value, list) else split_list(str(value))
    if names == ["all"]:
        return tuple(every)
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {key!r} must be a list of names, not {value!r}")
    return tuple(dict.fromkeys(known(key.removesuffix("s"), name) for name in names))


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        return tuple(parse_seeds(text))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _choice(body: Any, cells: Cells, path: Path) -> Choice | None:
    if body is None:
        return None
    where = f"{path}, choose"
    if not isinstance(body, dict) or set(body) - set(CHOOSE_KEYS):
        raise UserError(f"{where}: a mapping with some of {', '.join(CHOOSE_KEYS)}")
    if ("key" in body) == ("keys" in body) or ("keys" in body and "values" in body):
        raise UserError(
            f"{where}: give key: with values:, or keys: as a mapping from settings to values"
        )
    several = body.get("keys", {str(body.get("key")): body.get("values")})
    if not isinstance(several, dict) or not several:
        raise UserError(f"{where}.keys must be a mapping from settings to values")
    share = body.get("holdout", 0.1)
    if not isinstance(share, float) or not 0 < share < 1:
        raise UserError(f"{where}.holdout: a share of train between 0 and 1, not {share!r}")
    _check_chosen_elsewhere(dict.fromkeys(several), where)
    place = f"{where}.keys." if "keys" in body else f"{where}.values, "
    return Choice(
        values={str(key): cells.values(values, f"{place}{key}") for key, values in several.items()},
        holdout=share,
        seeds=_seeds(body.get("seeds", 0), f"{where}.seeds"),
    )


def groups(sweep: Sweep) -> list[SweepCell]:
    """Return every cell of this shard at every point of the grid; a task's stand together.

    Shard `i/n` has every n-th cell: a cell's trials and its reported runs stay together, so that no
    shard waits for another.
    """
    first, count = sweep.shard
    return list(_every_group(sweep))[first - 1 :: count]


def _every_group(sweep: Sweep) -> Iterator[SweepCell]:
    for task in sweep.tasks:
        for method in sweep.methods:
            axes = [
                [(key, value) for value in values[task, method]]
                for key, values in sweep.grid.items()
            ]
            for point in itertools.product(*axes):
                yield SweepCell(task, method, tuple(point))


def trial_configs(sweep: Sweep) -> dict[SweepCell, dict[Any, list[RunConfig]]]:
    """Return the runs that a choice needs: group -> value -> one per seed of `choose`."""
    if sweep.choice is None:
        return {}
    choice = sweep.choice
    held_out = {"holdout": choice.holdout, "save_weights": "none"}
    return {
        group: {
            value: [
                _config(sweep, group, seed, choice.settings(value) | held_out)
                for seed in choice.seeds
            ]
            for value in choice.candidates(group)
        }
        for group in groups(sweep)
    }


def final_configs(sweep: Sweep, chosen: Mapping[SweepCell, Any]) -> list[RunConfig]:
    """Return the runs whose scores are reported.

    Args:
        sweep: the matrix.
        chosen: the value chosen for each group; a group without a choice is left out.
    """
    configs = []
    for group in groups(sweep):
        settings: dict[str, Any] = {}
        if sweep.choice is not None:
            if chosen.get(group) is None:
                continue
            settings = sweep.choice.settings(chosen[group])
        configs += [
            _config(sweep, group, seed, settings) for seed in sweep.seeds[group.task, group.method]
        ]
    return configs


def _config(sweep: Sweep, group: SweepCell, seed: int, settings: Mapping[str, Any]) -> RunConfig:
    own = [
        assignment(key, value, f"the sweep's {key}")
        for key, value in (*group.settings, *settings.items())
    ]
    sources = (*sweep.sources[:-1], *own, sweep.sources[-1])
    return resolve(sources, task=group.task, method=group.method, seed=seed)

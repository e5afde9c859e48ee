"""Which runs may share a table, a row and a mean: those that differ in nothing but the seed.

A group fills one table: one set of model weights, one data set per task. A setting is one row: a
method with the configuration that tells it from other runs of the same method. Its runs on one
task are one per seed, alike in everything else.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import PurePath
from typing import Any

from spafit_bench.base.errors import UserError
from spafit_bench.config.run_config import WITHOUT_EFFECT
from spafit_bench.data.tasks import TASKS, Task
from spafit_bench.methods.treatments import parse_treatment
from spafit_bench.results.record import RunRecord

OFFICIAL = "official GLUE"

Scalar = str | int | float | bool | None
TaskRuns = Mapping[str, tuple[RunRecord, ...]]
"""Task -> its runs, one per seed, in order of the seeds."""

_IGNORED = WITHOUT_EFFECT | {"task", "seed"}
_RESOLVED = ("precision", "engine", "select", "limit")
"""Taken from the record, where `auto` has become what was used."""
_IDENTITY = frozenset({"method", "head", "precision", "engine", "select", "cache_prefix"})
"""What makes a method what it is. Anything else (learning rate, epochs, ...) may be a recipe that
follows the task, and parts rows only where one task has several."""

_SPEC = "method.spec"
_RATIO = "method.alpha_per_rank"
ABBREVIATIONS = {"learning_rate": "lr"}
_UNSET = "unset"
_LONGEST_LABEL = 24
_LONGEST_SLUG = 100


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of a table."""

    method: str
    difference: str = ""
    """What tells this row from the method's other rows, such as `lr 1e-3`; empty if alone."""

    @property
    def label(self) -> str:
        """Method and difference, for people."""
        return f"{self.method} · {self.difference}" if self.difference else self.method


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """The runs of one table."""

    model: str
    data: str
    rows: Mapping[Setting, TaskRuns]
    """Most trainable parameters first."""
    left_out: tuple[RunRecord, ...]
    """Runs that ended without a result."""
    repeated: tuple[RunRecord, ...]
    """Runs of a seed that a later run of the same setting repeats."""
    varying: Mapping[str, tuple[str, ...]]
    """Method -> the keys of the configuration that part its runs into rows."""
    shorts: Mapping[str, str]
    """Label too long for a column -> its numbered short form, the same in every table."""

    @cached_property
    def records(self) -> tuple[RunRecord, ...]:
        """Every run that counts."""
        return tuple(run for cells in self.rows.values() for runs in cells.values() for run in runs)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks of its runs."""
        return tasks_of(self.records)

    def short(self, label: str) -> str:
        """Return a label as the tables print it."""
        return self.shorts.get(label, label)

    def setting_of(self, run: RunRecord) -> Setting:
        """Return the row that a run belongs to; runs without a result belong to one, too."""
        keys = self.varying.get(run.method, ())
        return Setting(method=run.method, difference=_difference(run, keys))


def tasks_of(runs: Iterable[RunRecord]) -> tuple[Task, ...]:
    """List the tasks of runs: GLUE's in GLUE's order, then others by name."""
    found = {run.task: run for run in runs}
    tasks = [found[name].task_facts for name in sorted(found)]
    order = {name: place for place, name in enumerate(TASKS)}
    return tuple(sorted(tasks, key=lambda task: order.get(task.name, len(order))))


def short_labels(labels: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """Add a numbered short form, such as `full [2]`, of each label too long for a column."""
    shorts = dict(known)
    for label in labels:
        if len(label) > _LONGEST_LABEL and label not in shorts:
            method = label.partition(" · ")[0]
            head = method if len(method) <= _LONGEST_LABEL - 4 else "custom"
            shorts[label] = f"{head} [{len(shorts) + 1}]"
    return shorts


def matching_rows(group: RunGroup, name: str) -> list[Setting]:
    """Find rows by a name that tables print.

    That is a label (the dot may be left out), its short form, or a method: all its rows.
    """
    wanted = plain(name)
    exact = [
        row for row in group.rows if wanted in (plain(row.label), plain(group.short(row.label)))
    ]
    return exact or [row for row in group.rows if plain(row.method) == wanted]


def plain(label: str) -> str:
    return " ".join(label.replace("·", " ").casefold().split())


def group_runs(records: Sequence[RunRecord]) -> tuple[RunGroup, ...]:
    """Part finished runs into groups; the largest group comes first.

    Two data sets of one task are never in one group, nor are two sets of weights. Different tasks
    may have data of different origin, as long as no task has two. Runs on held-out train only
    served a choice and are in no group.
    """
    groups = _groups([record for record in records if record.holdout is None])
    shorts = short_labels((row.label for group in groups for row in group.rows), {})
    return tuple(replace(group, shorts=shorts) for group in groups)


def group_trials(records: Sequence[RunRecord], groups: Sequence[RunGroup]) -> tuple[RunGroup, ...]:
    """Part the runs on held-out train in the same way, those without a result among them.

    Short forms of labels go on from those of `groups`, the groups of the other runs.
    """
    trials = _groups([r for r in records if r.holdout is not None], ("done", "diverged", "failed"))
    methods = (row.method for group in trials for row in group.rows)  # their tables' labels
    shorts = short_labels(methods, groups[0].shorts if groups else {})
    return tuple(replace(group, shorts=shorts) for group in trials)


def _groups(records: Sequence[RunRecord], shown: Sequence[str] = ("done",)) -> tuple[RunGroup, ...]:
    done = [record for record in records if record.status in shown]
    by_weights: dict[str, list[RunRecord]] = defaultdict(list)
    for record in done:
        by_weights[record.weights.weights_sha256].append(record)
    bundles = [bundle for runs in by_weights.values() for bundle in _bundles(runs)]
    bundles.sort(key=lambda runs: (-len(runs), runs[0].model, runs[0].data.source))
    homeless = [record for record in records if record.status not in shown]
    left_out: dict[int, list[RunRecord]] = defaultdict(list)
    for record in homeless if bundles else ():
        left_out[_home(record, bundles)].append(record)
    names = _names(bundles)
    return tuple(_group(runs, names[index], left_out[index]) for index, runs in enumerate(bundles))


def _bundles(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Pack runs of the same weights into as few bundles as have one data set per task.

    Data sets of one origin stay together: mini-GLUE beside one official task makes two bundles,
    not a mixture.
    """
    editions: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for run in runs:
        editions[run.task, run.data.fingerprint].append(run)
    newest_first = sorted(
        editions.items(), key=lambda item: max(run.started_at for run in item[1]), reverse=True
    )
    seen: dict[tuple[str, str], int] = defaultdict(int)
    origins: dict[tuple[str, int], dict[str, list[RunRecord]]] = defaultdict(dict)
    for (task, _), edition in newest_first:
        origin = _origin(edition)
        origins[origin, seen[origin, task]][task] = edition
        seen[origin, task] += 1
    bundles: list[dict[str, list[RunRecord]]] = []
    for _, tasks in sorted(origins.items(), key=lambda item: (-len(item[1]), item[0])):
        room = next((bundle for bundle in bundles if not bundle.keys() & tasks.keys()), None)
        if room is None:
            bundles.append(room := {})
        room.update(tasks)
    return [[run for edition in bundle.values() for run in edition] for bundle in bundles]


def _origin(runs: Iterable[RunRecord]) -> str:
    """Name where data came from; the official data is the same wherever it was read."""
    return min(
        OFFICIAL if run.official_split and run.task in TASKS else run.data.source for run in runs
    )


def _home(record: RunRecord, bundles: Sequence[Sequence[RunRecord]]) -> int:
    """Find the bundle whose note should count a run that has no result."""

    def likeness(runs: Sequence[RunRecord]) -> tuple[bool, bool]:
        alike = [r for r in runs if r.weights.weights_sha256 == record.weights.weights_sha256]
        same_data = any(
            (run.task, run.data.fingerprint) == (record.task, record.data.fingerprint)
            or run.data.source == record.data.source
            for run in alike
        )
        return bool(alike), same_data

    return max(range(len(bundles)), key=lambda index: likeness(bundles[index]))


def _names(bundles: Sequence[Sequence[RunRecord]]) -> list[tuple[str, str]]:
    """Name model and data of each bundle, unlike those of any other; never a folder's path.

    They are unlike as parts of file names, too.
    """
    hashes: dict[str, set[str]] = defaultdict(set)
    for runs in bundles:
        hashes[slug(short_name(runs[0].model))].add(runs[0].weights.weights_sha256)
    names: list[tuple[str, str]] = []
    for runs in bundles:
        model = short_name(runs[0].model)
        if len(hashes[slug(model)]) > 1:
            model += f" ({runs[0].weights.weights_sha256[:8]})"
        data = " and ".join(sorted({short_name(_origin([run])) for run in runs}))
        edition = sum(
            name[0] == model and slug(name[1].split(", ")[0]) == slug(data) for name in names
        )
        names.append((model, f"{data}, edition {edition + 1}" if edition else data))
    return names


def slug(text: str) -> str:
    """Write a name as part of a file's name; one too long for that ends in a hash."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()
    if len(plain) <= _LONGEST_SLUG:
        return plain
    return (
        f"{plain[:_LONGEST_SLUG]}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"
    )


def short_name(name: str) -> str:
    """Cut a hub name or path to its last component."""
    return PurePath(name).name or name


def _group(
    runs: Sequence[RunRecord], name: tuple[str, str], left_out: Sequence[RunRecord]
) -> RunGroup:
    """Arrange runs in rows with one run per task and seed, the latest."""
    by_method: dict[str, list[RunRecord]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.started_at, run.run_id)):
        by_method[run.method].append(run)
    latest: dict[tuple[Setting, str, int], RunRecord] = {}
    repeated = []
    rank: dict[Setting, tuple[Any, ...]] = {}
    varying = {method: _varying_keys(of_method) for method, of_method in by_method.items()}
    for method, of_method in by_method.items():
        size = max(run.trainable_parameters for run in of_method)
        for run in of_method:
            setting = Setting(method=method, difference=_difference(run, varying[method]))
            if earlier := latest.get((setting, run.task, run.seed)):
                repeated.append(earlier)
            latest[setting, run.task, run.seed] = run
            values = all_facts(run)
            ordered = [_sort_key(values.get(key, _UNSET)) for key in varying[method]]
            rank[setting] = (-size, method, ordered)
    rows: dict[Setting, dict[str, tuple[RunRecord, ...]]] = {
        setting: {} for setting in sorted(rank, key=lambda setting: rank[setting])
    }
    for (setting, task, _), run in sorted(latest.items(), key=lambda item: item[0][2]):
        rows[setting][task] = (*rows[setting].get(task, ()), run)
    return RunGroup(
        model=name[0],
        data=name[1],
        rows=rows,
        left_out=tuple(left_out),
        repeated=tuple(repeated),
        varying=varying,
        shorts={},
    )


def _facts(run: RunRecord) -> dict[str, Scalar]:
    """List everything that can make two runs of one method on the same data differ, but seeds."""
    facts = {
        key: value
        for key, value in leaves(run.config)
        if value is not None  # as good as a key that older records do not have
        and key not in _IGNORED
        and key.rpartition(".")[2] not in _RESOLVED
    }
    machine = run.environment
    used = {"precision": machine.precision, "engine": machine.engine}
    absent = {"cache_prefix": False}  # in records from before there was this setting
    return absent | facts | used | {"select": run.select, "limit": run.train_limit}


def all_facts(run: RunRecord) -> dict[str, Scalar]:
    """List the facts, with what LoRA was in the run; a configuration may leave it to be solved."""
    return _facts(run) | _lora_facts(tuple(stratum.treatment for stratum in run.strata))


@cache
def _lora_facts(treatments: tuple[str, ...]) -> dict[str, Scalar]:
    """Say in settings of a method what LoRA is, if it is the same wherever it is."""
    try:
        parsed = [parse_treatment(text) for text in treatments]
    except UserError:  # of another version
        return {}
    loras = {replace(lora, matrices=()) for treatment in parsed for lora in treatment.loras}
    if len(loras) != 1:
        return {}
    (lora,) = loras
    fields = {f"method.{name}": value for name, value in asdict(lora).items()}
    return fields | {_RATIO: lora.alpha / lora.rank}


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    """Walk a nested configuration: dotted key, scalar."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        yield prefix, value
        return
    for key, inner in items:
        yield from leaves(inner, f"{prefix}.{key}" if prefix else str(key))


def _varying_keys(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Find the keys that some run sets and whose values part one method's runs into rows."""
    given = {key for run in runs for key in _facts(run)}
    facts = [(run.task, all_facts(run)) for run in runs]
    varying = []
    for key in sorted(given):
        everywhere = key.partition(".")[0] in _IDENTITY
        seen: dict[str, set[Scalar]] = defaultdict(set)
        for task, values in facts:
            seen["" if everywhere else task].add(values.get(key, _UNSET))
        if any(len(values) > 1 for values in seen.values()):
            varying.append(key)
    kept = [key for key in varying if not _restated(key, varying, facts)]
    if {"method.alpha", "method.rank", _RATIO} <= set(kept):
        kept.remove(_RATIO)
    return tuple(key for key in kept if key != _SPEC or not _explained(kept, facts))


def _restated(
    key: str, varying: Sequence[str], facts: Sequence[tuple[str, Mapping[str, Scalar]]]
) -> bool:
    """Whether a shorter key of the same name says the same of every run (`method.rank`)."""
    return any(
        len(other) < len(key)
        and other.rpartition(".")[2] == key.rpartition(".")[2]
        and all(values.get(other, _UNSET) == values.get(key, _UNSET) for _, values in facts)
        for other in varying
    )


def _explained(keys: Sequence[str], facts: Sequence[tuple[str, Mapping[str, Scalar]]]) -> bool:
    """Whether the other keys say all that the method written out in one line says."""
    specs: dict[tuple[Scalar, ...], set[Scalar]] = defaultdict(set)
    for _, values in facts:
        others = tuple(values.get(key, _UNSET) for key in keys if key != _SPEC)
        specs[others].add(values.get(_SPEC, _UNSET))
    return all(len(found) == 1 for found in specs.values())


def _difference(run: RunRecord, keys: Sequence[str]) -> str:
    facts = all_facts(run)
    return ", ".join(f"{_key_text(key)} {value_text(facts.get(key, _UNSET))}" for key in keys)


def _key_text(key: str) -> str:
    section, _, rest = key.partition(".")
    name = rest if rest and section in {"train", "method"} else key
    return ABBREVIATIONS.get(name, name.replace("_", " "))


def value_text(value: Scalar) -> str:
    """Write a value as a reader would: 1e-3 rather than 0.001."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    text = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if 0 < abs(value) < 0.01:
        mantissa, _, exponent = f"{value:e}".partition("e")
        short = f"{float(mantissa):g}e{int(exponent)}"
        text = short if float(short) == value else text
    return text


def _sort_key(value: Scalar) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return (not number, float(value) if isinstance(value, int | float) else 0.0, str(value))

"""Which runs a command is about: the filters that all commands share.

Rows and models are named as the tables print them: `full`, `full · lr 1e-3`, `full [2]`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields

from spafit_bench.analysis.tables.costs import machine_of
from spafit_bench.analysis.tables.settings import (
    ABBREVIATIONS,
    Scalar,
    all_facts,
    group_runs,
    group_trials,
    leaves,
    plain,
    short_name,
    value_text,
)
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.config.selection import split_list
from spafit_bench.results.record import Confusion, RunRecord
from spafit_bench.results.run_folder import read_rows
from spafit_bench.results.store import Store

_NEAR_MAJORITY = 0.2
"""Native scale. F1 of the other class is that much above what the majority class scores."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Filters of runs, named as their flags. A run must pass each that is given.

    The values of one filter are alternatives and may be comma lists, except those of `where`: each
    is one setting, and all must hold.
    """

    task: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    """Methods, or rows of the tables."""
    model: tuple[str, ...] = ()
    """Hub names, folders, or the last part of either."""
    seed: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    """Settings such as `train.learning_rate=1e-3`."""


def read_runs(store: Store, selection: Selection | None = None) -> list[RunRecord]:
    """Read the runs that pass every filter; older records are completed from their predictions.

    Raises:
        UserError: as `select`, or the results cannot be read.
    """
    records = select(store.records(), selection or Selection())
    return [_with_confusion(store, record) for record in records]


def _with_confusion(store: Store, run: RunRecord) -> RunRecord:
    """Count the predictions of a run that may have nearly collapsed, if its record does not.

    A model that predicts nearly one class scores near the majority class, so only such are read.
    """
    if run.confusion is not None or run.status != "done" or run.task_facts.is_regression:
        return run
    task = run.task_facts
    score, majority = task.score(run.metrics), task.score(run.majority)
    if score is None or majority is None or score > majority + _NEAR_MAJORITY:
        return run
    path = store.runs / run.run_id / "predictions.parquet"
    try:
        rows = read_rows(path, ("label", "prediction"), task.dev_splits)
    except UserError:
        return run  # `compare` and `show` say what is wrong with it
    if rows is None or rows[["label", "prediction"]].isna().any(axis=None):
        return run
    confusion = {}
    for split, part in rows.groupby("split"):
        classes = range(task.num_labels)
        counts = part.groupby(["label", "prediction"]).size()
        table = tuple(tuple(int(counts.get((a, b), 0)) for b in classes) for a in classes)
        confusion[str(split)] = Confusion.of(task.labels, table)
    return run.model_copy(update={"confusion": confusion})


def select(records: Sequence[RunRecord], selection: Selection) -> list[RunRecord]:
    """Return the runs that pass every filter.

    A row's name is looked up in the tables of the runs that the other filters leave, and then in
    those of all runs.

    Raises:
        UserError: a value that no run has, or filters that no run passes together.
    """
    kept = list(records)
    for flag in ("task", "seed", "status"):
        names = {run.run_id: {str(getattr(run, flag))} for run in records}
        kept = _named(kept, flag, getattr(selection, flag), names)
    for text in selection.where:
        kept = _with_setting(kept, records, text)
    if selection.model or selection.method:
        models, rows = _table_names(records)
        kept = _named(kept, "model", selection.model, models)
        kept = _named(kept, "method", selection.method, _table_names(kept)[1], rows)
    if records and not kept:
        given = [
            f"--{field.name} {value}"
            for field in fields(selection)
            for value in getattr(selection, field.name)
        ]
        raise UserError(f"no run passes {' '.join(given)}")
    return kept


Names = Mapping[str, Collection[str]]
"""Run -> its names."""


def _named(
    kept: Sequence[RunRecord], flag: str, values: Sequence[str], *known: Names
) -> list[RunRecord]:
    """Keep runs that have one of some names, in the first of `known` in which a run has it."""
    if not values:
        return list(kept)
    chosen: set[str] = set()
    for value in values:
        whole = _having(value, known)
        for name in [value] if whole else split_list(value):  # a row's own name may have commas
            found = whole or _having(name, known)
            if not found:
                there = {each for names in known[-1].values() for each in names}
                raise UserError(f"--{flag} {name}: no run has it; {nearest(name, there)}")
            chosen |= found
    return [run for run in kept if run.run_id in chosen]


def _having(name: str, known: Sequence[Names]) -> set[str]:
    """Return the runs of which this is a name."""
    for names in known:
        if found := {run for run, own in names.items() if plain(name) in map(plain, own)}:
            return found
    return set()


def _table_names(
    records: Sequence[RunRecord],
) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return what tables call each run's model, and its row."""
    models = {run.run_id: {run.model, short_name(run.model)} for run in records}
    rows = {run.run_id: {run.method} for run in records}
    groups = group_runs(records)
    for group in (*groups, *group_trials(records, groups)):
        for run in (*group.records, *group.repeated, *group.left_out):
            label = group.setting_of(run).label
            models[run.run_id].add(group.model)
            names = {name: group.short(name) for name in (label, run.method)}
            rows[run.run_id] |= names.keys() | names.values()
            rows[run.run_id] |= {f"{name} · {machine_of(run)}" for name in {label, names[label]}}
    return models, rows


def _with_setting(
    kept: Sequence[RunRecord], records: Sequence[RunRecord], text: str
) -> list[RunRecord]:
    key, equals, wanted = (part.strip() for part in text.partition("="))
    if not equals:
        raise UserError(
            f"--where {text}: write key=value, for example --where train.learning_rate=1e-3"
        )
    settings = {r.run_id: dict(leaves(r.config)) | all_facts(r) for r in records}
    known = {name for found in settings.values() for name in found}
    if key not in known:
        names = {short: name for name, short in ABBREVIATIONS.items()}
        ends = [name for name in known if name.rpartition(".")[2] == names.get(key, key)]
        if len(ends) != 1:
            raise UserError(f"--where {text}: no such setting; {nearest(key, known)}")
        key = ends[0]
    there = {value_text(found.get(key)) for found in settings.values()}
    if not any(_is(found.get(key), wanted) for found in settings.values()):
        listed = "there is " if len(there) == 1 else "there are "
        raise UserError(f"--where {text}: no run has it; {listed}{', '.join(sorted(there))}")
    return [run for run in kept if _is(settings[run.run_id].get(key), wanted)]


def _is(value: Scalar, text: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return value == float(text)
        except ValueError:
            return False
    return value_text(value).casefold() == text.casefold() or (value is None and text == "null")

"""What is compared: rows of one table, found by name, and the predictions of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spafit_bench.analysis.tables.settings import Group, Setting, matching_rows
from spafit_bench.base.errors import DamagedError, UserError, nearest
from spafit_bench.data.metrics import score
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_rows

_TOLERANCE = 1e-5
"""Largest gap between a recorded metric and the same from the kept predictions, native scale:
scores of regression tasks pass through 32-bit floats."""


@dataclass(frozen=True)
class Chosen:
    """Rows of one table."""

    group: Group
    rows: tuple[Setting, ...]
    notes: tuple[str, ...] = ()
    """What a reader must know of the choice."""


@dataclass(frozen=True)
class Predictions:
    """What a run said of each dev split."""

    labels: Mapping[str, np.ndarray]
    """Split -> (n,)."""
    predictions: Mapping[str, np.ndarray]
    """Split -> (n,)."""


class UnusablePredictionsError(Exception):
    """The predictions of a run are missing or damaged; the message says which, for people."""


def choose_rows(groups: Sequence[Group], names: Sequence[str]) -> tuple[Chosen, ...]:
    """Find the tables that have every named row.

    A name is a row's label as tables print it (the dot may be left out), or that of a method with a
    single row. A table in which a name stands for several rows is left out, and the notes say so.

    Raises:
        UserError: fewer than two rows; no table has them all; or a name stands for several rows.
    """
    if len(names) < 2:
        raise UserError(
            "compare needs two methods or more, as in `spafit-bench compare spafit lora`"
        )
    found, ambiguous = [], []
    for group in groups:
        matches = [matching_rows(group, name) for name in names]
        if all(len(rows) == 1 for rows in matches):
            found.append(Chosen(group, tuple(rows[0] for rows in matches)))
        elif all(matches):
            several = zip(names, matches, strict=True)
            ambiguous += [(group, name, rows) for name, rows in several if len(rows) > 1]
    if not found:
        raise _not_found(groups, names, ambiguous)
    for chosen in found:
        if len(set(chosen.rows)) < len(names):
            raise UserError(f"compare {' '.join(names)}: a method is named twice; name each once")
    skipped = tuple(
        f"Not compared: {group.model}, {group.data}, where {name!r} is {len(rows)} rows "
        f"({', '.join(repr(row.label) for row in rows)}); name one of them."
        for group, name, rows in ambiguous
    )
    first, *others = found
    return (replace(first, notes=skipped), *others)


def _not_found(
    groups: Sequence[Group],
    names: Sequence[str],
    ambiguous: Sequence[tuple[Group, str, Sequence[Setting]]],
) -> UserError:
    if ambiguous:
        _, name, rows = ambiguous[0]
        listed = "".join(f"\n  {row.label!r}" for row in rows)
        return UserError(f"{name!r} is {len(rows)} rows of the table; name one of them:{listed}")
    if not groups:
        return UserError(
            "no run has finished, so there is nothing to compare: make runs with "
            f"`spafit-bench run --task mrpc --method {','.join(names)} --seed 0,1,2`"
        )
    labels = sorted({row.label for group in groups for row in group.rows})
    for name in names:
        if not any(matching_rows(group, name) for group in groups):
            return UserError(f"no finished run of {name!r}: {nearest(name, labels)}")
    tables = "".join(
        f"\n  {group.model}, {group.data}: {', '.join(row.label for row in group.rows)}"
        for group in groups
    )
    return UserError(
        f"no table (same weights, same data) has all of {', '.join(names)}; the tables are:{tables}"
    )


def _read(path: Path, task: Task) -> Predictions:
    try:
        frame = read_rows(path, ("index", "label", "prediction"), task.dev_splits)
    except DamagedError:
        raise UnusablePredictionsError("predictions.parquet is damaged") from None
    if frame is None:
        raise UnusablePredictionsError("no predictions.parquet")
    labels, predictions = {}, {}
    for split in task.dev_splits:
        rows = frame[frame["split"] == split].sort_values("index")
        labels[split] = rows["label"].to_numpy(dtype=np.float64, na_value=np.nan)
        predictions[split] = rows["prediction"].to_numpy(dtype=np.float64, na_value=np.nan)
        whole = np.array_equal(rows["index"], np.arange(len(rows))) and len(rows) > 0
        if not whole or not np.isfinite([labels[split], predictions[split]]).all():
            raise UnusablePredictionsError(f"predictions.parquet lacks examples of {split}")
    return Predictions(labels, predictions)


def read_predictions(runs: Path, record: RunRecord, task: Task) -> Predictions:
    """Read a run's dev predictions and make sure that they are those its record scores.

    Args:
        runs: folder of the run folders.
        record: the run.
        task: its task.

    Raises:
        UnusablePredictionsError: missing, damaged, or of another run.
    """
    found = _read(runs / record.run_id / "predictions.parquet", task)
    for split in task.dev_splits:
        for metric in task.metrics:
            value = score(metric, found.predictions[split], found.labels[split])
            recorded = record.metrics.get(split, {}).get(metric)
            if recorded is None or abs(value - recorded) > _TOLERANCE:
                raise UnusablePredictionsError(
                    f"predictions.parquet gives {split} {metric} {value:.4f}, its record "
                    f"{'none' if recorded is None else f'{recorded:.4f}'}"
                )
    return found

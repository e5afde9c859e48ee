"""Which runs are submitted to the GLUE server, and what they predict; AX is of the MNLI model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from spafit_bench.analysis.glue_server import FILES, TEST_SETS, server_value, write_zip
from spafit_bench.analysis.tables.settings import Cells, Group, Setting, group_runs, short_name
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.data.tasks import TASKS, Task
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_rows
from spafit_bench.results.store import Store

SEED_RULE = "best dev score of each task, of equals the lowest"


@dataclass(frozen=True, kw_only=True)
class SubmitRequest:
    """Which runs to submit."""

    method: str
    seed: int | None = None
    """None takes each task's seed of best dev score."""
    model: str | None = None
    setting: str | None = None
    """Part of what tells one row of the method from another, such as `lr 1e-3`."""
    fill_majority: bool = False
    """Whether a missing file is filled with the majority class of the official dev set."""


@dataclass(frozen=True, kw_only=True)
class SubmittedFile:
    """One file of the zip."""

    name: str
    """The server's, without `.tsv`."""
    task: Task
    split: str
    run: RunRecord | None
    """None where the file is filled with a constant."""
    predictions: tuple[str, ...]
    """In the order of the test set, as the server takes them."""
    filled_because: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Say where the file is from, for programs."""
        run = self.run
        return {
            "file": f"{self.name}.tsv",
            "task": self.task.name,
            "split": self.split,
            "rows": len(self.predictions),
            "run_id": run and run.run_id,
            "seed": run and run.seed,
            "dev_score": run and self.task.score(run.metrics),
            "official_split": run and run.official_split,
            "train_limit": run and run.train_limit,
            "collapsed": run and run.collapsed,
            "filled_with": None if run else self.predictions[0],
            "filled_because": self.filled_because or None,
        }


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Every file of a zip."""

    label: str
    """Method and setting."""
    model: str
    data: str
    files: tuple[SubmittedFile, ...]

    @property
    def warnings(self) -> list[str]:
        """Say why the server's scores may not be what the reader thinks."""
        doubts = {
            "filled with the majority class, no model's prediction": [
                file.name for file in self.files if file.run is None
            ],
            "not the official GLUE data, which alone the server can score": self._names(
                lambda run: not run.official_split
            ),
            "trained on only part of the training set": self._names(
                lambda run: run.train_limit is not None
            ),
            "collapsed: one prediction for every dev example": self._names(
                lambda run: run.collapsed
            ),
        }
        return [f"{problem}: {', '.join(names)}" for problem, names in doubts.items() if names]

    def write(self, path: Path) -> None:
        """Write the zip, whole or not at all, and check every row of it.

        Raises:
            UserError: it cannot be written.
        """
        write_zip(path, {file.name: file.predictions for file in self.files})

    def _names(self, test: Callable[[RunRecord], bool]) -> list[str]:
        return [file.name for file in self.files if file.run and test(file.run)]


# Which runs


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """One row of the method in the tables."""

    group: Group
    setting: Setting

    @property
    def cells(self) -> Cells:
        return self.group.rows[self.setting]

    @property
    def text(self) -> str:
        parts = (self.group.model, self.group.data, self.setting.difference)
        return ", ".join(part for part in parts if part)

    def is_model(self, name: str) -> bool:
        known = {run.model for runs in self.cells.values() for run in runs}
        return name in {self.group.model, *known, *map(short_name, known)}


def _candidate(records: Sequence[RunRecord], request: SubmitRequest) -> _Candidate:
    """Find the only row that the request can mean."""
    everything = [
        _Candidate(group=group, setting=setting)
        for group in group_runs(records)
        for setting in group.rows
    ]
    if not everything:
        raise UserError("no run has finished, so there is nothing to submit")
    found = [c for c in everything if c.setting.method == request.method]
    if not found:
        methods = {candidate.setting.method for candidate in everything}
        raise UserError(
            f"--method {request.method}: no finished run; {nearest(request.method, methods)}"
        )
    if request.model is not None:
        models = {candidate.group.model for candidate in found}
        found = [candidate for candidate in found if candidate.is_model(request.model)]
        if not found:
            raise UserError(f"--model {request.model}: {nearest(request.model, models)}")
    return _only(found, request)


def _only(found: Sequence[_Candidate], request: SubmitRequest) -> _Candidate:
    wanted = request.setting
    rows = "".join(f"\n  {c.text} ({len(c.cells)} tasks)" for c in found)
    if wanted is not None:
        exact = [c for c in found if c.setting.difference == wanted]
        found = exact or [c for c in found if wanted in c.text]
        if not found:
            raise UserError(f"--setting {wanted!r}: {request.method} has only:{rows}")
    if len(found) > 1:
        raise UserError(
            f"{request.method} has several rows; choose one with --model, or with --setting and "
            f"part of its text:{rows}"
        )
    return found[0]


def _choose_run(task: Task, runs: Sequence[RunRecord], seed: int | None) -> RunRecord | None:
    """Take the run of a seed, else that of the best dev score (of equals the lowest seed)."""
    if seed is not None:
        return next((run for run in runs if run.seed == seed), None)
    return max(runs, key=lambda run: (_dev_score(task, run), -run.seed), default=None)


def _dev_score(task: Task, run: RunRecord) -> float:
    score = task.score(run.metrics)
    return -math.inf if score is None else score


# Their predictions


@dataclass(frozen=True)
class _Predictions:
    """The predictions of one run, read once."""

    run: RunRecord
    path: Path

    @cached_property
    def splits(self) -> Mapping[str, list[float]]:
        """Predictions of each split in order; labels are never read."""
        frame = read_rows(self.path, ("index", "prediction"))
        if frame is None:
            return {}
        splits = {}
        for name, part in frame.groupby("split", sort=False):
            if part["index"].tolist() != list(range(len(part))):
                raise UserError(f"{self.path}: rows of {name} are missing or out of order")
            splits[str(name)] = part["prediction"].tolist()
        return splits

    def submitted(self, task: Task, split: str) -> tuple[str, ...] | None:
        """Write a test set's predictions as the server takes them; None where there are none.

        Raises:
            UserError: a prediction is no label of the task, or rows are missing.
        """
        values = self.splits.get(split)
        if values is None:
            return None
        rows = (task.rows if self.run.official_split else self.run.data.rows).get(split)
        if rows is not None and rows != len(values):
            whose = "GLUE's" if self.run.official_split else "the data"
            raise UserError(
                f"{self.path}: {len(values)} predictions of {split}, but {whose} {split} has {rows}"
                " rows; repeat the run on the whole test set"
            )
        try:
            return tuple(server_value(task, value) for value in values)
        except ValueError as error:
            raise UserError(f"{self.path}: {split}: {error}") from None


def build_submission(store: Store, request: SubmitRequest) -> Submission:
    """Choose runs and read their test predictions.

    Raises:
        UserError: the method has no run or several rows, or files are missing and not to be
            filled; the message names them.
    """
    candidate = _candidate(store.records(), request)
    read: dict[str, _Predictions] = {}
    for task in TASKS.values():
        run = _choose_run(task, candidate.cells.get(task.name, ()), request.seed)
        if run:
            read[task.name] = _Predictions(run, store.runs / run.run_id / "predictions.parquet")
    files = tuple(_file(name, read, candidate.cells) for name in FILES)
    missing = [file for file in files if file.run is None]
    if missing and not request.fill_majority:
        reasons = "".join(f"\n  {file.name}: {file.filled_because}" for file in missing)
        raise UserError(
            f"missing {len(missing)} of the {len(FILES)} files:{reasons}\nMake these runs, or "
            "fill the files with the majority class: --fill-majority"
        )
    if len(missing) == len(files):
        raise UserError(f"{candidate.text}: no run has test predictions: {files[0].filled_because}")
    return Submission(
        label=candidate.setting.label,
        model=candidate.group.model,
        data=candidate.group.data,
        files=files,
    )


def _file(name: str, read: Mapping[str, _Predictions], cells: Cells) -> SubmittedFile:
    """Take a file from its task's run, or fill it and say why."""
    task, test = TEST_SETS[name]
    found = read.get(task.name)
    predictions = found.submitted(task, test.key) if found else None
    if found and predictions:
        return SubmittedFile(
            name=name, task=task, split=test.key, run=found.run, predictions=predictions
        )
    if found:
        why = f"{found.run.run_id} has no predictions of {test.key}"
        if found.run.config.get("predict_test") is False:
            why += "; repeat it with --predict-test --force"
    else:
        seeds = ", ".join(str(run.seed) for run in cells.get(task.name, ()))
        why = f"no finished run on {task.name}" + (f" of this seed, only of {seeds}" * bool(seeds))
    constant = server_value(task, task.dev_majority)
    return SubmittedFile(
        name=name,
        task=task,
        split=test.key,
        run=None,
        predictions=(constant,) * task.rows[test.key],
        filled_because=why,
    )

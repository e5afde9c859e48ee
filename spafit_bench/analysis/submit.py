"""The GLUE server's zip: which runs it is made of, and its eleven tab-separated files.

Source of the format: the FAQ of gluebenchmark.com. AX is predicted by the MNLI model.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spafit_bench.analysis.tables.settings import (
    RunGroup,
    Setting,
    TaskRuns,
    group_runs,
    matching_rows,
    short_name,
)
from spafit_bench.base.durable import replacing
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.data.tasks import TASKS, Task, TestSet
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_rows
from spafit_bench.results.store import Store

FILES = (
    *("CoLA", "SST-2", "MRPC", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "RTE", "WNLI", "AX"),
)
"""The files of a zip, without `.tsv`."""
TEST_SETS: Mapping[str, tuple[Task, TestSet]] = {
    test.submission: (task, test) for task in TASKS.values() for test in task.test_sets
}
"""File -> its task and test set."""
SEED_RULE = "best dev score of each task, of equals the lowest"
_HEADER = "index\tprediction"
_EPOCH = (1980, 1, 1, 0, 0, 0)


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
        """Return where the file is from, for programs."""
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
    """Every file of a zip, and the table row that its runs are of."""

    label: str
    model: str
    data: str
    files: tuple[SubmittedFile, ...]

    @property
    def warnings(self) -> list[str]:
        """Reasons why the server's scores may not mean what the reader thinks."""
        runs = [(file.name, file.run) for file in self.files]
        doubts = {
            "filled with the majority class, no model's prediction": [
                name for name, run in runs if run is None
            ],
            "not the official GLUE data, which alone the server can score": [
                name for name, run in runs if run and not run.official_split
            ],
            "trained on only part of the training set": [
                name for name, run in runs if run and run.train_limit is not None
            ],
            "collapsed: one prediction for every dev example": [
                name for name, run in runs if run and run.collapsed
            ],
        }
        return [f"{problem}: {', '.join(names)}" for problem, names in doubts.items() if names]

    def write(self, path: Path) -> None:
        """Write the zip, whole or not at all, after checking every row of it.

        Raises:
            UserError: it cannot be written.
        """
        write_zip(path, {file.name: file.predictions for file in self.files})


# Which runs


def build_submission(store: Store, request: SubmitRequest) -> Submission:
    """Choose runs and read their test predictions.

    Raises:
        UserError: the method has no run or several rows; or files are missing and may not be
            filled, and the message names them.
    """
    group, setting = _find_row(store.records(), request)
    cells = group.rows[setting]
    chosen = {
        name: _choose_run(task, cells.get(name, ()), request.seed) for name, task in TASKS.items()
    }
    by_name = {file.name: file for file in _files(store, chosen, cells)}
    files = tuple(by_name[name] for name in FILES)
    missing = [file for file in files if file.run is None]
    if missing and not request.fill_majority:
        reasons = "".join(f"\n  {file.name}: {file.filled_because}" for file in missing)
        raise UserError(
            f"missing {len(missing)} of the {len(FILES)} files:{reasons}\nMake these runs, or "
            "fill the files with the majority class: --fill-majority"
        )
    if len(missing) == len(files):
        raise UserError(
            f"{_row_text(group, setting)}: no run has test predictions: {files[0].filled_because}"
        )
    return Submission(label=setting.label, model=group.model, data=group.data, files=files)


def _find_row(records: Sequence[RunRecord], request: SubmitRequest) -> tuple[RunGroup, Setting]:
    """Return the only row of the tables that the request can mean."""
    every = [(group, row) for group in group_runs(records) for row in group.rows]
    if not every:
        raise UserError("no run has finished, so there is nothing to submit")
    found = [(group, row) for group, row in every if row in matching_rows(group, request.method)]
    if not found:
        methods = {row.method for _, row in every}
        raise UserError(
            f"--method {request.method}: no finished run; {nearest(request.method, methods)}"
        )
    if request.model is not None:
        models = {group.model for group, _ in found}
        found = [(group, row) for group, row in found if request.model in _model_names(group)]
        if not found:
            raise UserError(f"--model {request.model}: {nearest(request.model, models)}")
    if request.setting is not None:
        of_model = found
        found = [(group, row) for group, row in of_model if row.difference == request.setting]
        found = found or [item for item in of_model if request.setting in _row_text(*item)]
        if not found:
            listed = _listed(of_model)
            raise UserError(f"--setting {request.setting!r}: {request.method} has only:{listed}")
    if len(found) > 1:
        raise UserError(
            f"{request.method} has several rows; choose one with --model, or with --setting and "
            f"part of its text:{_listed(found)}"
        )
    return found[0]


def _model_names(group: RunGroup) -> set[str]:
    models = {run.model for run in group.records}
    return {group.model, *models, *map(short_name, models)}


def _row_text(group: RunGroup, row: Setting) -> str:
    return ", ".join(filter(None, (group.model, group.data, row.difference)))


def _listed(rows: Sequence[tuple[RunGroup, Setting]]) -> str:
    return "".join(
        f"\n  {_row_text(group, row)} ({len(group.rows[row])} tasks)" for group, row in rows
    )


def _choose_run(task: Task, runs: Sequence[RunRecord], seed: int | None) -> RunRecord | None:
    """Return the run of a seed, or without one the run that `SEED_RULE` names."""
    if seed is not None:
        return next((run for run in runs if run.seed == seed), None)

    def rank(run: RunRecord) -> tuple[float, int]:
        score = task.score(run.metrics)
        return -math.inf if score is None else score, -run.seed

    return max(runs, key=rank, default=None)


def _files(
    store: Store, chosen: Mapping[str, RunRecord | None], cells: TaskRuns
) -> Iterator[SubmittedFile]:
    """Take each file from its task's run, or fill it and say why."""
    for task in TASKS.values():
        run = chosen[task.name]
        path = store.runs / (run.run_id if run else "") / "predictions.parquet"
        splits = _read_predictions(path) if run else {}
        for test in task.test_sets:
            if run and splits.get(test.key):
                predictions, why = _submitted(path, run, test.key, splits[test.key]), ""
            else:
                constant = server_value(task, task.dev_majority)
                predictions = (constant,) * task.rows[test.key]
                why = _why_missing(task, run, test.key, cells)
            yield SubmittedFile(
                name=test.submission,
                task=task,
                split=test.key,
                run=None if why else run,
                predictions=predictions,
                filled_because=why,
            )


def _why_missing(task: Task, run: RunRecord | None, split: str, cells: TaskRuns) -> str:
    if run is None:
        seeds = ", ".join(str(run.seed) for run in cells.get(task.name, ()))
        return f"no finished run on {task.name}" + (f" of this seed, only of {seeds}" * bool(seeds))
    untested = run.config.get("predict_test") is False
    return f"{run.run_id} has no predictions of {split}" + (
        "; repeat it with --predict-test --force" * untested
    )


def _read_predictions(path: Path) -> dict[str, list[float]]:
    """Return the predictions of each split in the order of the data; labels are never read."""
    frame = read_rows(path, ("index", "prediction"))
    if frame is None:
        return {}
    splits = {}
    for name, part in frame.groupby("split", sort=False):
        if part["index"].tolist() != list(range(len(part))):
            raise UserError(f"{path}: rows of {name} are missing or out of order")
        splits[str(name)] = part["prediction"].tolist()
    return splits


def _submitted(path: Path, run: RunRecord, split: str, values: Sequence[float]) -> tuple[str, ...]:
    """Write predictions as the server takes them.

    Raises:
        UserError: one is no prediction of the task, or rows are missing.
    """
    task = TASKS[run.task]
    rows = (task.rows if run.official_split else run.data.rows).get(split)
    if rows is not None and rows != len(values):
        whose = "GLUE's" if run.official_split else "the data"
        raise UserError(
            f"{path}: {len(values)} predictions of {split}, but {whose} {split} has {rows}"
            " rows; repeat the run on the whole test set"
        )
    try:
        return tuple(server_value(task, value) for value in values)
    except ValueError as error:
        raise UserError(f"{path}: {split}: {error}") from None


# The server's format


def server_value(task: Task, value: float) -> str:
    """Write a class id or a score as the server takes it.

    Raises:
        ValueError: it is no prediction for the task.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is no prediction")
    if task.label_range is not None:
        low, high = task.label_range
        return f"{min(max(value, low), high) + 0.0:.3f}"
    if value not in range(task.num_labels):
        raise ValueError(f"{value:g} is no class of {task.name}")
    return task.labels[int(value)] if task.submit_names else str(int(value))


def write_zip(path: Path, predictions: Mapping[str, Sequence[str]]) -> None:
    """Write a zip, whole or not at all, after checking every row of it.

    Two zips of the same predictions are byte for byte the same.

    Args:
        path: where; an earlier file is replaced.
        predictions: file -> the server's values, in the order of the test set.

    Raises:
        UserError: it cannot be written, or the server would refuse it.
    """
    try:
        with replacing(path) as temporary:
            with zipfile.ZipFile(temporary, "w") as archive:
                for name, values in predictions.items():
                    lines = (f"{index}\t{value}" for index, value in enumerate(values))
                    member = zipfile.ZipInfo(f"{name}.tsv", date_time=_EPOCH)
                    member.compress_type = zipfile.ZIP_DEFLATED
                    member.create_system = 3
                    member.external_attr = 0o644 << 16
                    archive.writestr(member, "\n".join((_HEADER, *lines, "")))
            check_zip(temporary, {name: len(values) for name, values in predictions.items()})
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror})") from None


def check_zip(path: Path, rows: Mapping[str, int] | None = None) -> None:
    """Check that a zip is what the GLUE server takes.

    Args:
        path: the zip.
        rows: rows that each file must have (default: those of the official test sets).

    Raises:
        UserError: it is not; the message names file and line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            wrong = {f"{name}.tsv" for name in FILES}.symmetric_difference(names)
            if wrong or len(names) != len(FILES):
                listed = ", ".join(sorted(wrong)) or "a file is there twice"
                raise UserError(f"{path}: missing or unexpected: {listed}")
            for name in FILES:
                text = archive.read(f"{name}.tsv").decode("ascii")
                _check_file(f"{path}: {name}.tsv", name, text, rows)
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged ({error})") from None


def _check_file(where: str, name: str, text: str, rows: Mapping[str, int] | None) -> None:
    task, test = TEST_SETS[name]
    header, *lines = text.removesuffix("\n").split("\n")
    expected = task.rows[test.key] if rows is None else rows[name]
    if header != _HEADER:
        raise UserError(f"{where}: the first line is {header!r}, not {_HEADER!r}")
    if len(lines) != expected:
        raise UserError(f"{where}: {len(lines)} rows, not {expected}")
    ids = (str(number) for number in range(task.num_labels))
    allowed = frozenset(task.labels if task.submit_names else ids)
    for index, line in enumerate(lines):
        found, _, value = line.partition("\t")
        if found != str(index):
            raise UserError(f"{where}, line {index + 2}: index {found!r}, not {index}")
        if not (_is_score(task, value) if task.is_regression else value in allowed):
            raise UserError(f"{where}, line {index + 2}: {value!r} is no label of {task.title}")


def _is_score(task: Task, value: str) -> bool:
    assert task.label_range is not None
    low, high = task.label_range
    digits = value.replace(".", "", 1)
    return digits.isdecimal() and value[-4:-3] == "." and low <= float(value) <= high

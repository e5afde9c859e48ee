"""Whether the data of tasks is there, whole, and the official one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from spafit_bench.base.errors import UnreachableError, UserError
from spafit_bench.data.layouts import MissingSplitError, data_folder, find_layout, parts_of
from spafit_bench.data.load import Split, load_task_data
from spafit_bench.data.tasks import Task

Finding = Literal["official", "sound", "missing", "incomplete", "damaged"]


@dataclass(frozen=True, kw_only=True)
class TaskFinding:
    """What was found of one task."""

    task: str
    finding: Finding
    """`sound` data is complete and valid, but not known to be GLUE's own; `incomplete` data lacks
    train or dev, `missing` data both."""
    rows: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Split -> class name -> rows; none for a regression."""
    problem: str = ""
    """Why the data is missing, incomplete, damaged or not official."""
    notes: tuple[str, ...] = ()
    """What training may suffer from."""
    fingerprint: str | None = None


def verify(task: Task, source: str, *, offline: bool, split: float | None = None) -> TaskFinding:
    """Read all data of a task as a run would.

    Args:
        task: the task.
        source: `hub`, `mini` or a folder.
        offline: use the hub's cache without asking the hub.
        split: as of `load_task_data`.

    Raises:
        UserError: there is no such folder, or the hub cannot be reached.
    """
    try:
        if source not in ("hub", "mini") and find_layout(task, data_folder(source)) is None:
            return TaskFinding(task=task.name, finding="missing", problem="no files of this task")
    except UserError as error:
        data_folder(source)  # a folder that is not there is no finding about a task
        return TaskFinding(task=task.name, finding="damaged", problem=str(error))
    try:
        data = load_task_data(task, source, offline=offline, split=split)
    except UnreachableError:
        raise  # says nothing about the data
    except MissingSplitError as error:
        return TaskFinding(task=task.name, finding="incomplete", problem=str(error))
    except UserError as error:
        return TaskFinding(task=task.name, finding="damaged", problem=str(error))
    lacking = [test.key for test in task.test_sets if test.key not in data.splits]
    return TaskFinding(
        task=task.name,
        finding="official" if data.official_split else "sound",
        rows={key: split.num_rows for key, split in data.splits.items()},
        labels={key: counts for key, s in data.splits.items() if (counts := _counts(task, s))},
        problem="" if data.official_split else data.official_basis,
        notes=data.notes + ((f"no test set ({', '.join(lacking)})",) if lacking else ()),
        fingerprint=data.fingerprint,
    )


def is_one_tasks_folder(task: Task, source: str) -> bool:
    """Tell whether the files lie in the folder itself, so that only a user knows whose they are."""
    root = data_folder(source)
    try:
        layout = find_layout(task, root)
        files = [path for part in parts_of(task) for path in layout.files(part)] if layout else []
    except UserError:
        return False
    return any(path.parent == root for path in files)


def _counts(task: Task, split: Split) -> dict[str, int]:
    if split.labels is None or task.is_regression:
        return {}
    found = Counter(split.labels.tolist())
    return {name: found[number] for number, name in enumerate(task.labels)}

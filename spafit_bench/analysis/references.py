"""Published scores that a table sets beside ours, read from YAML and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.base.frozen import Frozen, first_problem
from spafit_bench.base.yaml_files import config_folder, parse_yaml
from spafit_bench.data.tasks import TASKS, get_task

MEAN = "score"
"""The metric that is the mean of a task's metrics."""


class Reference(Frozen):
    """One published score."""

    name: str = Field(min_length=1)
    """The row of the table that it stands in."""
    model: str = Field(min_length=1)
    task: str
    split: str
    """`dev` or `test`; of several such sets `dev_matched` and the like."""
    metric: str
    """One of the task's metrics, or `score`: the mean of them."""
    value: float | None = Field(ge=-100, le=100)
    """Times 100; None where the reader has yet to fill it in."""
    source: str = Field(min_length=1)
    note: str = ""
    collapsed: bool = False

    @field_validator("value")
    @classmethod
    def _times_100(cls, value: float | None) -> float | None:
        if value is not None and 0 < abs(value) < 1:
            raise ValueError(f"{value:g} looks like native scale; write {100 * value:g}")
        return value

    @model_validator(mode="after")
    def _known(self) -> Reference:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}: {nearest(self.task, TASKS)}")
        task = get_task(self.task)
        splits = [split.replace("validation", "dev") for split in task.dev_splits]
        splits += [test.key for test in task.test_sets]
        if self.split not in splits:
            raise ValueError(f"split {self.split!r} of {self.task}: {nearest(self.split, splits)}")
        metrics = (*task.metrics, MEAN)
        if self.metric not in metrics:
            known = nearest(self.metric, metrics)
            raise ValueError(f"metric {self.metric!r} of {self.task}: {known}")
        return self

    @property
    def is_dev(self) -> bool:
        """Whether it is of a dev set, as all our scores are."""
        return self.split.startswith("dev")

    @property
    def dev_split(self) -> str:
        """The dev set in whose column it belongs, if it stands in a table at all."""
        return self.split.replace("dev", "validation").replace("test", "validation")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics whose mean it is."""
        return get_task(self.task).metrics if self.metric == MEAN else (self.metric,)


class References(Frozen):
    """The content of a file."""

    where: str
    entries: tuple[Reference, ...]


def read_references(file: Path) -> References:
    """Read published scores.

    Args:
        file: a YAML list of entries, or the name of a shipped one such as `bert-large`.

    Raises:
        UserError: there is no such file, or an entry of it is wrong; the message says which.
    """
    folder = config_folder() / "references"
    shipped = folder / f"{file.name.removesuffix('.yaml')}.yaml"
    path = shipped if not file.exists() and file.parent == Path() and shipped.is_file() else file
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = [found.stem for found in folder.glob("*.yaml")]
        raise UserError(
            f"--reference {file}: no such file; shipped ones: {', '.join(sorted(names))}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--reference {file}: cannot be read ({error})") from None
    body = parse_yaml(text, f"--reference {file}")
    if not isinstance(body, list) or not body:
        raise UserError(f"--reference {file}: must be a YAML list of scores (- name: ...)")
    entries = [_entry(f"{file}, entry {n}", raw) for n, raw in enumerate(body, start=1)]
    seen: dict[tuple[str, ...], int] = {}
    for number, entry in enumerate(entries, start=1):
        key = (entry.name, entry.model, entry.task, entry.split, entry.metric)
        if first := seen.get(key):
            raise UserError(f"{file}, entry {number}: {', '.join(key)} is already entry {first}")
        seen[key] = number
    return References(where=path.name, entries=tuple(entries))


def _entry(where: str, raw: Any) -> Reference:
    if not isinstance(raw, dict):
        raise UserError(f"{where}: must be a mapping (name: ..., model: ...), not {raw!r:.60}")
    try:
        return Reference.model_validate(raw)
    except ValidationError as error:
        _, problem = first_problem(error, Reference.model_fields)
        raise UserError(f"{where}: {problem}") from None

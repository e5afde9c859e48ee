"""Tasks beyond GLUE: any classification or regression data set, described in one YAML file.

    name: reviews
    text: [title, body]             # one column or two; "{title}: {body}" puts columns together
    label: stars                    # a column
    labels: [bad, good]             # class names in the order of their ids, or range: [0, 5]
    metrics: [accuracy, f1]
    splits: { train: train.csv, validation: dev.csv, test: test.csv }
    train: { epochs: 5 }

The description travels in a run's record, so that results are read without the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.base.frozen import Frozen, first_problem
from spafit_bench.base.yaml_files import config_folder, read_mapping
from spafit_bench.data.tasks import TASKS, HubFiles, SplitFile, Task, TestSet

Metric = Literal["accuracy", "f1", "f1_macro", "matthews_correlation", "pearson", "spearman"]
SplitName = Annotated[str, Field(pattern="^(train|validation|test)$")]

DATA_FILES = (".csv", ".jsonl", ".parquet")
_TWO_CLASSES = ("f1", "matthews_correlation")
_CORRELATIONS = ("pearson", "spearman")
_COLUMN = re.compile(r"\{([^{}]+)\}")
NOT_GLUE = "not a task of GLUE"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _quoted(value: Any) -> Any:
    values = _listed(value)
    if isinstance(values, list) and any(isinstance(item, bool) for item in values):
        raise ValueError("YAML reads yes, no, true and false as truth values: quote the names")
    return [str(v) if isinstance(v, int) else v for v in values] if type(values) is list else values


def _data_file(pattern: str) -> str:
    path = PurePosixPath(pattern)
    if path.is_absolute() or ".." in path.parts or "\\" in pattern or "\0" in pattern:
        raise ValueError("a file below the data folder, without '..'")
    if path.suffix not in DATA_FILES:
        raise ValueError(f"the name must end in {', '.join(DATA_FILES)}")
    return pattern


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    if not line.isprintable():
        raise ValueError("it has a character that cannot be shown")
    return line


def _known_name(name: str) -> str:
    if name in TASKS:
        raise ValueError("that is GLUE's; choose another name")
    return name


Line = Annotated[str, AfterValidator(_one_line)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
ClassNames = Annotated[tuple[str, ...], BeforeValidator(_quoted)]
DataFile = Annotated[str, AfterValidator(_data_file)]
Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,23}$"), AfterValidator(_known_name)
]


class SplitDefinition(Frozen):
    """A split whose columns have other names than the task's."""

    file: DataFile
    text: Names = ()
    """The task's columns in their order, under this file's names."""
    label: str | None = None


class HubDefinition(Frozen):
    """Where the task is on the Hugging Face hub."""

    repository: str
    files: dict[SplitName, DataFile]
    """Split -> its parquet files, with `*` for the numbers of shards."""


class TaskDefinition(Frozen):
    """A task as its YAML file states it."""

    name: Name
    title: Annotated[Line, Field(max_length=24)] = ""
    description: Line = ""
    source: Line = ""
    text: Annotated[Names, Field(min_length=1, max_length=2)]
    label: str = "label"
    labels: ClassNames = ()
    range: tuple[float, float] | None = None
    """Of a regression's scores, both ends included; None: any finite number."""
    metrics: Annotated[tuple[Metric, ...], BeforeValidator(_listed), Field(min_length=1)]
    splits: dict[SplitName, DataFile | SplitDefinition] = Field(default_factory=dict)
    """Without it: `train`, `validation` and `test`, each `.csv`, `.jsonl` or `.parquet`."""
    hub: HubDefinition | None = None
    rows: dict[SplitName, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Rows of the original data, if these are known."""
    empty_texts: bool = False
    train: dict[str, Any] = Field(default_factory=dict)
    """Training defaults of this task, as `train:` of a configuration file."""
    note: Line = ""

    @model_validator(mode="after")
    def _fits(self) -> TaskDefinition:
        problem = self._label_problem() or self._split_problem()
        if problem:
            raise ValueError(problem)
        return self

    def _label_problem(self) -> str:
        correlations = set(self.metrics) <= set(_CORRELATIONS)
        neither = not self.labels and self.range is None and not correlations
        if neither or (self.labels and self.range is not None):
            return "give labels (of a classification) or range (of a regression), one of the two"
        if self.range is not None and not self.range[0] < self.range[1]:
            return "range must be [lowest, highest]"
        if self.labels and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            return "labels must be two names or more, each once"
        for metric in self.metrics:
            if (metric in _CORRELATIONS) == bool(self.labels):
                kind = "classification" if self.labels else "regression"
                return f"metric {metric} is not one of a {kind}"
            if metric in _TWO_CLASSES and len(self.labels) != 2:
                return f"metric {metric} is of two classes, and there are {len(self.labels)}"
        return "" if len(set(self.metrics)) == len(self.metrics) else "a metric is there twice"

    def _split_problem(self) -> str:
        for where, splits in (
            ("splits", self.splits),
            ("rows", self.rows),
            ("hub.files", self.hub.files if self.hub else {}),
        ):
            needed = {"train"} if where == "splits" else {"train", "validation"}
            if splits and not splits.keys() >= needed:
                return f"{where} must name {' and '.join(sorted(needed))}"
        width = len(self._columns)
        for name, split in self.splits.items():
            if isinstance(split, SplitDefinition) and len(split.text) not in (0, width):
                return f"splits.{name}.text must name {width} columns: {', '.join(self._columns)}"
        return ""

    @property
    def _columns(self) -> tuple[str, ...]:
        named = [_COLUMN.findall(text) or [text] for text in self.text]
        return tuple(dict.fromkeys(column for columns in named for column in columns))

    def task(self) -> Task:
        """Return the task that this describes."""
        columns = self._columns
        templates = tuple(t if _COLUMN.search(t) else f"{{{t}}}" for t in self.text)
        return Task(
            name=self.name,
            title=self.title or self.name,
            text_columns=columns,
            templates=() if columns == self.text else templates,
            label_column=self.label,
            labels=self.labels,
            label_range=self.range,
            metrics=tuple(self.metrics),
            test_sets=(TestSet(split="test", submission=self.name),),
            rows=self.rows,
            empty_texts=self.empty_texts,
            note="; ".join(filter(None, (NOT_GLUE, self.note))),
            in_glue=False,
            files={name: self._file(name, columns) for name in ("train", "validation", "test")},
            hub=HubFiles(self.hub.repository, self.hub.files) if self.hub else None,
        )

    def _file(self, name: str, columns: tuple[str, ...]) -> SplitFile:
        split = self.splits.get(name)
        if isinstance(split, str):
            split = SplitDefinition(file=split)
        if split is None:
            patterns = () if self.splits else tuple(f"{name}{ending}" for ending in DATA_FILES)
            return SplitFile(patterns=patterns, text_columns=columns, label_column=self.label)
        return SplitFile(
            patterns=(split.file,),
            text_columns=split.text or columns,
            label_column=split.label or self.label,
        )


@dataclass(frozen=True)
class FoundTask:
    """A task and, unless it is GLUE's, its description."""

    task: Task
    definition: TaskDefinition | None = None

    @property
    def train(self) -> Mapping[str, Any]:
        """Training defaults that the description gives."""
        return self.definition.train if self.definition else {}


def shipped_tasks() -> tuple[str, ...]:
    """Return the names of the shipped descriptions."""
    return tuple(sorted(path.stem for path in (config_folder() / "tasks").glob("*.yaml")))


def find_task(text: str) -> FoundTask:
    """Return the task that `text` names: one of GLUE, a shipped description or a YAML file.

    Raises:
        UserError: no such task (with the nearest match), or a wrong description.
    """
    if text in TASKS:
        return FoundTask(TASKS[text])
    names = shipped_tasks()
    is_file = text.endswith((".yaml", ".yml"))
    if not is_file and text not in names:
        raise UserError(f"unknown task {text!r}: {nearest(text, (*TASKS, *names))}")
    definition = read_task(Path(text) if is_file else config_folder() / "tasks" / f"{text}.yaml")
    return FoundTask(definition.task(), definition)


def read_task(path: Path) -> TaskDefinition:
    """Read a description.

    Raises:
        UserError: unreadable, an unknown key, or a value that cannot be; the message names it.
    """
    body = read_mapping(path)
    keys = tuple(TaskDefinition.model_fields)
    for key in body:
        if key not in keys:
            raise UserError(f"{path}: unknown key {str(key)!r}: {nearest(str(key), keys)}")
    try:
        definition = TaskDefinition.model_validate({"name": path.stem} | body)
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)[1]}") from None
    # Not a rule of the type: records of older versions may have such a range.
    if definition.range is not None and not all(map(math.isfinite, definition.range)):
        raise UserError(
            f"{path}: range = {list(definition.range)}: both ends must be finite; leave range out "
            "if scores have no bounds"
        )
    return definition

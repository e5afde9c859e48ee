"""What a GLUE task is: one row of a table.

Facts are those of the GLUE benchmark (Wang et al., arXiv:1804.07461) in the label order of the
`nyu-mll/glue` data set. Nothing else in the package knows a task by name. Tasks beyond GLUE come
from YAML files (`custom_tasks.py`) and are of the same type.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from spafit_bench.base.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A split that is only predicted: its labels are never read."""

    __test__ = False  # not a pytest class

    split: str
    submission: str
    """Name of the GLUE server's file, without `.tsv`."""
    config: str | None = None
    """Hub configuration that holds the split, if that is not the task's own (AX)."""
    tsv_files: tuple[str, ...] = ()
    """Where a GLUE TSV folder may keep it, if not in `<task folder>/<split>.tsv`."""

    @property
    def key(self) -> str:
        """Name of the split among the task's own: AX is `ax`, not another `test`."""
        return self.config or self.split


@dataclass(frozen=True, kw_only=True)
class TsvLayout:
    """How the task looks in GLUE's own TSV files, in which quotes have no meaning."""

    text_columns: tuple[str, ...] = ()
    """If they are not called as the task's."""
    label_column: str = "label"
    headerless: tuple[str, ...] = ()
    """Columns of train and dev, if those files have no header line."""
    torn_rows: bool = False
    """Whether line breaks inside texts tear official rows apart; the hub leaves those rows out."""


@dataclass(frozen=True, kw_only=True)
class SplitFile:
    """How a split of a task beyond GLUE is found and read."""

    patterns: tuple[str, ...]
    """File names below the data folder, `*` allowed; each is another place to look."""
    text_columns: tuple[str, ...]
    label_column: str


@dataclass(frozen=True)
class HubFiles:
    """A data set on the Hugging Face hub."""

    repository: str
    patterns: Mapping[str, str]
    """Split -> its parquet files."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task."""

    name: str
    title: str
    text_columns: tuple[str, ...]
    """One column for single sentences, two for pairs; with `templates`, whatever these name."""
    tsv: TsvLayout = TsvLayout()
    labels: tuple[str, ...] = ()
    """Class names in label order; empty for a regression task."""
    label_range: tuple[float, float] | None = None
    """Inclusive range of a regression label."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Reported metrics, in native scale; the task's score is their mean."""
    dev_splits: tuple[str, ...] = ("validation",)
    """Every metric is computed on each; the task's score is the mean over them."""
    test_sets: tuple[TestSet, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    """Official number of rows of each split."""
    dev_majority: float = 0
    """Most frequent class id of the official dev set (each of them); for a regression, its mean."""
    submit_names: bool = False
    """Whether the GLUE server takes class names rather than class ids."""
    empty_texts: bool = False
    """Whether a few official rows have an empty text."""
    note: str = ""
    """What a reader of a score should know."""
    label_column: str = "label"
    templates: tuple[str, ...] = ()
    """One or two texts such as `{word}: {sentence}`, if they are not columns as they stand."""
    in_glue: bool = True
    """Whether it counts in GLUE's average."""
    files: Mapping[str, SplitFile] = field(default_factory=dict)
    """Of a task beyond GLUE: split -> its files."""
    hub: HubFiles | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the encoder reads, one or two texts: columns or templates."""
        return self.templates or self.text_columns

    @property
    def tsv_columns(self) -> tuple[str, ...]:
        """Names of the text columns in GLUE's TSV files."""
        return self.tsv.text_columns or self.text_columns

    def compose(self, cells: Sequence[str]) -> tuple[str, ...]:
        """Return the one or two texts of an example, given its `text_columns`."""
        if not self.templates:
            return tuple(cells)
        values = dict(zip(self.text_columns, cells, strict=True))
        return tuple(
            re.sub(r"\{([^{}]+)\}", lambda match: values[match[1]], text) for text in self.templates
        )

    def split_score(self, metrics: Mapping[str, Mapping[str, float]], split: str) -> float | None:
        """Mean of the task's metrics on a split, native scale; None if one is missing."""
        return mean_or_none([metrics.get(split, {}).get(metric) for metric in self.metrics])

    def score(self, metrics: Mapping[str, Mapping[str, float]]) -> float | None:
        """Mean over the dev splits of `split_score`: what GLUE's average averages."""
        return mean_or_none([self.split_score(metrics, split) for split in self.dev_splits])

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number rather than a class."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier: one for regression."""
        return len(self.labels) or 1


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Mean of the values, or None if one is missing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _glue(
    title: str, texts: str, labels: str, rows: tuple[int, int, int] | dict[str, int], **facts: Any
) -> Task:
    """Return a task of GLUE; `rows` are those of train, validation and test."""
    if isinstance(rows, tuple):
        rows = dict(zip(("train", "validation", "test"), rows, strict=True))
    own = {"test_sets": (TestSet(split="test", submission=title),)} | facts
    name = title.lower().replace("-", "")
    columns, classes = tuple(texts.split()), tuple(labels.split())
    return Task(name=name, title=title, text_columns=columns, labels=classes, rows=rows, **own)


_ENTAILMENT = "entailment not_entailment"
_PAIR = "sentence1 sentence2"

_ALL = (
    _glue(
        "CoLA",
        "sentence",
        "unacceptable acceptable",
        (8551, 1043, 1063),
        metrics=("matthews_correlation",),
        tsv=TsvLayout(headerless=("source", "label", "annotation", "sentence")),
        dev_majority=1,
    ),
    _glue("SST-2", "sentence", "negative positive", (67349, 872, 1821), dev_majority=1),
    _glue(
        "MRPC",
        _PAIR,
        "not_equivalent equivalent",
        (3668, 408, 1725),
        metrics=("f1", "accuracy"),
        tsv=TsvLayout(text_columns=("#1 String", "#2 String"), label_column="Quality"),
        dev_majority=1,
    ),
    _glue(
        "STS-B",
        _PAIR,
        "",
        (5749, 1500, 1379),
        label_range=(0.0, 5.0),
        metrics=("pearson", "spearman"),
        tsv=TsvLayout(label_column="score"),
        dev_majority=2.364,
    ),
    _glue(
        "QQP",
        "question1 question2",
        "not_duplicate duplicate",
        (363846, 40430, 390965),
        metrics=("f1", "accuracy"),
        tsv=TsvLayout(label_column="is_duplicate", torn_rows=True),
        empty_texts=True,
    ),
    _glue(
        "MNLI",
        "premise hypothesis",
        "entailment neutral contradiction",
        {
            "train": 392702,
            "validation_matched": 9815,
            "validation_mismatched": 9832,
            "test_matched": 9796,
            "test_mismatched": 9847,
            "ax": 1104,
        },
        tsv=TsvLayout(text_columns=("sentence1", "sentence2"), label_column="gold_label"),
        dev_splits=("validation_matched", "validation_mismatched"),
        test_sets=(
            TestSet(split="test_matched", submission="MNLI-m"),
            TestSet(split="test_mismatched", submission="MNLI-mm"),
            TestSet(
                split="test",
                submission="AX",
                config="ax",
                tsv_files=("AX/diagnostic.tsv", "diagnostic/diagnostic.tsv"),
            ),
        ),
        submit_names=True,
    ),
    _glue(
        "QNLI",
        "question sentence",
        _ENTAILMENT,
        (104743, 5463, 5463),
        dev_majority=1,
        submit_names=True,
    ),
    _glue("RTE", _PAIR, _ENTAILMENT, (2490, 277, 3000), submit_names=True),
    _glue(
        "WNLI",
        _PAIR,
        "not_entailment entailment",
        (635, 71, 146),
        note="the dev set is adversarial to train: a model that learns from train scores "
        "below the majority class",
    ),
)

TASKS: MappingProxyType[str, Task] = MappingProxyType({task.name: task for task in _ALL})


def get_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UserError: the name is not a task's; the message has the nearest match.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}: {nearest(name, TASKS)}")
    return TASKS[name]

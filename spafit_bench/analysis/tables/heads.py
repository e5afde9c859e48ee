"""Columns of the scores table: a dev set and the metrics whose mean it shows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from spafit_bench.analysis.tables.cells import Column
from spafit_bench.data.tasks import Task, mean_or_none
from spafit_bench.results.record import SplitMetrics

UNIT = "x100"
_METRIC_TITLES: Mapping[str, str] = MappingProxyType(
    {
        "matthews_correlation": "MCC",
        "accuracy": "Acc",
        "f1": "F1",
        "f1_macro": "macro F1",
        "pearson": "Pear",
        "spearman": "Spear",
    }
)


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a column shows."""

    task: Task
    split: str
    metrics: tuple[str, ...]
    column: Column

    @property
    def is_task_score(self) -> bool:
        """Whether it shows the task's score, rather than one metric of it."""
        return self.metrics == self.task.metrics

    def score(self, metrics: SplitMetrics) -> float | None:
        """Mean of its metrics, native scale; None where one is missing."""
        return mean_or_none([metrics.get(self.split, {}).get(name) for name in self.metrics])


def metrics_title(metrics: Sequence[str]) -> str:
    """Abbreviate metrics for a heading."""
    return "/".join(_METRIC_TITLES.get(name, name) for name in metrics)


def score_heads(tasks: Sequence[Task], singles: Collection[tuple[str, str]] = ()) -> Iterator[Head]:
    """Head each dev set; a task with several takes the GLUE server's names for them.

    Args:
        tasks: in the table's order.
        singles: (task, metric) pairs that get a column of their own besides.
    """
    for task in tasks:
        several = len(task.dev_splits) > 1
        alone = [(name,) for name in task.metrics if (task.name, name) in singles]
        for index, split in enumerate(task.dev_splits):
            key = f"{task.name}_{split.removeprefix('validation_')}" if several else task.name
            title = task.test_sets[index].submission if several else task.title
            for metrics in (task.metrics, *alone):
                column = Column(
                    key=key if metrics == task.metrics else f"{key}_{metrics[0]}",
                    title=title,
                    subtitle=metrics_title(metrics),
                    unit=UNIT,
                )
                yield Head(task=task, split=split, metrics=metrics, column=column)

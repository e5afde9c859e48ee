"""GLUE's metrics (and macro F1) behind the `evaluate` library's interface, carried by the package.

No metric script is fetched and nothing is cached on disk, so runs offline and in parallel are the
same as any other. A constant prediction has F1, Matthews or rank correlation 0 where the formula
has 0 / 0, as is the field's custom; it is never NaN.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence

import datasets
import evaluate
import numpy as np

from spafit_bench.data.tasks import Task

Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of equal labels."""
    return float(np.mean(predictions == references))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1; 0 where there is no true positive."""
    true_positives = np.sum((predictions == 1) & (references == 1))
    positives = np.sum(predictions == 1) + np.sum(references == 1)
    return float(2 * true_positives / positives) if positives else 0.0


def f1_macro(predictions: np.ndarray, references: np.ndarray) -> float:
    """Mean of the F1 of each class that is predicted or there (SuperGLUE's for CB)."""
    classes = np.union1d(predictions, references)
    return float(np.mean([f1(predictions == c, references == c) for c in classes]))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews correlation of two classes (Matthews 1975); 0 for a constant."""
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(np.corrcoef(predictions, references)[0, 1])


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson correlation; 0 for a constant."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, references)


def spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    """Spearman rank correlation; 0 for a constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, references)


def _correlation(
    formula: Callable[..., tuple[float, float]], predictions: np.ndarray, references: np.ndarray
) -> float:
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(formula(predictions.astype(np.float64), references.astype(np.float64))[0])


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
}


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """The metrics of one task, e.g. `GlueMetric(get_task("mrpc")).compute(...)`."""

    def __init__(self, task: Task) -> None:
        self._task = task
        # keep_in_memory writes no file, but the base class still makes its folder
        super().__init__(
            config_name=task.name, keep_in_memory=True, cache_dir=tempfile.gettempdir()
        )

    def _info(self) -> evaluate.MetricInfo:
        kind = datasets.Value("float32" if self._task.is_regression else "int64")
        return evaluate.MetricInfo(
            description=f"Metrics of {self._task.title}: {', '.join(self._task.metrics)}",
            citation="Wang et al. 2019, GLUE, arXiv:1804.07461",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(
        self, predictions: Sequence[float], references: Sequence[float]
    ) -> dict[str, float]:
        left, right = np.asarray(predictions), np.asarray(references)
        return {name: METRICS[name](left, right) for name in self._task.metrics}

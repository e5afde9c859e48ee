"""GLUE's metrics and macro F1: of one model, and of thousands of resamples at once.

A constant prediction has F1, Matthews correlation or rank correlation 0 where the formula gives
0 / 0, as is the field's custom; it is never NaN.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping

import numpy as np

from spafit_bench.data.tasks import Task

_TINY = 1e-12


def _accuracy(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return weights @ np.mean(models == labels, axis=0) / weights.sum(axis=1)


def _f1(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F1 of class 1."""
    hits = weights @ ((models == 1) & (labels == 1)).T.astype(np.float64)
    positives = weights @ ((models == 1) * 1.0 + (labels == 1)).T
    return np.mean(2 * hits / np.maximum(positives, 1), axis=1)


def _f1_macro(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that are among the labels or the predictions of a resample."""
    classes = np.union1d(np.unique(models), np.unique(labels))
    scores = []
    for model in models:
        hits = [weights @ ((model == c) & (labels == c)) for c in classes]
        positives = [weights @ ((model == c) * 1.0 + (labels == c)) for c in classes]
        f1 = 2 * np.array(hits) / np.maximum(positives, 1)
        scores.append(f1.sum(axis=0) / np.maximum(np.sum(np.array(positives) > 0, axis=0), 1))
    return np.mean(scores, axis=0)


def _pearson(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pearson correlation; of the classes 0 and 1 it is Matthews' (1975)."""
    return np.mean([_correlation(weights, model, labels) for model in models], axis=0)


def _spearman(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    truth = _ranks(weights, labels)
    return np.mean([_correlation(weights, _ranks(weights, m), truth) for m in models], axis=0)


def _correlation(weights: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Weighted correlation of values (n,), or (resamples, n) if they differ between resamples."""
    x, y, total = left - np.mean(left), right - np.mean(right), weights.sum(axis=1)

    def mean(product: np.ndarray, values: np.ndarray) -> np.ndarray:
        dot = product @ values if values.ndim == 1 else np.einsum("rn,rn->r", product, values)
        return dot / total

    wx, wy = weights * x, weights * y
    mean_x, mean_y = wx.sum(axis=1) / total, wy.sum(axis=1) / total
    spread_x, spread_y = mean(wx, x) - mean_x**2, mean(wy, y) - mean_y**2
    varied = (spread_x > _TINY * np.mean(x * x)) & (spread_y > _TINY * np.mean(y * y))
    scale = np.sqrt(np.where(varied, spread_x * spread_y, 1))
    return np.where(varied, (mean(wx, y) - mean_x * mean_y) / scale, 0)


def _ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean ranks (resamples, n) in each resample, where value i occurs `weights[:, i]` times."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    return np.take(np.cumsum(sizes, axis=1) - sizes / 2 + 0.5, group, axis=1)


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews_correlation": _pearson,
    "pearson": _pearson,
    "spearman": _spearman,
}
"""(resamples, n) weights, (models, n) predictions, (n,) labels -> (resamples,) mean over models."""


def score(metric: str, predictions: np.ndarray, references: np.ndarray) -> float:
    """Return a metric of one model, native scale; correlations are numpy's and scipy's."""
    if metric not in ("matthews_correlation", "pearson", "spearman"):
        ones = np.ones((1, len(references)))
        return float(METRICS[metric](ones, predictions[None], references)[0])
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    if metric == "matthews_correlation":
        return float(np.corrcoef(predictions, references)[0, 1])
    from scipy import stats

    left, right = predictions.astype(np.float64), references.astype(np.float64)
    found = stats.pearsonr(left, right) if metric == "pearson" else stats.spearmanr(left, right)
    return float(found[0])


def score_predictions(
    task: Task, predictions: np.ndarray, references: np.ndarray
) -> dict[str, float]:
    """Return every metric of a task through the `evaluate` library's interface.

    The formulas are this module's, so that no metric script is fetched.
    """
    import datasets
    import evaluate

    class GlueMetric(evaluate.Metric):  # type: ignore[misc]
        def _info(self) -> evaluate.MetricInfo:
            kind = datasets.Value("float32" if task.is_regression else "int64")
            return evaluate.MetricInfo(
                description=f"Metrics of {task.title}: {', '.join(task.metrics)}",
                citation="Wang et al. 2019, GLUE, arXiv:1804.07461",
                features=datasets.Features({"predictions": kind, "references": kind}),
            )

        def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
            left, right = np.asarray(predictions), np.asarray(references)
            return {name: score(name, left, right) for name in task.metrics}

    # The library makes a folder even if it keeps everything in memory. A fixed place in the
    # system's temporary folder would belong to the first user of the machine.
    with tempfile.TemporaryDirectory(prefix="spafit-bench-") as folder:
        metric = GlueMetric(config_name=task.name, keep_in_memory=True, cache_dir=folder)
        return metric.compute(predictions=predictions.tolist(), references=references.tolist())

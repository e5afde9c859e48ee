"""Metrics of weighted examples, for many weightings at once: the inside of a bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

_TINY = 1e-12


def _accuracy(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return weights @ np.mean(models == labels, axis=0) / weights.sum(axis=1)


def _f1(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    hits = weights @ ((models == 1) & (labels == 1)).T.astype(np.float64)
    positives = weights @ ((models == 1) * 1.0 + (labels == 1)).T
    return np.mean(2 * hits / np.maximum(positives, 1), axis=1)


def _f1_macro(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that a resample, or what a model says of it, has."""
    classes = np.union1d(np.unique(models), np.unique(labels))
    scores = []
    for model in models:
        hits = [weights @ ((model == c) & (labels == c)) for c in classes]
        positives = [weights @ ((model == c) * 1.0 + (labels == c)) for c in classes]
        f1 = 2 * np.array(hits) / np.maximum(positives, 1)
        scores.append(f1.sum(axis=0) / np.maximum(np.sum(np.array(positives) > 0, axis=0), 1))
    return np.mean(scores, axis=0)


def _pearson(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pearson correlation, 0 for a constant; of classes 0 and 1 it is Matthews'."""
    return np.mean([_correlation(weights, model, labels) for model in models], axis=0)


def _spearman(weights: np.ndarray, models: np.ndarray, labels: np.ndarray) -> np.ndarray:
    truth = _ranks(weights, labels)
    return np.mean([_correlation(weights, _ranks(weights, m), truth) for m in models], axis=0)


def _correlation(weights: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Weighted correlation of values (n,), or (resamples, n) where they follow the weights."""
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

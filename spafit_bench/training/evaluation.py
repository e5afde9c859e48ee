"""Predictions and scores of a model on the splits of a task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from spafit_bench.base import distributed
from spafit_bench.data.tasks import Task
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.encoding import EncodedSplit, collate, evaluation_batches
from spafit_bench.results.record import Confusion, SplitMetrics

EVALUATION_TOKENS = {"cpu": 2048, "cuda": 16_384}
"""Tokens of one forward pass, at most: more gain no speed, and cost memory."""
COLLAPSED_SPREAD = 1e-3
"""A regression whose predictions span less than this share of the label range is collapsed."""


@dataclass(frozen=True)
class Predictions:
    """What a model says of one split."""

    logits: np.ndarray
    """(num_examples, num_outputs) float32, in the order of the data."""
    num_tokens: int
    time_s: float

    def labels(self, task: Task) -> np.ndarray:
        """Return classes (num_examples,) int64, or scores (num_examples,) float32."""
        return self.logits[:, 0] if task.is_regression else self.logits.argmax(axis=1)


class Stopped(KeyboardInterrupt):
    """Stopped between two batches, as was asked for: whoever trains can still keep its state."""


@torch.no_grad()
def predict(
    adapted: AdaptedModel,
    split: EncodedSplit,
    *,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> Predictions:
    """Run the model over a split in evaluation mode; several processes share its batches.

    Args:
        adapted: the model.
        split: labels are not looked at.
        batch_size: examples per forward pass.
        stop: asked after every batch; not of several processes, which would have to agree.

    Raises:
        Stopped: `stop` said so.
    """
    adapted.model.eval()
    adapted.engine.refresh()
    start = time.perf_counter()
    pieces, order = [], []
    device = adapted.numerics.device
    most = EVALUATION_TOKENS[device.type]
    batches = evaluation_batches(split, batch_size, max_tokens=most)
    waiting = batches[distributed.my_share()][::-1]
    while waiting:
        indices = waiting.pop()
        try:
            batch = collate(split, indices, device)
            pieces.append(adapted.engine.logits(batch))
        except torch.OutOfMemoryError:
            if len(indices) == 1:
                raise
            waiting += np.array_split(indices, 2)[::-1]
        else:
            order.append(indices)
        if distributed.size() == 1 and stop():
            raise Stopped
    mine = (np.concatenate(order), torch.cat(pieces).cpu().numpy()) if order else None
    shares = [share for share in distributed.gather(mine) if share is not None]
    together = np.concatenate([share_logits for _, share_logits in shares])
    logits = np.empty_like(together)
    logits[np.concatenate([indices for indices, _ in shares])] = together
    return Predictions(logits, int(split.offsets[-1]), time.perf_counter() - start)


def score_splits(
    task: Task, predictions: Mapping[str, Predictions], splits: Mapping[str, EncodedSplit]
) -> SplitMetrics:
    """Compute every metric of every predicted split that has labels, native scale."""
    from spafit_bench.data.metrics import score_predictions

    return {
        name: score_predictions(task, predicted.labels(task), splits[name].targets)
        for name, predicted in predictions.items()
        if splits[name].labels is not None
    }


def confusion_matrices(
    task: Task, predictions: Mapping[str, Predictions], splits: Mapping[str, EncodedSplit]
) -> dict[str, Confusion] | None:
    """Count the examples of each split by true and by predicted class; None for a regression."""
    if task.is_regression:
        return None
    counts = {}
    for name, predicted in predictions.items():
        if splits[name].labels is not None:
            matrix = np.zeros((task.num_labels, task.num_labels), dtype=np.int64)
            np.add.at(matrix, (splits[name].targets, predicted.labels(task)), 1)
            counts[name] = Confusion.of(task.labels, tuple(map(tuple, matrix.tolist())))
    return counts


def majority_scores(task: Task, splits: Mapping[str, EncodedSplit]) -> SplitMetrics:
    """Score the prediction of train's most frequent class (or mean) for every example."""
    train = splits["train"].targets
    outputs = np.zeros(task.num_labels, dtype=np.float32)
    if task.is_regression:
        outputs[0] = train.mean()
    else:
        outputs[np.bincount(train).argmax()] = 1
    predictions = {
        name: Predictions(np.tile(outputs, (len(split), 1)), 0, 0.0)
        for name, split in splits.items()
        if name != "train"
    }
    return score_splits(task, predictions, splits)


def is_collapsed(
    task: Task, predictions: Mapping[str, Predictions], splits: Mapping[str, EncodedSplit]
) -> bool:
    """Tell whether the predictions on any dev split are (nearly) one constant."""
    for name in task.dev_splits:
        low, high = task.label_range or (0.0, 0.0)
        if task.is_regression and task.label_range is None:
            low, high = splits[name].targets.min(), splits[name].targets.max()
        if np.ptp(predictions[name].labels(task)) <= COLLAPSED_SPREAD * (high - low):
            return True
    return False

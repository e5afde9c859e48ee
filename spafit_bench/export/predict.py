"""Labels for new texts from a restored run, in batches, without holding them all."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.data.load import Split
from spafit_bench.data.tasks import Task
from spafit_bench.data.text_input import Texts, TextSource, read_texts
from spafit_bench.export.restore import Base, RestoredRun, load_run
from spafit_bench.models.encoding import encode, load_tokenizer
from spafit_bench.results.store import Store
from spafit_bench.training import memory
from spafit_bench.training.evaluation import predict

log = logging.getLogger(__name__)

POOL_BATCHES = 16
"""Batches read at once, and sorted by length among themselves, where texts do not arrive slowly."""

FORMATS = ("tsv", "jsonl", "json")


@dataclass(frozen=True)
class TextPrediction:
    """What the model says of one example."""

    index: int
    """Position in the input, from 0."""
    texts: Texts
    logits: np.ndarray
    """(num_outputs,) float32."""

    def answer(self, task: Task) -> dict[str, Any]:
        """Return label and probabilities, or the score of a regression as the model gives it."""
        if task.is_regression:
            return {"score": float(self.logits[0])}
        probabilities = softmax(self.logits)
        best = int(self.logits.argmax())
        return {
            "label": task.labels[best],
            "probability": float(probabilities[best]),
            "probabilities": dict(zip(task.labels, map(float, probabilities), strict=True)),
        }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, (..., num_classes) float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponential: np.ndarray = np.exp(shifted)
    return exponential / exponential.sum(axis=-1, keepdims=True)


def predict_run(
    store: Store,
    run: str,
    source: TextSource,
    base: Base,
    form: str,
    batch_size: int | None = None,
) -> Iterator[str]:
    """Predict texts with a stored run; yield output in `form` as it is ready.

    Raises:
        UserError: an unknown form, the run cannot be restored, or a text cannot be read.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form}: choices: {', '.join(FORMATS)}")
    memory.keep_freed_memory()
    restored = load_run(store, run, base)
    for warning in restored.warnings:
        log.warning("%s", warning)
    size = batch_size or restored.config.train.eval_batch_size
    at_once = size if source.is_stream else size * POOL_BATCHES
    examples = read_texts(restored.task, source)
    predictions = predict_texts(restored, examples, batch_size=size, at_once=at_once)
    return rendered(predictions, restored, form)


def predict_texts(
    restored: RestoredRun, examples: Iterable[Texts], *, batch_size: int, at_once: int
) -> Iterator[TextPrediction]:
    """Predict examples in order.

    Args:
        restored: the model; texts are cut to the length that it was trained with.
        examples: one text, or two for a pair.
        batch_size: examples per forward pass.
        at_once: examples that are read before the first of them is answered.
    """
    tokenizer = load_tokenizer(restored.checkpoint)
    remaining, index = iter(examples), 0
    while chunk := list(islice(remaining, at_once)):
        split = Split(
            texts=tuple(zip(*map(restored.task.compose, chunk), strict=True)), labels=None
        )
        encoded = encode(split, tokenizer, max_length=restored.config.train.max_length)
        logits = predict(restored.adapted, encoded, batch_size=batch_size).logits
        for texts, outputs in zip(chunk, logits, strict=True):
            yield TextPrediction(index, texts, outputs)
            index += 1


def rendered(
    predictions: Iterable[TextPrediction], restored: RestoredRun, format_: str
) -> Iterator[str]:
    """Write predictions as text, piece by piece.

    Args:
        predictions: in order.
        restored: for the task's names.
        format_: `tsv` (a header, then label and probability, or score, and the texts), `jsonl` (an
            object per example) or `json` (one object, which appears only when it is complete).

    Raises:
        UserError: no such format.
    """
    if format_ not in FORMATS:
        raise UserError(f"--format {format_}: {nearest(format_, FORMATS)}")
    forms = {"tsv": _tsv, "jsonl": _jsonl, "json": _json}
    return forms[format_](predictions, restored)


def _tsv(predictions: Iterable[TextPrediction], restored: RestoredRun) -> Iterator[str]:
    task = restored.task
    answers = ("score",) if task.is_regression else ("label", "probability")
    yield _line((*answers, *task.text_columns))
    for prediction in predictions:
        answer = prediction.answer(task)
        shown = [f"{v:.4f}" if isinstance(v := answer[key], float) else v for key in answers]
        yield _line((*shown, *(" ".join(text.split()) for text in prediction.texts)))


def _line(cells: Iterable[str]) -> str:
    return "\t".join(cells) + "\n"


def _jsonl(predictions: Iterable[TextPrediction], restored: RestoredRun) -> Iterator[str]:
    for prediction in predictions:
        yield json.dumps(_body(prediction, restored.task), ensure_ascii=False) + "\n"


def _body(prediction: TextPrediction, task: Task) -> dict[str, Any]:
    texts = dict(zip(task.text_columns, prediction.texts, strict=True))
    return {"index": prediction.index} | prediction.answer(task) | texts


def _json(predictions: Iterable[TextPrediction], restored: RestoredRun) -> Iterator[str]:
    """Write one object; it waits on disk until it is whole, so that it is never half of one."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(",\n" if prediction.index else "")
            file.write(json.dumps(_body(prediction, restored.task), ensure_ascii=False))
        file.seek(0)
        head = {"run_id": restored.record.run_id, "task": restored.task.name}
        yield json.dumps(head, ensure_ascii=False)[:-1] + ', "predictions": [\n'
        yield from file
        yield "\n]}\n"

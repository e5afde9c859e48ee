"""Labels for new texts from a restored run, in batches, without holding them all."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from spafit_bench.base.durable import replacing
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.base.escaping import json_text, printable
from spafit_bench.data.load import Split
from spafit_bench.data.metrics import score_predictions
from spafit_bench.data.tasks import Task
from spafit_bench.data.text_input import Texts, TextSource, read_examples, read_texts
from spafit_bench.export.restore import Base, RestoredRun, restore
from spafit_bench.models.encoding import encode, load_tokenizer
from spafit_bench.results.lookup import FoundRun
from spafit_bench.results.record import Confusion
from spafit_bench.training import memory
from spafit_bench.training.evaluation import predict

log = logging.getLogger(__name__)

POOL_BATCHES = 16
"""Batches read at once, and sorted by length among themselves, where texts do not arrive slowly."""

FORMATS = ("tsv", "jsonl", "json")
OUT_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


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
    found: FoundRun, source: TextSource, base: Base, form: str, batch_size: int | None = None
) -> Iterator[str]:
    """Predict texts with a stored run; yield output in `form` as it is ready.

    Raises:
        UserError: an unknown form, the run cannot be restored, or a text cannot be read.
    """
    if form not in FORMATS:
        raise UserError(f"--format {form}: choices: {', '.join(FORMATS)}")
    restored = _restored(found, base)
    size = batch_size or restored.config.train.eval_batch_size
    at_once = size if source.is_stream else size * POOL_BATCHES
    examples = read_texts(restored.task, source)
    predictions = predict_texts(restored, examples, batch_size=size, at_once=at_once)
    return rendered(predictions, restored, form)


def _restored(found: FoundRun, base: Base) -> RestoredRun:
    memory.keep_freed_memory()
    restored = restore(found, base)
    for warning in restored.warnings:
        log.warning("%s", warning)
    return restored


@dataclass(frozen=True)
class Scores:
    """What the predictions of a file with labels are worth."""

    metrics: dict[str, float]
    confusion: Confusion | None
    """None for a regression."""


def predict_file(
    found: FoundRun, source: TextSource, base: Base, out: Path, batch_size: int | None = None
) -> tuple[int, Scores | None]:
    """Write a file with all columns of the input, the predictions and their probabilities.

    Returns:
        The number of rows, and the scores if the input has the task's label column.

    Raises:
        UserError: the ending of `out` is unknown, the run cannot be restored, a text or label
            cannot be read, or `out` cannot be written.
    """
    if out.suffix.lower() not in OUT_ENDINGS:
        raise UserError(f"--out {out}: the name must end in {', '.join(OUT_ENDINGS)}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist")
    restored = _restored(found, base)
    task = restored.task
    examples = list(read_examples(task, source))
    rows = [row for _, row in examples]
    truth = _labels(task, rows, source.name)
    size = batch_size or restored.config.train.eval_batch_size
    texts = (texts for texts, _ in examples)
    predictions = predict_texts(restored, texts, batch_size=size, at_once=size * POOL_BATCHES)
    answers = list(predictions)
    _write_table(out, _columns(task, rows, answers))
    if truth is None or not rows:
        return len(rows), None
    logits = np.stack([answer.logits for answer in answers])
    if task.is_regression:
        return len(rows), Scores(score_predictions(task, logits[:, 0], truth), None)
    classes = logits.argmax(axis=1)
    counts = np.zeros((task.num_labels, task.num_labels), dtype=np.int64)
    np.add.at(counts, (truth, classes), 1)
    confusion = Confusion.of(task.labels, tuple(map(tuple, counts.tolist())))
    return len(rows), Scores(score_predictions(task, classes, truth), confusion)


def _labels(task: Task, rows: Sequence[dict[str, Any]], where: str) -> np.ndarray | None:
    """Return the labels of the rows; None if there are none, or only one placeholder such as -1."""
    if not rows or task.label_column not in rows[0]:
        return None
    cells = [str(row.get(task.label_column, "")).strip() for row in rows]
    labels: list[float] = []
    for number, cell in enumerate(cells, start=1):
        if cell in task.labels:
            labels.append(task.labels.index(cell))
            continue
        try:
            label = float(cell)
        except ValueError:
            label = math.nan
        is_valid = math.isfinite(label) if task.is_regression else label in range(task.num_labels)
        if not is_valid:
            if len(set(cells)) == 1:
                return None
            valid = "a number" if task.is_regression else ", ".join(task.labels)
            raise UserError(
                f"{where}, row {number}, column {task.label_column!r}: {cell[:40]!r} is no label; "
                f"valid: {valid}. Remove the column to predict without scores"
            )
        labels.append(label)
    return np.asarray(labels, dtype=np.float32 if task.is_regression else np.int64)


def _columns(
    task: Task, rows: Sequence[dict[str, Any]], found: Sequence[TextPrediction]
) -> dict[str, list[Any]]:
    """Return the user's columns, then ours, under names that the user's do not have."""
    columns = {name: [row.get(name) for row in rows] for row in rows[:1] for name in row}
    answers = [prediction.answer(task) for prediction in found]
    ours = {"prediction": "score" if task.is_regression else "label"}
    if not task.is_regression:
        ours["probability"] = "probability"
    for name, key in ours.items():
        number = 2
        free = name
        while free in columns:
            free, number = f"{name}_{number}", number + 1
        columns[free] = [answer[key] for answer in answers]
    return columns


def _write_table(out: Path, columns: dict[str, list[Any]]) -> None:
    import pandas as pd

    table = pd.DataFrame(columns)
    try:
        with replacing(out) as path:
            match out.suffix.lower():
                case ".parquet":
                    table.to_parquet(path, index=False)
                case ".jsonl":
                    table.to_json(path, orient="records", lines=True, force_ascii=False)
                case ending:
                    table.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from None


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
        yield _line((*shown, *prediction.texts))


def _line(cells: Iterable[str]) -> str:
    """Return one line for a terminal: no cell has a tab, a line break or a control character."""
    return "\t".join(printable(" ".join(cell.split())) for cell in cells) + "\n"


def _jsonl(predictions: Iterable[TextPrediction], restored: RestoredRun) -> Iterator[str]:
    for prediction in predictions:
        yield json_text(_body(prediction, restored.task)) + "\n"


def _body(prediction: TextPrediction, task: Task) -> dict[str, Any]:
    texts = dict(zip(task.text_columns, prediction.texts, strict=True))
    return {"index": prediction.index} | prediction.answer(task) | texts


def _json(predictions: Iterable[TextPrediction], restored: RestoredRun) -> Iterator[str]:
    """Write one object; it waits on disk until it is whole, so that it is never half of one."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(",\n" if prediction.index else "")
            file.write(json_text(_body(prediction, restored.task)))
        file.seek(0)
        head = {"run_id": restored.record.run_id, "task": restored.task.name}
        yield json_text(head)[:-1] + ', "predictions": [\n'
        yield from file
        yield "\n]}\n"

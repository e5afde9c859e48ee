"""From a grammar to splits: rows that are all different, numbered, with test labels hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scripts.mini_glue.acceptability import acceptability
from scripts.mini_glue.answers import answerability
from scripts.mini_glue.draw import Draw
from scripts.mini_glue.inference import diagnosis, inference, recognition
from scripts.mini_glue.lexicon import STAGE_AND_SCIENCE
from scripts.mini_glue.paraphrase import duplicate, paraphrase, similarity
from scripts.mini_glue.reference import pronoun_reference
from scripts.mini_glue.sentiment import sentiment

Row = dict[str, str | int | float]
Sample = tuple[tuple[str, ...], int | float]
Sampler = Callable[[Draw], Sample]

HIDDEN = -1
"""The label of every test row."""


def mismatched(draw: Draw) -> Sample:
    """Draw an MNLI pair from the genres that its train split does not have."""
    return inference(draw, STAGE_AND_SCIENCE)


@dataclass(frozen=True)
class Split:
    """How many rows of a split to draw, and from which grammar."""

    name: str
    rows: int
    sampler: Sampler


def _usual(sampler: Sampler, train: int, dev: int = 250, test: int = 250) -> tuple[Split, ...]:
    return (
        Split("train", train, sampler),
        Split("validation", dev, sampler),
        Split("test", test, sampler),
    )


SPLITS: dict[str, tuple[Split, ...]] = {
    "cola": _usual(acceptability, 1200),
    "sst2": _usual(sentiment, 1600),
    "mrpc": _usual(paraphrase, 1000),
    "stsb": _usual(similarity, 1000),
    "qqp": _usual(duplicate, 1200),
    "mnli": (
        Split("train", 1500, inference),
        Split("validation_matched", 250, inference),
        Split("validation_mismatched", 250, mismatched),
        Split("test_matched", 250, inference),
        Split("test_mismatched", 250, mismatched),
    ),
    "qnli": _usual(answerability, 1000),
    "rte": _usual(recognition, 800),
    "wnli": _usual(pronoun_reference, 600, dev=200, test=200),
    "ax": (Split("test", 250, diagnosis),),
}


def text_key(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return what identifies a text or a pair of texts, in either order."""
    return tuple(sorted(texts))


def draw_splits(
    task: str, columns: tuple[str, ...], *, hidden: bool = True
) -> dict[str, list[Row]]:
    """Draw a task's splits; no text or pair of texts appears twice, within splits or across.

    Args:
        task: a key of `SPLITS`.
        columns: the names of the task's text columns.
        hidden: whether test rows have the label -1 in place of the true one.
    """
    seen: set[tuple[str, ...]] = set()
    splits: dict[str, list[Row]] = {}
    for split in SPLITS[task]:
        draw = Draw(f"mini-glue/1/{task}/{split.name}")
        hide = hidden and split.name.startswith("test")
        rows: list[Row] = []
        while len(rows) < split.rows:
            texts, label = split.sampler(draw)
            key = text_key(texts)
            if key in seen:
                continue
            seen.add(key)
            row: Row = dict(zip(columns, texts, strict=True))
            row["label"] = _hidden(label) if hide else label
            row["idx"] = len(rows)
            rows.append(row)
        splits[split.name] = rows
    return splits


def _hidden(label: int | float) -> int | float:
    return type(label)(HIDDEN)

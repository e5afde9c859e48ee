"""Mini-GLUE: the nine tasks of GLUE, small, made by a grammar, for runs that take seconds.

Columns, labels and splits are those of `nyu-mll/glue`; the text is this package's own. Labels
follow from what the sentences mean: in most tasks a bag of words does not tell them. It is the same
to the byte everywhere. Scores on it say that a method learns, and nothing about GLUE. WNLI can be
learned here, unlike the real one, whose dev set is adversarial to its train set.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from scripts.mini_glue.corpus import Passage, passages
from scripts.mini_glue.splits import SPLITS, Row, draw_splits, text_key
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.data.tasks import TASKS

__all__ = ["AX", "Passage", "Row", "generate", "pretraining_text"]

AX = "ax"
"""The diagnostic test set, in MNLI's columns."""


def generate(task: str) -> dict[str, list[Row]]:
    """Return the splits of a task by name, each a list of rows.

    A row has the task's text columns, `label` (an int; a float in 0..5 for STS-B; -1 in every test
    split) and `idx` (0, 1, ... within the split). `ax` has a `test` split alone.

    Raises:
        UserError: `task` is neither a GLUE task nor `ax`.
    """
    if task not in SPLITS:
        raise UserError(f"mini-GLUE has no task {task!r}: {nearest(task, SPLITS)}")
    return draw_splits(task, _columns(task))


def pretraining_text(count: int, name: str = "0") -> Iterator[Passage]:
    """Yield `count` passages to pretrain on, none of which is a dev or test row of a task.

    Args:
        count: how many passages.
        name: the stream's seed; streams of different names are independent.
    """
    held_out = {
        text_key(tuple(str(row[column]) for column in _columns(task)))
        for task in SPLITS
        for split, rows in generate(task).items()
        if split != "train"
        for row in rows
    }
    fresh = (passage for passage in passages(name) if text_key(passage.texts) not in held_out)
    return islice(fresh, count)


def _columns(task: str) -> tuple[str, ...]:
    return TASKS["mnli" if task == AX else task].text_columns

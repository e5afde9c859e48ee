"""Split GLUE's dev sets of MNLI, QNLI and QQP into train and dev sets.

    python scripts/derive_glue.py GLUE_FOLDER glue-derived

Use this where the official train files of these tasks are missing. Input and output have the hub's
layout. The text is GLUE's, but the splits are not: a score on them is not a GLUE score, and tables
mark it. MNLI trains on rows of mismatched dev and keeps matched dev complete. No QNLI question is
in both train and dev. `idx` is the row's number in the original file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

Splits = dict[str, pd.DataFrame]


def shuffled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in the fixed random order of the published results."""
    return rows.iloc[np.random.RandomState(0).permutation(len(rows))]


def mnli(matched: pd.DataFrame, mismatched: pd.DataFrame) -> Splits:
    """Keep all of matched dev and 1,000 rows of mismatched dev; train on the other rows."""
    rows = shuffled(mismatched)
    return {
        "train": rows[:-1000],
        "validation_matched": matched,
        "validation_mismatched": rows[-1000:],
    }


def qnli(dev: pd.DataFrame) -> Splits:
    """Use random questions with all their sentences as dev, at most 1,000 rows."""
    rows = shuffled(dev)
    sentences = rows["question"].value_counts()
    questions = rows["question"].unique()
    order = questions[np.random.default_rng(0).permutation(len(questions))]
    in_dev = rows["question"].isin(order[sentences[order].cumsum() <= 1000])
    return {"train": rows[~in_dev], "validation": rows[in_dev]}


def qqp(dev: pd.DataFrame) -> Splits:
    """Use 4,000 rows as dev."""
    rows = shuffled(dev)
    return {"train": rows[:-4000], "validation": rows[-4000:]}


def derive(glue: Path, out: Path) -> None:
    """Write the three tasks' folders."""

    def read(task: str, split: str) -> pd.DataFrame:
        return pd.read_parquet(glue / task / f"{split}-00000-of-00001.parquet")

    tasks = {
        "mnli": mnli(read("mnli", "validation_matched"), read("mnli", "validation_mismatched")),
        "qnli": qnli(read("qnli", "validation")),
        "qqp": qqp(read("qqp", "validation")),
    }
    for task, splits in tasks.items():
        (out / task).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            rows.to_parquet(out / task / f"{split}-00000-of-00001.parquet", index=False)


if __name__ == "__main__":
    derive(Path(sys.argv[1]), Path(sys.argv[2]))

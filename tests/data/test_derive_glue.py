"""Train sets carved out of dev sets: all rows, none twice, and never taken for GLUE."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from scripts.derive_glue import derive
from spafit_bench.data.load import load_task_data
from spafit_bench.data.tasks import TASKS
from spafit_bench.results.store import Store
from tests.conftest import REPOSITORY

GLUE = REPOSITORY.parent / "shared" / "glue"
PUBLISHED = REPOSITORY / "results" / "minilm-l6-derived"
LARGE = {
    "mnli": (["premise", "hypothesis"], ["validation_matched", "validation_mismatched"]),
    "qnli": (["question", "sentence"], ["validation"]),
    "qqp": (["question1", "question2"], ["validation"]),
}


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """Dev files of the three tasks: 4,500 rows each, with first texts that come again."""
    for task, (columns, splits) in LARGE.items():
        (tmp_path / task).mkdir()
        for split in splits:
            first = [f"{split} {row * row % 2000}" for row in range(4500)]
            texts = {columns[0]: first, columns[1]: [f"text {row}" for row in range(4500)]}
            rows = pd.DataFrame(texts | {"label": [0, 1] * 2250, "idx": range(4500)})
            rows.to_parquet(tmp_path / task / f"{split}-00000-of-00001.parquet")
    return tmp_path


def test_every_row_is_in_one_split(glue: Path, tmp_path: Path) -> None:
    """Of QNLI's questions, too; what is loaded is not official."""
    derive(glue, tmp_path / "derived")
    for task in LARGE:
        data = load_task_data(TASKS[task], str(tmp_path / "derived"))
        assert not data.official_split
        folder = tmp_path / "derived" / task
        parts = [pd.read_parquet(file) for file in folder.glob("[tv]*.parquet")]
        assert sum(len(part) for part in parts) == 4500 * len(LARGE[task][1])
    qnli = tmp_path / "derived" / "qnli"
    train = pd.read_parquet(qnli / "train-00000-of-00001.parquet")
    dev = pd.read_parquet(qnli / "validation-00000-of-00001.parquet")
    assert 900 < len(dev) <= 1000
    assert not set(train["question"]) & set(dev["question"])


@pytest.mark.skipif(not GLUE.is_dir(), reason=f"no official GLUE at {GLUE}")
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="this checkout has no results")
def test_published_runs_had_these_rows(tmp_path: Path) -> None:
    """What a record says of its data is what the script makes of GLUE."""
    derive(GLUE, tmp_path)
    for record in Store(PUBLISHED).records():
        data = load_task_data(TASKS[record.task], str(tmp_path))
        assert record.data.fingerprint == data.fingerprint, record.run_id

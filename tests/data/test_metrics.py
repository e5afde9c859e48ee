"""Metrics agree with scikit-learn and scipy, and leave nothing in the temporary folder."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from spafit_bench.data.metrics import METRICS, score, score_predictions
from spafit_bench.data.tasks import get_task

FORMULAS = {
    "accuracy": lambda x, y: accuracy_score(y, x),
    "f1": lambda x, y: f1_score(y, x),
    "f1_macro": lambda x, y: f1_score(y, x, average="macro"),
    "matthews_correlation": lambda x, y: matthews_corrcoef(y, x),
    "pearson": lambda x, y: pearsonr(x, y)[0],
    "spearman": lambda x, y: spearmanr(x, y)[0],
}


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_are_those_of_known_libraries(metric: str) -> None:
    """For one model, and for one model whose examples all have weight one."""
    rng = np.random.default_rng(0)
    classes = 4 if metric in ("accuracy", "f1_macro", "pearson", "spearman") else 2
    x, y = rng.integers(0, classes, (2, 60))
    expected = FORMULAS[metric](x, y)
    assert score(metric, x, y) == pytest.approx(expected)
    assert METRICS[metric](np.ones((2, 60)), x[None], y) == pytest.approx([expected, expected])


@pytest.mark.parametrize("metric", ["f1", "matthews_correlation", "pearson", "spearman"])
def test_a_constant_prediction_scores_zero(metric: str) -> None:
    """The formula gives 0 / 0 there; nothing is ever NaN."""
    constant, labels = np.zeros(4), np.array([0.0, 1.0, 0.0, 1.0])
    assert score(metric, constant, labels) == 0
    assert score(metric, labels, constant) == 0


def test_a_task_has_its_metrics() -> None:
    """Each by its name; scores of a regression pass through 32-bit floats."""
    x, y = np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1])
    found = score_predictions(get_task("mrpc"), x, y)
    assert found == {"f1": pytest.approx(0.8), "accuracy": 0.75}
    assert set(score_predictions(get_task("stsb"), x * 0.1, y * 0.1)) == {"pearson", "spearman"}


def test_nothing_is_left_in_a_shared_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user of the machine may own any name in it."""
    (tmp_path / "glue_metric").write_text("another user's")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    task = dataclasses.replace(get_task("rte"), metrics=("accuracy",))
    assert score_predictions(task, np.array([0, 1]), np.array([0, 0])) == {"accuracy": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["glue_metric"]

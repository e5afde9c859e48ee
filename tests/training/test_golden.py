"""Twenty losses of each method that a refactor may not move.

Model and data are drawn by NumPy; without dropout, so that only the arithmetic counts. A change
that is meant to move them says so in CHANGELOG.md and renews them:

    python -m tests.training.test_golden
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import call_main, write_checkpoint, write_data

LOSSES: dict[str, tuple[float, ...]] = {
    "full": (
        0.68299,
        0.68299,
        0.63864,
        0.60527,
        0.58288,
        0.56382,
        0.54958,
        0.53959,
        0.53214,
        0.52634,
        0.52187,
        0.51849,
        0.51598,
        0.51411,
        0.51268,
        0.51152,
        0.51049,
        0.50952,
        0.50862,
        0.50787,
    ),
    "bitfit": (
        0.68299,
        0.68299,
        0.66854,
        0.64199,
        0.61992,
        0.60173,
        0.58668,
        0.57411,
        0.56358,
        0.55477,
        0.54745,
        0.54143,
        0.53651,
        0.53254,
        0.52937,
        0.52688,
        0.52496,
        0.52352,
        0.52250,
        0.52185,
    ),
    "lora": (
        0.68299,
        0.68299,
        0.65081,
        0.61915,
        0.59778,
        0.57977,
        0.56531,
        0.55396,
        0.54532,
        0.53855,
        0.53311,
        0.52870,
        0.52505,
        0.52200,
        0.51943,
        0.51723,
        0.51532,
        0.51363,
        0.51220,
        0.51111,
    ),
    "spafit": (
        0.68299,
        0.68299,
        0.65843,
        0.61997,
        0.59622,
        0.57967,
        0.56645,
        0.55529,
        0.54582,
        0.53792,
        0.53142,
        0.52608,
        0.52157,
        0.51769,
        0.51429,
        0.51131,
        0.50873,
        0.50654,
        0.50480,
        0.50356,
    ),
}


def losses(method: str, folder: Path) -> list[float]:
    """Mean loss of each of 20 optimizer steps over all 24 examples in two micro-batches."""
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = write_checkpoint(folder / "golden", seed=3, num_hidden_layers=4, **dropout)
    data = write_data(folder / "data", "mrpc")
    inputs = ("--task", "mrpc", "--method", method, "--model", model, "--data", data)
    train = ("--epochs", 20, "--batch-size", 24, "--lr", 2e-3, "--precision", "fp32")
    micro = ("--set", "train.micro_batch_size=12", "--no-predict-test", "--save-weights", "none")
    place = ("--results", folder / "results", "--device", "cpu", "--json")
    answer = call_main("run", *inputs, *train, *micro, *place)
    assert answer.code == 0, answer.err
    return [evaluation["train_loss"] for evaluation in answer.json["evaluations"]]


@pytest.mark.parametrize("method", ["full", "bitfit", "lora", "spafit"])
def test_losses_of_twenty_steps(method: str, tmp_path: Path) -> None:
    """To 1e-4, which leaves room for another machine or library, not for another algorithm."""
    made = losses(method, tmp_path)
    assert len(made) == 20
    np.testing.assert_allclose(made, LOSSES[method], rtol=0, atol=1e-4)


if __name__ == "__main__":
    for name in ("full", "bitfit", "lora", "spafit"):
        with tempfile.TemporaryDirectory() as scratch:
            values = ", ".join(f"{loss:.5f}" for loss in losses(name, Path(scratch)))
        print(f'    "{name}": ({values}),')  # noqa: T201 (this is the script's output)

"""`--log tensorboard` writes curves that can be read back, and changes nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import Answer, Cli

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SHORT = ("--epochs", 2, "--batch-size", 8, "--lr", 1e-3, "--precision", "fp32", "--device", "cpu")


def run(call: Cli, checkpoint: Path, data: Path, *more: object) -> Answer:
    """Train on 24 rows for six steps."""
    given = ("--task", "mrpc", "--method", "bitfit", "--model", checkpoint, "--data", data)
    return call("run", *given, *SHORT, "--json", *more)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read every scalar that a folder's event files hold, as TensorBoard would show it."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_the_curves_are_those_of_the_run(call: Cli, checkpoint: Path, data: Path) -> None:
    """Loss and rate at every step, dev metrics at every evaluation; the same run id as without."""
    record = run(call, checkpoint, data, "--log", "tensorboard").json
    found = curves(Path("results") / "tensorboard" / record["run_id"])
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert found["train/tokens_per_s"][-1][1] > 0
    # Warm-up over ceil(0.1 x 6) = 1 step from 0, then linear to 0 at step 6 (never taken).
    expected = [0, *(1e-3 * (6 - step) / 5 for step in range(1, 6))]
    assert [value for _, value in found["train/learning_rate"]] == pytest.approx(expected)
    for evaluation in record["evaluations"]:
        last = int(evaluation["step"])
        losses = [value for step, value in found["train/loss"] if last - 3 < step <= last]
        assert sum(losses) / 3 == pytest.approx(evaluation["train_loss"], rel=1e-5)
        assert (last, pytest.approx(evaluation["train_loss"])) in found["train/epoch_loss"]
        for metric, value in evaluation["metrics"]["validation"].items():
            assert (last, pytest.approx(value)) in found[f"validation/{metric}"]
    without = run(call, checkpoint, data, "--results", "other").json
    assert without["run_id"] == record["run_id"]
    assert without["metrics"] == record["metrics"]
    assert not (Path("other") / "tensorboard").exists()


def test_a_repeated_run_replaces_its_curves(call: Cli, checkpoint: Path, data: Path) -> None:
    """TensorBoard shows the last attempt alone."""
    for more in ((), ("--force",)):
        record = run(call, checkpoint, data, "--log", "tensorboard", *more).json
    found = curves(Path("results") / "tensorboard" / record["run_id"])
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]


def test_a_sweep_logs_too(call: Cli, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """And `runs gc` takes away the logs of a run that is gone, no others."""
    (tmp_path / "sweep.yaml").write_text(
        f"tasks: [mrpc]\nmethods: [bitfit]\nseeds: [0]\nsettings:\n  model: {checkpoint}\n"
        f"  data: {data}\n  device: cpu\n  precision: fp32\n  train: {{epochs: 1, batch_size: 8}}\n"
    )
    answer = call("sweep", "sweep.yaml", "--log", "tensorboard", "--json")
    assert answer.code == 0, answer.err
    logs = Path("results") / "tensorboard"
    (folder,) = logs.iterdir()
    assert folder.name == answer.json["runs"][0]["run_id"]
    assert len(curves(folder)["train/loss"]) == 3
    (logs / "gone").mkdir()
    assert call("runs", "gc", "--yes", "--json").json["removed"] == ["tensorboard/gone"]
    assert list(logs.iterdir()) == [folder]


def test_a_folder_that_cannot_be_written_ends_the_log(
    call: Cli, checkpoint: Path, data: Path
) -> None:
    """Not the run."""
    Path("results").mkdir()
    (Path("results") / "tensorboard").touch()
    answer = run(call, checkpoint, data, "--log", "tensorboard")
    assert answer.json["status"] == "done"


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--log", "wandb"), "choices: tensorboard"), (("--log", "tensorboard"), "pip install")],
)
def test_what_cannot_be_logged(
    call: Cli, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], message: str
) -> None:
    """An unknown kind, and TensorBoard not installed: said before anything is prepared."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    answer = call("run", "--task", "mrpc", "--method", "full", "--preset", "smoke", *flags)
    assert message in answer.error


def test_a_cluster_keeps_no_logs(call: Cli) -> None:
    """They would stay on its nodes."""
    message = call("sweep", "smoke", "--executor", "ray", "--log", "tensorboard").error
    assert "--executor ray" in message

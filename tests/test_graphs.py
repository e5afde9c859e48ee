"""Replayed steps are held to steps that are computed anew; see `tape` for how, without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli
from models import SPECIAL, VOCABULARY, Silent, build, save_checkpoint
from tape import Tape
from torch import Tensor

from spafit_bench.adapt import AdaptedModel
from spafit_bench.config import TrainSettings
from spafit_bench.encoding import Batch, EncodedSplit, collate
from spafit_bench.gradients import Gradients
from spafit_bench.graphs import CudaRecorder, Graphs
from spafit_bench.train import Hooks, TrainResult, make_optimizer, train

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EXAMPLES, EPOCHS = 40, 6
METHODS = pytest.mark.parametrize("method", ["full", "bitfit", "lora-ii", "spafit-ii"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT of four layers that drops nothing."""
    return save_checkpoint(tmp_path, "bert", form="base", num_layers=4, **NO_DROPOUT)


def split_of(lengths: list[int], *, regression: bool = False) -> EncodedSplit:
    """Random examples of the given lengths."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(len(SPECIAL), VOCABULARY, offsets[-1]).astype(np.int32)
    kinds = rng.integers(0, 2, offsets[-1]).astype(np.uint8)
    classes = rng.integers(0, 2, len(lengths))
    labels = classes.astype(np.float32) if regression else classes
    return EncodedSplit(ids, kinds, offsets, labels, pad_token_id=0)


def settings(micro_batch_size: int | None = None) -> TrainSettings:
    """A few epochs of batches of six, the last of an epoch of four."""
    return TrainSettings(
        learning_rate=2e-3,
        epochs=EPOCHS,
        batch_size=6,
        micro_batch_size=micro_batch_size,
        max_length=40,
        warmup=0.1,
        weight_decay=0.01,
        max_grad_norm=1.0,
        adam_eps=1e-6,
    )


def trained(
    adapted: AdaptedModel,
    graphs: Graphs | None = None,
    micro_batch_size: int | None = None,
    split: EncodedSplit | None = None,
) -> TrainResult:
    """Train on examples of many lengths."""
    split = split or split_of([3 + number * 7 % 37 for number in range(EXAMPLES)])
    hooks = Hooks(evaluate=dict, observer=Silent())
    return train(adapted, split, settings(micro_batch_size), seed=0, hooks=hooks, graphs=graphs)


def assert_alike(one: AdaptedModel, other: AdaptedModel) -> None:
    """Everything that trained has the same bits."""
    for name, value in one.trained_state().items():
        torch.testing.assert_close(other.trained_state()[name], value, atol=0, rtol=0)


@METHODS
@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_replayed_training_is_the_same(
    method: str, micro_batch_size: int | None, folder: Path
) -> None:
    """Losses and weights to the bit, whole batches or in pieces, of shapes that come and go."""
    plain, replayed = (build(folder, method, engine="fast") for _ in range(2))
    tape = Tape()
    expected = trained(plain, micro_batch_size=micro_batch_size)
    found = trained(replayed, Graphs(tape), micro_batch_size)
    assert tape.recordings > 3
    assert tape.replays > 2 * tape.recordings
    assert found.losses == expected.losses
    assert_alike(plain, replayed)


def test_replayed_regression_is_the_same(folder: Path) -> None:
    """Labels are floating-point numbers, and sequences of one length, so that none is padded."""
    split = split_of([16] * 20, regression=True)
    plain, replayed = (build(folder, "spafit", task="stsb", engine="fast") for _ in range(2))
    expected = trained(plain, split=split)
    found = trained(replayed, Graphs(tape := Tape()), split=split)
    assert tape.recordings == 3  # merged weights, batches of six, those of two
    assert found.losses == expected.losses
    assert_alike(plain, replayed)


def test_kept_first_layers_are_replayed_with_each_batchs_own(folder: Path) -> None:
    """Also what the frozen layers said is an input."""
    adapted = build(folder, "spafit-1-2-i", engine="fast", cache_prefix=True)
    split = split_of([5, 9, 12, 7, 9, 3])
    first, second = (
        replace(batch, prefix=adapted.engine.prefix(batch))  # type: ignore[attr-defined]
        for batch in (collate(split, np.array(i), torch.device("cpu")) for i in ([0, 1], [3, 4]))
    )
    graphs = Graphs(Tape())
    adapted.engine.refresh()

    def logits(batch: Batch) -> Tensor:
        return adapted.engine.logits(batch).detach()

    for batch in (first, second, first, second):
        found = graphs.run("logits", logits, batch)
        assert found is not None
        torch.testing.assert_close(found, logits(batch), atol=0, rtol=0)
    assert len(graphs.recorded) == 1


def test_a_recording_that_fails_is_given_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and training as without."""

    def broken(compute: object) -> tuple[None, object]:
        raise RuntimeError("CUDA error: operation not permitted\nCompile with ...")

    plain, other = (build(folder, "spafit", engine="fast") for _ in range(2))
    expected = trained(plain)
    found = trained(other, Graphs(broken))  # type: ignore[arg-type]
    assert found.losses == expected.losses
    assert_alike(plain, other)
    assert caplog.text.count("given up") == 1
    assert "operation not permitted)" in caplog.text


class OnceOutOfMemory:
    """An engine whose device is out of memory in one forward pass."""

    name = "fast"

    def __init__(self, adapted: AdaptedModel, at: int) -> None:
        """Wrap the engine of a model; `at` counts passes from 1."""
        self.inner, self.at, self.passes = adapted.engine, at, 0

    def refresh(self) -> None:
        """Pass it on."""
        self.inner.refresh()

    def logits(self, batch: Batch) -> Tensor:
        """Fail as CUDA does."""
        self.passes += 1
        if self.passes == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner.logits(batch)


def test_out_of_memory_drops_recordings_and_goes_on(folder: Path) -> None:
    """Gradients get another place then, so that old graphs would write to nowhere."""
    plain, other = (build(folder, "spafit", engine="fast") for _ in range(2))
    device = OnceOutOfMemory(other, at=12)  # eager, or while one is recorded
    graphs = Graphs(tape := Tape())
    found = trained(replace(other, engine=device), graphs)
    expected = trained(plain)
    assert tape.replays
    assert found.losses == pytest.approx(expected.losses, abs=1e-5)


def test_no_more_graphs_than_there_is_room_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes beyond are computed launch by launch."""
    monkeypatch.setattr("spafit_bench.graphs.MOST_GRAPHS", 2)
    plain, other = (build(folder, "spafit", engine="fast") for _ in range(2))
    found = trained(other, Graphs(tape := Tape()))
    assert tape.recordings == 2
    assert found.losses == trained(plain).losses


@METHODS
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_step_waits_for_the_device(method: str, dropout: float, tmp_path: Path) -> None:
    """On a device that has no values, whatever reads one fails; so does what is on another."""
    changes = dict.fromkeys(NO_DROPOUT, dropout)
    folder = save_checkpoint(tmp_path, "bert", form="base", num_layers=4, **changes)
    adapted = build(folder, method, engine="fast", device="meta")
    optimizer = make_optimizer(adapted, settings())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    gradients = Gradients(adapted, split_of([3, 14, 2, 7]), optimizer, scaler, 3)
    adapted.model.train()
    loss = gradients.add(np.array([2, 0, 1, 3]))
    norm = torch.nn.utils.clip_grad_norm_(adapted.trainable().values(), 1.0)
    gradients.clear()
    assert loss.is_meta
    assert norm.is_meta
    with pytest.raises(RuntimeError):
        loss.item()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method", "spafit"), "needs a CUDA GPU, and this run's device is cpu"),
        (("--method", "spafit", "--engine", "plain"), "--engine plain was asked for"),
        (("--method", "0:frozen;1-3:lora(query,r=2,alpha=4,dora)"), "it has no DoRA"),
    ],
)
def test_graphs_are_refused_where_there_can_be_none(
    flags: tuple[str, ...], said: str, call: Cli, folder: Path, data: Path
) -> None:
    """One message that says why."""
    where = ("--model", folder, "--data", data, "--max-length", 32, "--device", "cpu")
    answer = call("run", "--task", "mrpc", *where, *flags, "--cuda-graphs")
    assert "--cuda-graphs" in answer.error
    assert said in answer.error


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@METHODS
def test_replayed_training_is_the_same_on_a_gpu(method: str, folder: Path) -> None:
    """With CUDA's own graphs; sums in another order may differ in the last bits."""
    plain, replayed = (build(folder, method, engine="fast", device="cuda") for _ in range(2))
    graphs = Graphs(CudaRecorder(torch.device("cuda")))
    expected = trained(plain)
    found = trained(replayed, graphs)
    assert not graphs.failed
    assert len(graphs.recorded) > 3
    assert found.losses == pytest.approx(expected.losses, abs=1e-4)

"""Replayed steps are held to steps that are computed anew; see `tape` for how, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spafit_bench.config.run_config import TrainSettings
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.encoding import Batch, EncodedSplit, collate
from spafit_bench.training.cuda_graphs import CudaRecorder, Graphs
from spafit_bench.training.gradients import Gradients
from spafit_bench.training.loop import Session, Training, make_optimizer, train
from tests.conftest import Cli
from tests.support.models import SPECIAL, VOCABULARY, Silent, build, save_checkpoint
from tests.support.tape import Tape

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
) -> Training:
    """Train on examples of many lengths."""
    split = split or split_of([3 + number * 7 % 37 for number in range(EXAMPLES)])
    session = Session(observer=Silent())
    return train(adapted, split, settings(micro_batch_size), seed=0, session=session, graphs=graphs)


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
    assert tape.recordings == 2  # batches of six, those of two
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
        torch.testing.assert_close(found, logits(batch), atol=0, rtol=0)
    assert len(graphs.recorded) == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: operation not permitted\nCompile with ..."),
        torch.OutOfMemoryError("CUDA out of memory"),
        AttributeError("no attribute 'graph_pool_handle'"),
    ],
)
@pytest.mark.parametrize("good", [0, 2])
def test_training_continues_if_recording_fails(
    folder: Path, error: Exception, good: int, caplog: pytest.LogCaptureFixture
) -> None:
    """At the first recording or at a later one: one warning, and the same numbers."""
    tape = Tape()

    def broken(compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        if tape.recordings == good:
            raise error
        return tape(compute)

    plain, other = (build(folder, "spafit", engine="fast") for _ in range(2))
    expected, found = trained(plain), trained(other, Graphs(broken))
    assert tape.recordings == good
    assert found.losses == expected.losses
    assert found.micro_batch_size is None
    assert_alike(plain, other)
    assert caplog.text.count("recording failed, so steps run without") == 1


class Crowded:
    """An engine whose device has no memory for a new shape while there are graphs."""

    name = "fast"

    def __init__(self, adapted: AdaptedModel, graphs: Graphs) -> None:
        """Wrap the engine of a model."""
        self.inner, self.graphs = adapted.engine, graphs
        self.seen: set[object] = set()
        self.failures = 0

    def refresh(self) -> None:
        """Pass it on."""
        self.inner.refresh()

    def logits(self, batch: Batch) -> Tensor:
        """Fail as CUDA does."""
        if self.graphs.recorded and batch.shape not in self.seen:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.add(batch.shape)
        return self.inner.logits(batch)


def test_out_of_memory_drops_recordings_before_it_halves(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Graphs hold memory; without them the batch fits as it is."""
    plain, other = (build(folder, "spafit", engine="fast") for _ in range(2))
    graphs = Graphs(tape := Tape())
    crowded = Crowded(other, graphs)
    split = split_of([3] * 30 + [20] * 6 + [36] * 6)  # two shapes come but once an epoch
    expected = trained(plain, split=split)
    found = trained(replace(other, engine=crowded), graphs, split=split)
    assert crowded.failures == 1
    assert tape.replays
    assert found.micro_batch_size is None
    assert found.losses == expected.losses
    assert_alike(plain, other)
    assert caplog.text.count("continues without CUDA graphs") == 1


def test_no_more_graphs_than_there_is_room_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes beyond are computed launch by launch."""
    monkeypatch.setattr("spafit_bench.training.cuda_graphs.MOST_GRAPHS", 2)
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
        (("--method", "spafit"), "needs a CUDA GPU, but this run uses cpu"),
        (("--method", "spafit", "--engine", "plain"), "this run uses --engine plain"),
        (
            ("--method", "0:frozen;1-3:lora(query,r=2,alpha=4,dora)"),
            "the fast engine does not support DoRA",
        ),
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


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


@NO_GPU
@METHODS
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_replayed_training_is_the_same_on_a_gpu(
    method: str, dropout: float, tmp_path: Path
) -> None:
    """With CUDA's own graphs, which draw as many random numbers as the launches that they hold."""
    changes = dict.fromkeys(NO_DROPOUT, dropout)
    folder = save_checkpoint(tmp_path, "bert", form="base", num_layers=4, **changes)
    plain, replayed = (build(folder, method, engine="fast", device="cuda") for _ in range(2))
    graphs = Graphs(CudaRecorder(torch.device("cuda")))
    torch.manual_seed(0)
    expected = trained(plain)
    torch.manual_seed(0)
    found = trained(replayed, graphs)
    assert graphs.time_s > 0
    assert found.losses == pytest.approx(expected.losses, abs=1e-3)


@NO_GPU
def test_what_waits_is_computed_without_a_graph_on_a_gpu() -> None:
    """The result is right, no graph is left, and the stream is the same as before."""
    batch = collate(split_of([3, 4]), np.arange(2), torch.device("cuda"))
    graphs, stream = Graphs(CudaRecorder(batch.input_ids.device)), torch.cuda.current_stream()

    def waits(given: Batch) -> Tensor:
        return given.input_ids * given.input_ids.sum().item()

    expected = graphs.run("waits", waits, batch)
    assert torch.equal(graphs.run("waits", waits, batch), expected)
    assert graphs.ended
    assert torch.cuda.current_stream() == stream

"""The fast engine is held to the plain one: logits, gradients, dropout, loss curves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spafit_bench.base.errors import UserError
from spafit_bench.config.run_config import TrainSettings
from spafit_bench.methods.method import get_method
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.adapters import LoraLinear
from spafit_bench.models.encoding import Batch, EncodedSplit, Prefix, collate, evaluation_batches
from spafit_bench.models.engines import engine_name
from spafit_bench.models.fused import maps
from spafit_bench.models.fused.kernels import Dropout, keep
from spafit_bench.models.fused.maps import can_pack
from spafit_bench.training.evaluation import predict
from spafit_bench.training.gradients import loss_sum
from spafit_bench.training.loop import Session, Training, train
from tests.support.models import (
    SPECIAL,
    VOCABULARY,
    Silent,
    build,
    plan_checkpoint,
    save_checkpoint,
)

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DISTILBERT_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
FUSED_TYPES = ("bert", "roberta", "electra", "distilbert")
METHODS = (
    "full",
    "bitfit",
    "lora-ii",
    "spafit-ii",
    "0-1:frozen;2:bias(layernorm);3:lora(query+output,r=4,alpha=8,rslora)",
)


def split_of(lengths: list[int], *, segments: bool = True) -> EncodedSplit:
    """Random examples of the given lengths with two classes."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(len(SPECIAL), VOCABULARY, offsets[-1]).astype(np.int32)
    kinds = rng.integers(0, 2, offsets[-1]).astype(np.uint8)
    labels = rng.integers(0, 2, len(lengths))
    return EncodedSplit(ids, kinds if segments else None, offsets, labels, pad_token_id=0)


def checkpoint_of(folder: Path, kind: str, **changes: object) -> Path:
    """A tiny checkpoint of four layers."""
    return save_checkpoint(folder, kind, form="base", num_layers=4, **changes)


def batch_of(split: EncodedSplit) -> Batch:
    """All examples as one batch."""
    return collate(split, np.arange(len(split)), torch.device("cpu"))


def logits_and_gradients(adapted: AdaptedModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """One step's logits and gradients by name."""
    adapted.model.train()
    logits = adapted.engine.logits(batch)
    loss_sum(logits, batch).backward()
    found = {}
    for name, parameter in adapted.trainable().items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
    return logits.detach(), found


@pytest.mark.parametrize("lengths", [[9, 9, 9], [3, 14, 2, 7, 7]])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", FUSED_TYPES)
def test_fast_equals_plain(kind: str, method: str, lengths: list[int], tmp_path: Path) -> None:
    """Logits and every gradient in fp32 agree to 1e-5 on even and ragged batches."""
    no_dropout = DISTILBERT_NO_DROPOUT if kind == "distilbert" else NO_DROPOUT
    folder = checkpoint_of(tmp_path, kind, **no_dropout)
    batch = batch_of(split_of(lengths, segments=kind in ("bert", "electra")))
    expected, expected_gradients = logits_and_gradients(
        build(folder, method, engine="plain"), batch
    )
    fast = build(folder, method, engine="fast")
    logits, gradients = logits_and_gradients(fast, batch)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient,
            expected_gradients[name],
            atol=1e-5,
            rtol=1e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_fast_sees_every_optimizer_step(tmp_path: Path) -> None:
    """After parameters have changed in place, merged weights and biases are formed anew."""
    folder = checkpoint_of(tmp_path, "bert", **NO_DROPOUT)
    batch = batch_of(split_of([5, 9, 4]))
    plain = build(folder, "spafit-ii", engine="plain")
    fast = build(folder, "spafit-ii", engine="fast")
    before = fast.engine.logits(batch)
    for adapted in (plain, fast):
        optimizer = torch.optim.AdamW(adapted.trainable().values(), lr=0.05, fused=True)
        for _ in range(2):
            loss_sum(adapted.engine.logits(batch), batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            adapted.engine.refresh()
    after = fast.engine.logits(batch)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, plain.engine.logits(batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora", "spafit"])
@pytest.mark.parametrize("kind", FUSED_TYPES)
def test_fast_in_bf16_is_as_close_to_fp32_as_plain_is(
    kind: str, method: str, tmp_path: Path
) -> None:
    """Rounding moves the fast engine's logits no further than autocast moves the plain one's."""
    no_dropout = DISTILBERT_NO_DROPOUT if kind == "distilbert" else NO_DROPOUT
    folder = checkpoint_of(tmp_path, kind, **no_dropout)
    batch = batch_of(split_of([9, 5, 12, 7], segments=kind in ("bert", "electra")))
    exact = build(folder, method).engine.logits(batch)
    off = {}
    for engine in ("plain", "fast"):
        adapted = build(folder, method, precision="bf16", engine=engine)
        logits, gradients = logits_and_gradients(adapted, batch)
        off[engine] = logits - exact
        assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert off["fast"].abs().max() < 2 * off["plain"].abs().max() + 1e-3


@pytest.mark.skipif(not can_pack(), reason="this processor has no layout of its own in bf16")
def test_evaluation_with_matrices_laid_out_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after a step: what was laid out for one evaluation is not there in the next."""
    adapted = build(checkpoint_of(tmp_path, "bert"), "lora", precision="bf16", engine="fast")
    batch = batch_of(split_of([5, 9, 4]))
    optimizer = torch.optim.AdamW(adapted.trainable().values(), lr=0.05)
    monkeypatch.setattr(maps, "PACKING_ROWS", 1)
    found = []
    for _ in range(2):
        adapted.model.eval()
        for laid_out in (True, False):
            with monkeypatch.context() as patch, torch.no_grad():
                if not laid_out:
                    patch.setattr(maps, "pack", lambda _: None)
                adapted.engine.refresh()
                found.append(adapted.engine.logits(batch))
        adapted.model.train()
        adapted.engine.refresh()
        loss_sum(adapted.engine.logits(batch), batch).backward()
        optimizer.step()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[3])
    assert (found[2] - found[0]).abs().max() > 1e-2


@torch.no_grad()
def with_adapters_of(share: float, adapted: AdaptedModel) -> AdaptedModel:
    """Give every adapter an update whose norm is a share of its matrix's."""
    generator = torch.Generator().manual_seed(1)
    for module in adapted.model.modules():
        if isinstance(module, LoraLinear):
            module.lora_B.copy_(torch.randn(module.lora_B.shape, generator=generator))
            update = (module.scaling * module.lora_B @ module.lora_A).norm()
            module.lora_B.mul_(share * module.weight.float().norm() / update)
    adapted.engine.refresh()
    return adapted


@pytest.mark.parametrize("share", [0.01, 0.1])
@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_merged_adapters_keep_their_effect_in_bf16(kind: str, share: float, tmp_path: Path) -> None:
    """In their matrices they are as close to fp32 as beside them, and move logits as far."""
    folder = checkpoint_of(tmp_path, kind, **NO_DROPOUT)
    batch = batch_of(split_of([3 + number % 9 for number in range(64)]))

    def logits(share: float, precision: str, engine: str) -> Tensor:
        adapted = build(folder, "lora", precision=precision, engine=engine)
        return with_adapters_of(share, adapted).engine.logits(batch).detach()

    exact, plain, fast = (
        logits(share, precision, engine)
        for precision, engine in (("fp32", "plain"), ("bf16", "plain"), ("bf16", "fast"))
    )
    assert (fast - exact).norm() < 1.5 * (plain - exact).norm()
    effect, of_fast = exact - logits(0.0, "fp32", "plain"), fast - logits(0.0, "bf16", "fast")
    assert abs((of_fast * effect).sum() / effect.square().sum() - 1) < 0.4


@pytest.mark.parametrize("kind", FUSED_TYPES)
def test_fast_drops_where_plain_does(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training step applies dropout as often, and with the same probabilities."""
    folder = checkpoint_of(tmp_path, kind)
    batch = batch_of(split_of([9, 5, 12], segments=kind in ("bert", "electra")))
    engines = {engine: build(folder, "lora", engine=engine) for engine in ("plain", "fast")}
    dropped: list[float] = []
    drop, draw = torch.nn.functional.dropout, Dropout.draw

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if training and p > 0:
            dropped.append(round(p, 3))
        return drop(x, p, training, inplace)

    def drawn(self: Dropout, like: Tensor) -> Tensor:
        dropped.append(round(1 - 1 / self.scale, 3))
        return draw(self, like)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    monkeypatch.setattr(Dropout, "draw", drawn)
    found = {}
    for engine, adapted in engines.items():
        logits_and_gradients(adapted, batch)
        found[engine] = sorted(dropped)
        dropped.clear()
    assert found["fast"] == found["plain"]
    assert len(found["plain"]) >= 1 + 4 * 2  # embeddings, and each block's attention and output


@pytest.mark.parametrize("kind", FUSED_TYPES)
def test_dropout_is_drawn_anew_and_off_in_evaluation(kind: str, tmp_path: Path) -> None:
    """In training two passes differ, and repeat from one generator state; evaluation is exact."""
    folder = checkpoint_of(tmp_path, kind)
    adapted = build(folder, "spafit", engine="fast")
    batch = batch_of(split_of([9, 5, 12], segments=kind in ("bert", "electra")))
    adapted.model.train()
    torch.manual_seed(1)
    first, second = adapted.engine.logits(batch), adapted.engine.logits(batch)
    torch.manual_seed(1)
    assert torch.equal(adapted.engine.logits(batch), first)
    assert not torch.equal(first, second)
    adapted.model.eval()
    plain = build(folder, "spafit", engine="plain")
    plain.model.eval()
    exact = plain.engine.logits(batch)
    torch.testing.assert_close(adapted.engine.logits(batch), exact, atol=1e-5, rtol=1e-5)


def test_dropout_has_its_rate_and_expectation() -> None:
    """One element in ten is dropped, independently of its neighbour; the mean is kept."""
    torch.manual_seed(0)
    dropout = Dropout.of(0.1)
    assert dropout is not None
    mask = dropout.draw(torch.empty(1000, 1001))
    dropped = (mask == 0).double()
    assert set(mask.unique().tolist()) == {-1, 0}
    sd = (0.1 * 0.9 / mask.numel()) ** 0.5
    assert abs(dropped.mean() - 0.1) < 5 * sd + 2**-16
    together = (dropped[:, 1:] * dropped[:, :-1]).mean()
    assert abs(together - 0.01) < 5 * (0.01 / mask.numel()) ** 0.5
    assert abs(dropped.mean(0).std() - (0.09 / 1000) ** 0.5) < 5e-4
    x = torch.ones(1000, 1001)
    assert abs(dropout(x).mean() - 1) < 5 * sd / 0.9 + 2**-15
    assert torch.equal(keep(x, mask).bool(), mask.bool())
    assert Dropout.of(0.0) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_dropped_is_zero_even_if_it_was_not_finite(dtype: torch.dtype) -> None:
    """A bitwise mask lets nothing through, and what it keeps is untouched."""
    x = torch.tensor([1.5, -2.25, float("inf"), float("nan")], dtype=dtype)
    mask = torch.tensor([-1, -1, 0, 0], dtype=torch.int16)
    assert keep(x, mask).tolist() == [1.5, -2.25, 0.0, 0.0]


def test_a_gradient_through_dropout_equals_autograd(tmp_path: Path) -> None:
    """With dropout on, the written-out backward pass is that of the same forward pass."""
    folder = checkpoint_of(tmp_path, "bert")
    adapted = build(folder, "full", engine="fast")
    batch = batch_of(split_of([6, 9, 4]))
    adapted.model.train()
    name = "bert.encoder.layer.1.attention.self.value.weight"
    parameter = adapted.trainable()[name]

    def loss() -> Tensor:
        torch.manual_seed(3)
        return loss_sum(adapted.engine.logits(batch), batch)

    loss().backward()
    gradient = parameter.grad
    assert gradient is not None
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-2
    with torch.no_grad():
        parameter.add_(direction, alpha=step)
        adapted.engine.refresh()
        above = loss().double()
        parameter.sub_(direction, alpha=2 * step)
        adapted.engine.refresh()
        below = loss().double()
    slope = (above - below) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum().double(), slope, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("all:lora(query,r=2,alpha=4,dora)", "DoRA"),
        ("all:lora(query,r=2,alpha=4,dropout=0.1)", "no dropout on their input"),
    ],
)
def test_auto_falls_back_and_says_why_it_must(spec: str, reason: str, tmp_path: Path) -> None:
    """What the fast engine does not cover runs plainly, or is refused with the reason."""
    plan = plan_checkpoint(checkpoint_of(tmp_path, "bert"), get_method(spec))
    config = {"model_type": "bert"}
    assert engine_name("auto", config, plan) == "plain"
    with pytest.raises(UserError, match=reason):
        engine_name("fast", config, plan)


def test_every_other_encoder_runs_plainly(tmp_path: Path) -> None:
    """Encoders with another block, activation or positions are named."""
    plan = plan_checkpoint(checkpoint_of(tmp_path, "bert"), "full")
    assert engine_name("auto", {"model_type": "bert"}, plan) == "fast"
    for config in (
        {"model_type": "modernbert"},
        {"model_type": "bert", "hidden_act": "relu"},
        {"model_type": "bert", "position_embedding_type": "relative_key"},
    ):
        assert engine_name("auto", config, plan) == "plain"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("method", ["full", "spafit-ii"])
def test_fast_equals_plain_on_a_gpu(method: str, tmp_path: Path) -> None:
    """The same comparison in fp32 on CUDA."""
    folder = checkpoint_of(tmp_path, "bert", **NO_DROPOUT)
    device = "cuda"
    batch = collate(split_of([3, 14, 2, 7]), np.arange(4), torch.device(device))
    plain = build(folder, method, engine="plain", device=device)
    fast = build(folder, method, engine="fast", device=device)
    expected, expected_gradients = logits_and_gradients(plain, batch)
    logits, gradients = logits_and_gradients(fast, batch)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_collating_does_not_wait_for_a_gpu(dtype: type) -> None:
    """Tokens, labels and the kept output of first layers are copied while the GPU computes."""
    split = split_of([3, 14, 2, 7])
    values = np.arange(26 * 4).reshape(26, 4).astype(dtype)
    split = replace(split, prefix=Prefix.of(values, split.lengths))
    on_cpu = collate(split, np.array([2, 0, 1]), torch.device("cpu"))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = collate(split, np.array([2, 0, 1]), torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name in ("input_ids", "token_type_ids", "position_ids", "labels", "prefix"):
        torch.testing.assert_close(getattr(batch, name).cpu(), getattr(on_cpu, name))


class SmallDevice:
    """An engine on a device that has memory for few examples."""

    name = "plain"

    def __init__(self, adapted: AdaptedModel, most: int) -> None:
        """Wrap the engine of a model."""
        self.inner, self.most = adapted.engine, most
        self.sizes: list[int] = []

    def refresh(self) -> None:
        """Pass it on."""
        self.inner.refresh()

    def logits(self, batch: Batch) -> Tensor:
        """Fail as CUDA does if the batch is too large."""
        self.sizes.append(batch.size)
        if batch.size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner.logits(batch)


def settings() -> TrainSettings:
    """One epoch of batches of eight."""
    return TrainSettings(
        learning_rate=1e-3,
        epochs=1,
        batch_size=8,
        max_length=16,
        warmup=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        adam_eps=1e-6,
    )


def trained(adapted: AdaptedModel) -> Training:
    """Train on twenty-four examples."""
    split = split_of([3 + number % 9 for number in range(24)])
    session = Session(observer=Silent())
    return train(adapted, split, settings(), seed=0, session=session)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on with the same batches in smaller passes, says so, and records it."""
    folder = checkpoint_of(tmp_path, "bert", **NO_DROPOUT)
    large, small = (build(folder, "spafit", engine="fast") for _ in range(2))
    device = SmallDevice(small, most=3)
    small = replace(small, engine=device)
    whole, pieces = trained(large), trained(small)
    assert whole.micro_batch_size is None
    assert pieces.micro_batch_size == 2
    assert pieces.losses == pytest.approx(whole.losses, abs=1e-5)
    assert device.sizes[:3] == [8, 4, 2]
    assert max(device.sizes[2:]) == 2
    assert caplog.text.count("out of memory") == 2
    for name, value in small.trained_state().items():
        torch.testing.assert_close(value, large.trained_state()[name], atol=1e-5, rtol=1e-4)


def test_out_of_memory_with_one_example_is_the_end(tmp_path: Path) -> None:
    """No batch can be smaller than one example."""
    adapted = build(checkpoint_of(tmp_path, "bert"), "spafit", engine="fast")
    adapted = replace(adapted, engine=SmallDevice(adapted, most=0))
    with pytest.raises(torch.OutOfMemoryError, match="single example"):
        trained(adapted)


def test_out_of_memory_in_evaluation_halves_the_batch(tmp_path: Path) -> None:
    """Predictions are those of whole batches."""
    adapted = build(checkpoint_of(tmp_path, "bert"), "spafit", engine="fast")
    split = split_of([3 + number % 9 for number in range(24)])
    whole = predict(adapted, split, batch_size=10)
    adapted = replace(adapted, engine=SmallDevice(adapted, most=4))
    pieces = predict(adapted, split, batch_size=10)
    np.testing.assert_allclose(pieces.logits, whole.logits, atol=1e-6)


def test_evaluation_reads_every_example_once_in_bounded_batches() -> None:
    """Long examples make small batches, short ones full ones, one too long its own."""
    split = split_of([90, *[20] * 10, *[2] * 50])
    batches = evaluation_batches(split, 16, max_tokens=64)
    assert sorted(np.concatenate(batches)) == list(range(61))
    assert [len(batch) for batch in batches[:4]] == [1, 3, 3, 3]
    assert all(split.lengths[b].sum() <= 64 for b in batches[1:])
    assert max(map(len, batches)) == 16

"""The fast engine is held to the plain one: logits, gradients, dropout, loss curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models import SPECIAL, VOCABULARY, build, plan_checkpoint, save_checkpoint
from torch import Tensor

from spafit_bench.adapt import AdaptedModel
from spafit_bench.encoding import Batch, EncodedSplit, collate
from spafit_bench.engines import engine_name
from spafit_bench.errors import UserError
from spafit_bench.fused.dropout import Dropout, keep
from spafit_bench.methods import get_method
from spafit_bench.train import loss_sum

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
def test_fast_in_bf16_is_as_close_to_fp32_as_plain_is(method: str, tmp_path: Path) -> None:
    """Rounding moves the fast engine's logits no further than autocast moves the plain one's."""
    folder = checkpoint_of(tmp_path, "bert", **NO_DROPOUT)
    batch = batch_of(split_of([9, 5, 12, 7]))
    exact = build(folder, method).engine.logits(batch)
    off = {
        engine: (
            build(folder, method, precision="bf16", engine=engine).engine.logits(batch) - exact
        )
        for engine in ("plain", "fast")
    }
    assert off["fast"].abs().max() < 2 * off["plain"].abs().max() + 1e-3


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
    mask = dropout.draw(torch.empty(1000, 1001))
    assert mask is not None
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
    assert Dropout.of(0.0).draw(x) is None


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
        ("all:lora(query,r=2,alpha=4,dropout=0.1)", "adapter's input"),
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

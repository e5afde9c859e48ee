"""The adapted linear map, against the formulae and against peft's."""

from __future__ import annotations

import math
from itertools import product

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spafit_bench.methods.treatments import Lora
from spafit_bench.models.adapters import LoraLinear

IN, OUT, RANK = 20, 12, 3
VARIANTS: dict[str, dict[str, bool]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "rsdora": {"rslora": True, "dora": True},
}


def adapter(*, dropout: float = 0.0, **flags: bool) -> Lora:
    """Describe an adapter whose scaling is no round number."""
    return Lora(matrices=("query",), rank=RANK, alpha=5, dropout=dropout, **flags)


def make(lora: Lora, *, bias: bool = True, trained: bool = True) -> LoraLinear:
    """Adapt a random map; `trained` moves the adapter off its start."""
    torch.manual_seed(0)
    made = LoraLinear(nn.Linear(IN, OUT, bias=bias), lora, torch.Generator().manual_seed(1))
    made.weight.requires_grad_(False)
    if trained:
        with torch.no_grad():
            made.lora_B.normal_(0, 0.3)
            if made.lora_magnitude is not None:
                made.lora_magnitude.mul_(torch.rand(OUT) + 0.5)
    return made


class Holder(nn.Module):
    """A model of one linear map, for peft to adapt."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map."""
        return self.linear(x)


def peft_twin(ours: LoraLinear, lora: Lora) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build peft's layer with the same numbers; return it and its parameters by our names."""
    linear = nn.Linear(IN, OUT, bias=ours.bias is not None)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=["linear"],
        bias="all",
    )
    model = peft.get_peft_model(Holder(linear), config).to(ours.weight.dtype)
    layer = model.base_model.model.linear
    names = {
        "weight": layer.base_layer.weight,
        "bias": layer.base_layer.bias,
        "lora_A": layer.lora_A["default"].weight,
        "lora_B": layer.lora_B["default"].weight,
    }
    if lora.dora:
        names["lora_magnitude"] = layer.lora_magnitude_vector["default"].weight
    theirs = {name: tensor for name, tensor in names.items() if tensor is not None}
    with torch.no_grad():
        for name, tensor in theirs.items():
            tensor.copy_(ours.get_parameter(name))
    return model, theirs


@pytest.mark.parametrize(
    ("variant", "dropout", "bias"), list(product(VARIANTS, (0.0, 0.4), (True, False)))
)
def test_forward_gradients_and_a_step_equal_pefts(variant: str, dropout: float, bias: bool) -> None:
    """In float64 and train mode; with dropout, both draw the same mask. Tolerance 1e-12."""
    lora = adapter(dropout=dropout, **VARIANTS[variant])
    ours = make(lora, bias=bias).double()
    model, theirs = peft_twin(ours, lora)
    trainable = [name for name, tensor in theirs.items() if tensor.requires_grad]
    assert set(trainable) == {n for n, p in ours.named_parameters() if p.requires_grad}
    x, target = torch.randn(2, 7, 5, IN, dtype=torch.float64), torch.randn(7, 5, OUT).double()
    inputs = [x[0].clone().requires_grad_(), x[0].clone().requires_grad_()]
    mine = [ours.get_parameter(name) for name in trainable]
    optimizers = [torch.optim.AdamW(mine, 1e-2)]
    optimizers.append(torch.optim.AdamW([theirs[name] for name in trainable], 1e-2))
    for module, given, optimizer in zip((ours, model), inputs, optimizers, strict=True):
        torch.manual_seed(5)
        F.mse_loss(module.train()(given), target).backward()
        optimizer.step()
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **close)
    for name in trainable:
        parameter = ours.get_parameter(name)
        torch.testing.assert_close(parameter.grad, theirs[name].grad, **close)
        torch.testing.assert_close(parameter, theirs[name], **close)
    torch.testing.assert_close(ours.eval()(x[1]), model.eval()(x[1]), **close)


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_equals_unmerged(variant: str) -> None:
    """One matrix computes the same in fp32 to 1e-5, and is the one that peft merges."""
    lora = adapter(**VARIANTS[variant])
    ours = make(lora).eval()
    x = torch.randn(50, IN)
    with torch.no_grad():
        merged = F.linear(x, ours.merged_weight(), ours.bias)
        torch.testing.assert_close(merged, ours(x), rtol=0, atol=1e-5)
        model, _ = peft_twin(ours, lora)
        theirs = model.merge_and_unload().linear.weight
    torch.testing.assert_close(ours.merged_weight(), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_forward_pass_is_the_formula(variant: str) -> None:
    """Element by element in float64: W x + b + s B A x, and DoRA's magnitude over row norm."""
    lora = adapter(**VARIANTS[variant])
    ours = make(lora).double().eval()
    x = torch.randn(IN, dtype=torch.float64)
    scale = 5 / math.sqrt(RANK) if lora.rslora else 5 / RANK
    with torch.no_grad():
        for row in range(OUT):
            weights = [
                float(ours.weight[row, column])
                + scale * sum(float(ours.lora_B[row, k] * ours.lora_A[k, column]) for k in range(3))
                for column in range(IN)
            ]
            if lora.dora:
                norm = math.sqrt(sum(w * w for w in weights))
                weights = [float(ours.lora_magnitude[row]) * w / norm for w in weights]
            expected = float(ours.bias[row]) + sum(
                w * float(value) for w, value in zip(weights, x, strict=True)
            )
            assert float(ours(x)[row]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("variant", "dropout"), list(product(VARIANTS, (0.0, 0.5))))
def test_b_zero_is_the_identity(variant: str, dropout: float, training: bool) -> None:
    """Before the first step nothing changes, and dropout has nothing to act on."""
    ours = make(adapter(dropout=dropout, **VARIANTS[variant]), trained=False).train(training)
    x = torch.randn(30, IN)
    expected = F.linear(x, ours.weight, ours.bias)
    tolerance = 1e-6 if VARIANTS[variant].get("dora") else 0
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=tolerance)


def test_dora_starts_exactly_in_bf16() -> None:
    """The ratio of magnitude and row norm is 1 although the frozen matrix is bf16."""
    linear = nn.Linear(IN, OUT)
    linear.weight.data = linear.weight.data.bfloat16()
    ours = LoraLinear(linear, adapter(dora=True), torch.Generator())
    x = torch.randn(30, IN)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        adapted = ours(x)
        base = F.linear(x, linear.weight)
    assert adapted.dtype == base.dtype == torch.bfloat16
    assert torch.equal(adapted, (base.float() + linear.bias).bfloat16())
    assert ours.lora_magnitude.dtype == torch.float32


def test_the_start_of_the_factors() -> None:
    """A is uniform within 1 / sqrt(in) (Kaiming, a = sqrt 5), B is zero."""
    linear = nn.Linear(400, 30)
    lora = Lora(matrices=("query",), rank=64, alpha=1)
    ours = LoraLinear(linear, lora, torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(400)
    assert ours.lora_A.shape == (64, 400)
    assert ours.lora_A.abs().max() <= bound
    assert ours.lora_A.abs().max() > 0.99 * bound
    assert ours.lora_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not ours.lora_B.any()
    again = LoraLinear(linear, lora, torch.Generator().manual_seed(0))
    assert torch.equal(ours.lora_A, again.lora_A)


def test_names_and_parameters_of_the_map_stay() -> None:
    """Weight and bias are the very tensors that were adapted, under the same names."""
    linear = nn.Linear(IN, OUT)
    ours = LoraLinear(linear, adapter(dora=True), torch.Generator())
    assert ours.weight is linear.weight
    assert ours.bias is linear.bias
    assert set(dict(ours.named_parameters())) == {
        "weight",
        "bias",
        "lora_A",
        "lora_B",
        "lora_magnitude",
    }


def test_the_row_norm_is_constant_in_the_gradient() -> None:
    """DoRA, section 4.3: the gradient of A and B does not pass through the norm."""
    ours = make(adapter(dora=True)).double()
    x = torch.randn(9, IN, dtype=torch.float64)
    ours(x).square().sum().backward()
    factor_b = ours.lora_B.detach().clone().requires_grad_()
    weight = ours.weight + ours.scaling * factor_b @ ours.lora_A.detach()
    gain = (ours.lora_magnitude / weight.norm(dim=1)).detach()
    y = F.linear(x, gain[:, None] * weight, ours.bias.detach())
    y.square().sum().backward()
    torch.testing.assert_close(ours.lora_B.grad, factor_b.grad, rtol=0, atol=1e-11)

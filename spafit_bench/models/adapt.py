"""Carries out a plan on a real model: freezes, unfreezes and inserts adapters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spafit_bench.methods.plan import Plan
from spafit_bench.models.adapters import LoraLinear
from spafit_bench.models.checkpoint import generator
from spafit_bench.models.engines import Engine, PlainEngine
from spafit_bench.models.fused import FusedEncoder
from spafit_bench.models.numerics import Numerics


@dataclass(frozen=True)
class AdaptedModel:
    """A model whose trainable parameters are exactly those of its plan."""

    model: PreTrainedModel
    plan: Plan
    numerics: Numerics
    engine: Engine

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained base tensors and adapters by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """Return copies of the trained tensors on the CPU."""
        return {n: p.detach().cpu().clone().contiguous() for n, p in self.trainable().items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Overwrite the trained tensors with those that `trained_state` returned."""
        parameters = self.trainable()
        assert parameters.keys() == state.keys(), parameters.keys() ^ state.keys()
        for name, value in state.items():
            parameters[name].copy_(value)


def adapt(
    model: PreTrainedModel,
    plan: Plan,
    *,
    numerics: Numerics,
    seed: int,
    engine: str = "plain",
    prefix_layers: int = 0,
) -> AdaptedModel:
    """Make an fp32 model train what the plan says, in place, and move it to its device.

    Frozen matrices are kept in the compute precision. The seed and an adapter's name decide its
    first factor, so that an adapter starts alike in every method. The output of the first
    `prefix_layers` layers may be cached, so they have no dropout.
    """
    parameters = dict(model.named_parameters())
    for tensor in plan.tensors:
        parameters[tensor.name].requires_grad_(tensor.trains)
    for name in frozen_matrices(model, plan):  # first, as DoRA must measure the rounded matrices
        parameters[name].data = parameters[name].data.to(numerics.dtype)
    for tensor in plan.tensors:
        if tensor.lora is not None:
            path = tensor.name.removesuffix(".weight")
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear), f"{path} is not a linear map"
            with_adapter = LoraLinear(linear, tensor.lora, generator(seed, f"{path}.lora_A"))
            model.set_submodule(path, with_adapter)
    nn.Module.to(model, numerics.device)
    fast = engine == "fast"
    assert fast or not prefix_layers
    made = FusedEncoder(model, numerics, prefix_layers) if fast else PlainEngine(model, numerics)
    adapted = AdaptedModel(model, plan, numerics, made)
    trains = sum(p.numel() for p in adapted.trainable().values())
    assert trains == plan.trainable_parameters, (trains, plan.trainable_parameters)
    return adapted


def frozen_matrices(model: nn.Module, plan: Plan) -> tuple[str, ...]:
    """Return the names of the matrices that are stored in the compute precision.

    These are the frozen linear maps. Embeddings, vectors and trained tensors stay fp32.
    """
    trained = {tensor.name for tensor in plan.tensors if tensor.trains}
    linears = (path for path, module in model.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for path in linears if (name := f"{path}.weight") not in trained)

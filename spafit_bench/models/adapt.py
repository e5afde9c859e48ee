"""Carries a plan out on a real model: freezes, unfreezes and inserts adapters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spafit_bench.methods.plan import Plan
from spafit_bench.models.adapters import LoraLinear
from spafit_bench.models.checkpoint import generator
from spafit_bench.models.engines import Engine, make_engine
from spafit_bench.models.numerics import Numerics


@dataclass(frozen=True)
class AdaptedModel:
    """A model in which exactly what its plan says can train."""

    model: PreTrainedModel
    plan: Plan
    numerics: Numerics
    """Where the model is, and how it computes."""
    engine: Engine

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what trains, by name: base tensors and adapters."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """Copy what trains to the CPU: all that has to be stored for this task."""
        return {n: p.detach().cpu().clone().contiguous() for n, p in self.trainable().items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Put a trained state back.

        Args:
            state: exactly the tensors of `trained_state`.
        """
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
    """Carry out a plan in place and move the model to its device.

    Args:
        model: in fp32, with the parameters that the plan was made for.
        plan: what trains.
        numerics: device and precision; frozen matrices are kept in the latter.
        seed: for the adapters' first factor; each draws from a generator of its own name, so that
            the adapters that two methods share start alike.
        engine: `fast` or `plain`.
        prefix_layers: layers whose output may be kept; nothing is dropped in them then.
    """
    parameters = dict(model.named_parameters())
    for tensor in plan.tensors:
        parameters[tensor.name].requires_grad_(tensor.trains)
    for name in frozen_matrices(model, plan):  # before DoRA measures the matrices it computes with
        parameters[name].data = parameters[name].data.to(numerics.dtype)
    for tensor in plan.tensors:
        if tensor.lora is not None:
            path = tensor.name.removesuffix(".weight")
            linear = model.get_submodule(path)
            assert isinstance(linear, nn.Linear), f"{path} is not a linear map"
            with_adapter = LoraLinear(linear, tensor.lora, generator(seed, f"{path}.lora_A"))
            model.set_submodule(path, with_adapter)
    nn.Module.to(model, numerics.device)
    made = make_engine(engine, model, numerics, prefix_layers)
    adapted = AdaptedModel(model, plan, numerics, made)
    trains = sum(p.numel() for p in adapted.trainable().values())
    assert trains == plan.trainable_parameters, (trains, plan.trainable_parameters)
    return adapted


def frozen_matrices(model: nn.Module, plan: Plan) -> tuple[str, ...]:
    """Name what is kept in the compute precision, once, instead of cast in each step.

    Only linear maps: embeddings and vectors stay fp32, and so does everything that trains.
    """
    trained = {tensor.name for tensor in plan.tensors if tensor.trains}
    linears = (path for path, module in model.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for path in linears if (name := f"{path}.weight") not in trained)

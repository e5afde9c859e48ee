"""The two ways to compute a model's logits: as it was written, or fused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from spafit_bench.base.errors import UserError
from spafit_bench.methods.plan import Plan
from spafit_bench.models.encoding import Batch
from spafit_bench.models.fused import FusedEncoder, why_not_fused
from spafit_bench.models.numerics import Numerics


class Engine(Protocol):
    """Computes logits; dropout is on when the model is in training mode."""

    name: str

    def refresh(self) -> None:
        """Notice that parameters have changed; to be called before `logits` then.

        (A fused optimizer leaves no trace of its writes by which it could be noticed.)
        """

    def logits(self, batch: Batch) -> Tensor:
        """Return (size, num_outputs) fp32."""


class PlainEngine:
    """The model's own forward pass on padded batches: the reference that the other is held to."""

    name = "plain"

    def __init__(self, model: PreTrainedModel, numerics: Numerics) -> None:
        """Use a model on its device."""
        self.model, self.numerics = model, numerics

    def refresh(self) -> None:
        """Do nothing: the parameters are used as they are."""

    def logits(self, batch: Batch) -> Tensor:
        """Apply the model."""
        with self.numerics.autocast():
            logits: Tensor = self.model(**batch.padded(), return_dict=True).logits
        return logits.float()


def engine_name(wanted: str, config: Mapping[str, Any], plan: Plan) -> str:
    """Resolve `auto`: fast where it can be.

    Args:
        wanted: `fast`, `plain` or `auto`.
        config: the checkpoint's `config.json`.
        plan: what trains.

    Raises:
        UserError: `fast` for an encoder or a method that it does not cover.
    """
    reason = why_not_fused(config, plan)
    if wanted == "fast" and reason is not None:
        raise UserError(f"--engine fast: {reason}; use --engine auto or plain")
    return "plain" if wanted == "plain" or reason is not None else "fast"


def check_prefix(wanted: str, config: Mapping[str, Any], plan: Plan) -> None:
    """Refuse `--cache-prefix` where nothing could be kept; see `engine_name`.

    Raises:
        UserError: the plain engine, or something trains in the embeddings or the first layer.
    """
    reason = "this run uses --engine plain" if wanted == "plain" else why_not_fused(config, plan)
    if reason is not None:
        raise UserError(f"--cache-prefix needs the fast engine: {reason}")
    if not plan.frozen_layers:
        names = (tensor.name for tensor in plan.tensors if tensor.num_trainable)
        raise UserError(
            f"--cache-prefix: {plan.method.name} trains {next(names)} and whatever is above it, so "
            "no layer's output stays the same; it is for methods that freeze the embeddings and "
            "the first layers, such as spafit"
        )


def check_graphs(wanted: str, config: Mapping[str, Any], plan: Plan, numerics: Numerics) -> None:
    """Refuse `--cuda-graphs` where there can be none; see `engine_name`.

    Raises:
        UserError: the plain engine, or no GPU.
    """
    reason = "this run uses --engine plain" if wanted == "plain" else why_not_fused(config, plan)
    if reason is not None:
        raise UserError(f"--cuda-graphs needs the fast engine: {reason}")
    if numerics.device.type != "cuda":
        raise UserError(f"--cuda-graphs needs a CUDA GPU, but this run uses {numerics.device}")


def make_engine(
    name: str, model: PreTrainedModel, numerics: Numerics, prefix_layers: int = 0
) -> Engine:
    """Return the engine of a name that `engine_name` gave, for a model with its adapters.

    Args:
        name: `fast` or `plain`.
        model: on its device.
        numerics: of that device.
        prefix_layers: layers whose output may be kept, of the fast engine.
    """
    if name == "fast":
        return FusedEncoder(model, numerics, prefix_layers)
    assert not prefix_layers
    return PlainEngine(model, numerics)

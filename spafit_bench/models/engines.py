"""The two ways to compute a model's logits: its own forward pass, or the fast engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from spafit_bench.base.errors import UserError
from spafit_bench.methods.plan import Plan
from spafit_bench.models.encoding import Batch
from spafit_bench.models.fused import why_not_fused
from spafit_bench.models.numerics import Numerics


class Engine(Protocol):
    """Computes logits; dropout is on when the model is in training mode."""

    name: str

    def refresh(self) -> None:
        """Use changed parameters; call it before `logits` after every optimizer step.

        A fused optimizer does not mark tensors as changed, so this cannot be detected.
        """

    def logits(self, batch: Batch) -> Tensor:
        """Return (size, num_outputs) fp32."""


class PlainEngine:
    """The model's own forward pass on padded batches, the reference for the fast engine."""

    name = "plain"

    def __init__(self, model: PreTrainedModel, numerics: Numerics) -> None:
        self.model, self.numerics = model, numerics

    def refresh(self) -> None:
        """Do nothing: the model reads its parameters itself."""

    def logits(self, batch: Batch) -> Tensor:
        with self.numerics.autocast():
            logits: Tensor = self.model(**batch.padded(), return_dict=True).logits
        return logits.float()


def engine_name(wanted: str, config: Mapping[str, Any], plan: Plan) -> str:
    """Return the engine for `--engine WANTED`: `auto` is `fast` if that engine supports the run.

    `config` is the checkpoint's `config.json`.

    Raises:
        UserError: `fast` for an encoder or a method that the fast engine does not support.
    """
    reason = why_not_fused(config, plan)
    if wanted == "fast" and reason is not None:
        raise UserError(f"--engine fast: {reason}; use --engine auto or plain")
    return "plain" if wanted == "plain" or reason is not None else "fast"


def _check_fast(flag: str, wanted: str, config: Mapping[str, Any], plan: Plan) -> None:
    reason = "this run uses --engine plain" if wanted == "plain" else why_not_fused(config, plan)
    if reason is not None:
        raise UserError(f"{flag} needs the fast engine: {reason}")


def check_prefix(wanted: str, config: Mapping[str, Any], plan: Plan) -> None:
    """Raise UserError if `--cache-prefix` has nothing to cache.

    It needs the fast engine, and frozen embeddings and a frozen first layer.
    """
    _check_fast("--cache-prefix", wanted, config, plan)
    if not plan.frozen_layers:
        names = (tensor.name for tensor in plan.tensors if tensor.num_trainable)
        raise UserError(
            f"--cache-prefix: {plan.method.name} trains {next(names)}, so no layer's output "
            "stays the same; use it with methods that freeze the embeddings and the first layers, "
            "such as spafit"
        )


def check_graphs(wanted: str, config: Mapping[str, Any], plan: Plan, numerics: Numerics) -> None:
    """Raise UserError if `--cuda-graphs` is used without the fast engine or without a GPU."""
    _check_fast("--cuda-graphs", wanted, config, plan)
    if numerics.device.type != "cuda":
        raise UserError(f"--cuda-graphs needs a CUDA GPU, but this run uses {numerics.device}")

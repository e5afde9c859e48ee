"""What a run will cost, by arithmetic: FLOPs, memory and disk, before anything is loaded.

Matrix products are counted exactly (2 FLOPs per weight and token forward; the same again for the
activations' gradient in every block from the first that trains on, and for the gradient of every
matrix that trains). Time divides by a measured matrix-product rate; see `MATMUL_SHARE`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from spafit_bench.numerics import Numerics
from spafit_bench.plan import Plan

MATMUL_SHARE = 0.45
"""Share of a training step spent in matrix products, about, with the plain engine."""


@dataclass(frozen=True)
class Shape:
    """What the estimates need of an encoder's configuration."""

    hidden: int
    intermediate: int
    num_heads: int

    @classmethod
    def of(cls, config: dict[str, object]) -> Shape:
        """Read the sizes under the names that architectures use."""

        def first(*names: str) -> int:
            return next(int(str(config[name])) for name in names if name in config)

        hidden = first("hidden_size", "dim")
        return cls(
            hidden=hidden,
            intermediate=first("intermediate_size", "hidden_dim"),
            num_heads=first("num_attention_heads", "n_heads"),
        )


def first_trainable_layer(plan: Plan) -> int:
    """Return the first block through which gradients flow; the depth if none."""
    for name in plan.stratum_names():
        trains = any(t.num_trainable for t in plan.tensors if t.stratum == name)
        if trains and name == "embeddings":
            return 0
        if trains and name[0].isdigit():
            return int(name.partition("-")[0])
    return plan.num_layers


def training_flops_per_token(plan: Plan) -> float:
    """Count the matrix products of one training step, per token, attention's own left out."""
    first = first_trainable_layer(plan)
    flops = 0.0
    for tensor in plan.tensors:
        if tensor.place.layer is None or len(tensor.shape) != 2:
            continue
        flops += 2 * tensor.num_parameters
        if tensor.place.layer >= first:
            flops += 2 * tensor.num_parameters
        if tensor.trains:
            flops += 2 * tensor.num_parameters
        if tensor.lora is not None:
            flops += 6 * tensor.num_trainable
    return flops


def activation_bytes(plan: Plan, shape: Shape, *, batch_size: int, length: int, width: int) -> int:
    """Estimate the activations that one batch keeps for the backward pass.

    After Korthikanti et al. 2022, arXiv:2205.05198, equation 2: per block s b h (34 + 5 a s / h)
    bytes at 16 bits, of which dropout masks are 3 / 34; only blocks that gradients reach count.

    Args:
        plan: says where gradients begin.
        shape: of the encoder.
        batch_size: examples of one forward pass.
        length: padded tokens per example.
        width: bytes of an element, 2 or 4.
    """
    tokens = batch_size * length
    linear = tokens * shape.hidden * (2 + 8 * shape.intermediate / (4 * shape.hidden) + 5.5) * width
    attention = batch_size * shape.num_heads * length**2 * (2 * width + 1)
    reached = plan.num_layers - first_trainable_layer(plan)
    return int(reached * (linear + attention))


def state_bytes(plan: Plan, width: int) -> int:
    """Count weights (frozen matrices at `width`), gradients and AdamW's two moments."""
    frozen_matrices = sum(
        t.num_parameters
        for t in plan.tensors
        if not t.trains and len(t.shape) == 2 and t.place.component != "embeddings"
    )
    rest = plan.base_parameters - frozen_matrices
    adapters = sum(t.num_trainable - (t.num_parameters if t.trains else 0) for t in plan.tensors)
    return width * frozen_matrices + 4 * (rest + adapters) + 12 * plan.trainable_parameters


def matmul_rate(numerics: Numerics, *, seconds: float = 0.2) -> float:
    """Measure matrix products on this device: FLOPs per second in the run's precision."""
    side = 4096 if numerics.device.type == "cuda" else 768
    left = torch.randn(side, side, device=numerics.device, dtype=numerics.dtype)
    left @ left
    numerics.synchronize()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        left @ left
        numerics.synchronize()
        count += 1
    return 2 * side**3 * count / (time.perf_counter() - start)

"""What a run will cost, by arithmetic: FLOPs, memory and disk, before anything is loaded.

Matrix products of the blocks are counted from the plan: 2 FLOPs per weight and token forward; the
same again for the activations' gradient in every block from the first that trains on, and for the
gradient of every matrix that trains. That is what the plain engine does, attention's own products
left out. The fast one does less: an adapter is merged into its matrix, and of the last block only
what first tokens need is computed. Time divides by a measured matrix-product rate; see
`MATMUL_SHARE`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from spafit_bench.methods.plan import Plan
from spafit_bench.models.numerics import Numerics

MATMUL_SHARE = {"plain": 0.45, "fast": 0.7}
"""Share of a training step spent in matrix products, about."""


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


def training_flops_per_token(plan: Plan, prefix_layers: int = 0) -> float:
    """Count the matrix products of one training step, per token, attention's own left out.

    Args:
        plan: what trains.
        prefix_layers: first layers whose output is kept, so that no step computes them.
    """
    first = plan.first_trained_layer
    flops = 0.0
    for tensor in plan.tensors:
        layer = tensor.place.layer
        if layer is None or layer < prefix_layers or len(tensor.shape) != 2:
            continue
        flops += 2 * tensor.num_parameters
        if layer >= first:
            flops += 2 * tensor.num_parameters
        if tensor.trains:
            flops += 2 * tensor.num_parameters
        if tensor.lora is not None:
            flops += 6 * tensor.num_trainable
    return flops


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass."""

    batch_size: int
    """Examples."""
    length: int
    """Tokens of each, padding included where there is any."""
    width: int
    """Bytes of an element of the compute precision."""
    engine: str
    """`fast` or `plain`."""


def activation_bytes(plan: Plan, shape: Shape, at: Pass) -> int:
    """Estimate what one pass keeps for its gradient, and its largest working space.

    Counted for the blocks that gradients reach. Plain: Korthikanti et al. 2022, arXiv:2205.05198,
    equation 2, s b h (34 + 5 a s / h) bytes at 16 bits, of which masks are 3 / 34. Fast: what
    `fused.block` keeps; of the last block that is little more than keys and values.

    Args:
        plan: says where gradients begin.
        shape: of the encoder.
        at: how much is computed at once.
    """
    tokens = at.batch_size * at.length
    scores = at.batch_size * shape.num_heads * at.length**2
    reached = plan.num_layers - plan.first_trained_layer
    if at.engine == "plain":
        linear = tokens * (7.5 * shape.hidden + 2 * shape.intermediate) * at.width
        return int(reached * (linear + scores * (2 * at.width + 1)))
    inputs = shape.hidden * at.width if _matrices_train(plan) else 0
    token = 3 * shape.hidden * at.width + shape.intermediate * at.width + inputs
    token += 2 * shape.hidden * 4 + 2 * shape.hidden * 2  # the stream, and masks of 16 bits
    working = scores * (8 + at.width) + tokens * (4 * shape.hidden + shape.intermediate) * at.width
    kept = max(reached - 1, 0) * (tokens * token + scores * (at.width + 2))
    return int(kept + working + tokens * 3 * shape.hidden * at.width)


def _matrices_train(plan: Plan) -> bool:
    return any(
        t.place.layer is not None and (t.lora is not None or (t.trains and len(t.shape) > 1))
        for t in plan.tensors
    )


def state_bytes(plan: Plan, at: Pass) -> int:
    """Count weights (frozen matrices at `width`), gradients and AdamW's two moments.

    The fast engine has trained and adapted matrices a second time, as it multiplies with them.
    """
    frozen_matrices = sum(
        t.num_parameters
        for t in plan.tensors
        if not t.trains and len(t.shape) == 2 and t.place.component != "embeddings"
    )
    rest = plan.base_parameters - frozen_matrices
    adapters = sum(t.num_trainable - (t.num_parameters if t.trains else 0) for t in plan.tensors)
    again = sum(
        t.num_parameters
        for t in plan.tensors
        if at.engine == "fast"
        and t.place.layer is not None
        and (t.lora or (len(t.shape) == 2 and t.trains))
    )
    weights = at.width * (frozen_matrices + again) + 4 * (rest + adapters)
    return weights + 12 * plan.trainable_parameters


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

"""One transformer block with its gradient written out (Vaswani et al. 2017, arXiv:1706.03762).

This is the post-norm block of BERT (Devlin et al. 2018, arXiv:1810.04805) on tokens without
padding:

    z1 = x + dropout(W_o attention(x))     h = norm(z1)
    z2 = h + dropout(W_2 gelu(W_1 h))      y = norm(z2)

DistilBERT (arXiv:1910.01108), as transformers implements it, has no dropout in the first line.

Matrix products and attention use the compute precision. The stream x, z, h, y, softmax and norms
use fp32, as under autocast. A block is one autograd node that stores only what its trained parts
need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from spafit_bench.models.fused.dropout import Dropout
from spafit_bench.models.fused.kernels import Activation, Kernels, Normed, Probabilities, plus
from spafit_bench.models.fused.maps import FusedMap
from spafit_bench.models.ragged import Ragged


@dataclass(frozen=True)
class Block:
    """The parts of one block."""

    qkv: FusedMap
    attention_output: FusedMap
    intermediate: FusedMap
    output: FusedMap
    attention_norm: nn.LayerNorm
    output_norm: nn.LayerNorm
    num_heads: int
    attention_output_dropout: Dropout
    output_dropout: Dropout
    attention_dropout: Dropout
    """Dropout of the attention probabilities."""
    kernels: Kernels
    first_token_only: bool = False
    """Whether only each sequence's first token is needed, as in the last block."""

    @property
    def head_size(self) -> int:
        return self.attention_output.weight.shape[1] // self.num_heads

    @property
    def query_scale(self) -> float:
        return 1 / math.sqrt(self.head_size)

    @property
    def maps(self) -> tuple[FusedMap, ...]:
        """The matrix products, in the order of computation."""
        return (self.qkv, self.attention_output, self.intermediate, self.output)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Trained parameters, in the order in which `_backward` returns gradients."""
        norms = [p for n in (self.attention_norm, self.output_norm) for p in n.parameters()]
        mapped = [p for fused in self.maps for p in fused.parameters]
        return [*mapped, *(p for p in norms if p.requires_grad)]

    def __call__(
        self, x: Tensor, low: Tensor, layout: Ragged, *, training: bool
    ) -> tuple[Tensor, Tensor]:
        """Apply the block.

        Args:
            x: (num_tokens, hidden) fp32. Compiled kernels overwrite it.
            low: `x` in the compute precision; in fp32 it may be `x` itself.
            layout: where the sequences are.
            training: whether dropout is on.

        Returns:
            (num_tokens, hidden) fp32, or (size, hidden) if `first_token_only`; and the same in the
            compute precision.
        """
        parameters = self.parameters
        if torch.is_grad_enabled() and (x.requires_grad or parameters):
            return _BlockFunction.apply(x, low, self, layout, training, *parameters)  # type: ignore[no-untyped-call]
        return _forward(self, x, low, layout, training, differentiable=False)[:2]


@dataclass
class _Attended:
    """Values of attention that its gradient needs: (size * num_heads, tokens, head_size)."""

    queries: Tensor
    """Scaled by 1 / sqrt(head_size)."""
    keys: Tensor
    values: Tensor
    probabilities: Probabilities
    scale: float
    """Factor of the elements that dropout kept."""


@dataclass
class _Kept:
    """Values of the forward pass that the backward pass needs; None where nothing trains."""

    attended: _Attended
    attention_normed: Normed
    output_normed: Normed
    activation: Activation
    low_x: Tensor | None
    context: Tensor | None
    low_h: Tensor | None


def _forward(
    block: Block,
    x: Tensor,
    low_x: Tensor,
    layout: Ragged,
    training: bool,
    *,
    differentiable: bool,
) -> tuple[Tensor, Tensor, _Kept]:
    kernels = block.kernels
    add_norm = partial(kernels.add_norm, differentiable=differentiable)
    stream = x[layout.starts] if block.first_token_only else x
    context, attended = _attend(block, low_x, layout, training)
    branch, bias = block.attention_output.product(context)
    dropout = _active(block.attention_output_dropout, training)
    h, low_h, attention_normed = add_norm(stream, branch, bias, block.attention_norm, dropout)
    u, bias = block.intermediate.product(low_h)
    activated, activation = kernels.gelu(
        u, bias, differentiable=differentiable, output_needed=block.output.needs_input
    )
    branch, bias = block.output.product(activated)
    dropout = _active(block.output_dropout, training)
    y, low_y, output_normed = add_norm(h, branch, bias, block.output_norm, dropout)
    kept = _Kept(
        attended,
        attention_normed,
        output_normed,
        activation,
        low_x if block.qkv.needs_input else None,
        context if block.attention_output.needs_input else None,
        low_h if block.intermediate.needs_input else None,
    )
    return y, low_y, kept


def _active(dropout: Dropout, training: bool) -> Dropout | None:
    return dropout if training and dropout.is_active else None


def _attend(block: Block, x: Tensor, layout: Ragged, training: bool) -> tuple[Tensor, _Attended]:
    """Return attention's output, (num queries, hidden), and the values that its gradient needs."""
    kernels, heads, qkv = block.kernels, block.num_heads, block.qkv
    if block.first_token_only:
        queries = plus(*qkv.product(x[layout.starts], 0, 1)).mul_(block.query_scale)
        queries = queries.view(-1, 1, block.head_size)
        keys, values = kernels.split(*qkv.product(x, 1), layout, heads, 2)
    else:
        together = kernels.split(*qkv.product(x), layout, heads, 3, scale=block.query_scale)
        queries, keys, values = together
    scores = torch.bmm(queries, keys.transpose(1, 2))
    dropout = _active(block.attention_dropout, training)
    dropped, probabilities = kernels.softmax(scores, layout, dropout)
    context, scale = torch.bmm(dropped, values), dropout.scale if dropout else 1.0
    if block.first_token_only:
        together = context.view(layout.size, -1).mul_(scale)
    else:
        together = kernels.join(context[None], layout, scale=scale)
    return together, _Attended(queries, keys, values, probabilities, scale)


class _BlockFunction(torch.autograd.Function):
    """A block as one autograd node, from input and trained parameters to output."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        low: Tensor,
        block: Block,
        layout: Ragged,
        training: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        del parameters  # the block uses its own; autograd needs to see them
        ctx.block, ctx.layout = block, layout
        x = x.detach()  # it may be stored, or overwritten
        y, low, ctx.kept = _forward(block, x, low, layout, training, differentiable=True)
        low = low.detach()  # in fp32 it is y
        ctx.mark_non_differentiable(low)
        ctx.set_materialize_grads(False)
        return y, low

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, ctx.kept = ctx.kept, None  # freed as soon as it has been used
        gradient, found = _backward(
            ctx.block, kept, ctx.layout, gradients[0], ctx.needs_input_grad[0]
        )
        return (gradient, None, None, None, None, *found)


def _backward(
    block: Block, kept: _Kept, layout: Ragged, gradient: Tensor, needs_input_gradient: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Return the gradient of the input and those of `block.parameters`."""
    dtype, add_norm_backward = block.output.weight.dtype, block.kernels.add_norm_backward
    above = add_norm_backward(gradient, None, block.output_norm, kept.output_normed, dtype)
    sums = _sums(block, block.output, above.branch, above.branch_sums)
    activated = block.kernels.activated(kept.activation) if block.output.needs_input else None
    of_output = block.output.parameter_gradients(activated, above.branch, sums)
    u = block.output.input_gradient(above.branch)
    u, known = block.kernels.gelu_backward(u, kept.activation)
    sums = _sums(block, block.intermediate, u, known)
    of_intermediate = block.intermediate.parameter_gradients(kept.low_h, u, sums)
    h = block.intermediate.input_gradient(u)
    below = add_norm_backward(above.stream, h, block.attention_norm, kept.attention_normed, dtype)
    sums = _sums(block, block.attention_output, below.branch, below.branch_sums)
    of_attention = block.attention_output.parameter_gradients(kept.context, below.branch, sums)
    context = block.attention_output.input_gradient(below.branch)
    parts = _attend_backward(block, kept.attended, layout, context)
    of_qkv = _qkv_gradients(block, kept.low_x, parts)
    x = _input_gradient(block, parts, below.stream) if needs_input_gradient else None
    mapped = [*of_qkv, *of_attention, *of_intermediate, *of_output]
    return x, [*mapped, *below.norm, *above.norm]


@dataclass
class _Part:
    """Gradient of one product in `qkv`: the maps `first:last` on some rows of the input."""

    gradient: Tensor
    first: int
    last: int
    rows: Tensor | None
    """None means all rows."""


def _sums(
    block: Block, fused: FusedMap, gradient: Tensor, known: Tensor | None = None
) -> Tensor | None:
    """Return the column sums of a gradient, if biases need them."""
    if known is not None or not fused.needs_sums:
        return known
    return block.kernels.column_sums(gradient)


def _attend_backward(
    block: Block, kept: _Attended, layout: Ragged, context: Tensor
) -> tuple[_Part, ...]:
    kernels = block.kernels
    if block.first_token_only:
        heads = context.view(-1, 1, block.head_size).mul_(kept.scale)
    else:
        heads = kernels.split_gradient(context, layout, block.num_heads, scale=kept.scale)
    found = torch.empty(3, *kept.keys.shape, dtype=heads.dtype, device=heads.device)
    dropped = kernels.dropped(kept.probabilities)
    torch.bmm(dropped.transpose(1, 2), heads, out=found[2])
    gradient = torch.bmm(heads, kept.values.transpose(1, 2))
    scores = kernels.softmax_backward(gradient, layout, kept.probabilities)
    torch.bmm(scores.transpose(1, 2), kept.queries, out=found[1])
    if block.first_token_only:
        queries = torch.bmm(scores, kept.keys).mul_(block.query_scale).view(layout.size, -1)
        others = kernels.join(found[1:], layout)
        return _Part(queries, 0, 1, layout.starts), _Part(others, 1, 3, None)
    torch.bmm(scores, kept.keys, out=found[0])
    return (_Part(kernels.join(found, layout, scale=block.query_scale), 0, 3, None),)


def _qkv_gradients(block: Block, low_x: Tensor | None, parts: tuple[_Part, ...]) -> list[Tensor]:
    own: list[Tensor] = []
    for part in parts:
        rows = low_x if low_x is None or part.rows is None else low_x[part.rows]
        sums = _sums(block, block.qkv, part.gradient)
        own += block.qkv.parameter_gradients(rows, part.gradient, sums, part.first, part.last)
    return own


def _input_gradient(block: Block, parts: tuple[_Part, ...], stream: Tensor) -> Tensor:
    """Add the gradient through the products to the one of the residual stream."""
    *few, whole = parts
    x = block.qkv.input_gradient(whole.gradient, whole.first, whole.last)
    if not few:
        return block.kernels.add_(stream, x)
    (part,) = few
    assert part.rows is not None
    past = stream.add_(block.qkv.input_gradient(part.gradient, part.first, part.last))
    return x.float().index_add_(0, part.rows, past)

"""One transformer block with its gradient written out (Vaswani et al. 2017, arXiv:1706.03762).

A post-norm block as BERT has it (Devlin et al. 2018, arXiv:1810.04805), on tokens without padding:

    z1 = x + dropout(W_o attention(x))     h = norm(z1)
    z2 = h + dropout(W_2 gelu(W_1 h))      y = norm(z2)

DistilBERT (arXiv:1910.01108) as in transformers has no dropout in the first line.

Matrix products and attention are in the compute precision; the stream x, z, h, y, softmax and norms
are in fp32, as under autocast. Written out, a block is one node of autograd that keeps only what
its trainable parts need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own custom)

from spafit_bench.fused.dropout import Dropout, keep, keep_
from spafit_bench.fused.maps import FusedMap
from spafit_bench.ragged import Ragged


@dataclass(frozen=True)
class Block:
    """What one block computes with."""

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
    """Of the probabilities."""
    first_token_only: bool = False
    """Whether only each sequence's first token is wanted, as of the last block."""

    @property
    def head_size(self) -> int:
        """Features of one head."""
        return self.attention_output.weight.shape[1] // self.num_heads

    @property
    def maps(self) -> tuple[FusedMap, ...]:
        """The matrix products, in the order of computation."""
        return (self.qkv, self.attention_output, self.intermediate, self.output)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What trains, in the order in which `_backward` returns gradients."""
        norms = [p for n in (self.attention_norm, self.output_norm) for p in n.parameters()]
        mapped = [p for fused in self.maps for p in fused.parameters]
        return [*mapped, *(p for p in norms if p.requires_grad)]

    def __call__(self, x: Tensor, layout: Ragged, *, training: bool) -> Tensor:
        """Apply the block.

        Args:
            x: (num_tokens, hidden) fp32.
            layout: where the sequences are.
            training: whether dropout is on.

        Returns:
            (num_tokens, hidden) fp32; (size, hidden) if `first_token_only`.
        """
        parameters = self.parameters
        if torch.is_grad_enabled() and (x.requires_grad or parameters):
            return _BlockFunction.apply(x, self, layout, training, *parameters)  # type: ignore[no-untyped-call]
        return _forward(self, x, layout, training)[0]


@dataclass
class _Attended:
    """What attention keeps; heads are (size * num_heads, tokens, head_size)."""

    queries: Tensor
    """Scaled by 1 / sqrt(head_size)."""
    keys: Tensor
    values: Tensor
    probabilities: Tensor
    """Before dropout."""
    mask: Tensor | None


@dataclass
class _Normed:
    """What `norm(stream + dropout(branch))` keeps."""

    z: Tensor
    mean: Tensor
    inverse_deviation: Tensor
    mask: Tensor | None
    scale: float


@dataclass
class _Kept:
    """What the backward pass needs of the forward pass; inputs of products only if those train."""

    attended: _Attended
    attention_normed: _Normed
    output_normed: _Normed
    u: Tensor
    low_x: Tensor | None
    context: Tensor | None
    low_h: Tensor | None


def _forward(block: Block, x: Tensor, layout: Ragged, training: bool) -> tuple[Tensor, _Kept]:
    dtype = block.qkv.weight.dtype
    low_x = x.to(dtype)
    stream = x[layout.starts] if block.first_token_only else x
    context, attended = _attend(block, low_x, layout, training)
    branch = block.attention_output.product(context)
    dropout = block.attention_output_dropout if training else None
    h, attention_normed = _add_and_norm(dropout, block.attention_norm, stream, branch)
    low_h = h.to(dtype)
    u = block.intermediate.product(low_h)
    branch = block.output.product(F.gelu(u))
    dropout = block.output_dropout if training else None
    y, output_normed = _add_and_norm(dropout, block.output_norm, h, branch)
    return y, _Kept(
        attended,
        attention_normed,
        output_normed,
        u,
        low_x if block.qkv.needs_input else None,
        context if block.attention_output.needs_input else None,
        low_h if block.intermediate.needs_input else None,
    )


def _add_and_norm(
    dropout: Dropout | None, norm: nn.LayerNorm, stream: Tensor, branch: Tensor
) -> tuple[Tensor, _Normed]:
    mask = dropout.draw(branch) if dropout else None
    scale = dropout.scale if dropout else 1.0
    z = torch.add(stream, keep_(branch, mask), alpha=scale)
    shape = list(norm.normalized_shape)
    y, mean, deviation = torch.native_layer_norm(z, shape, norm.weight, norm.bias, norm.eps)
    return y, _Normed(z, mean, deviation, mask, scale)


def _attend(block: Block, x: Tensor, layout: Ragged, training: bool) -> tuple[Tensor, _Attended]:
    """Return the attention's context, (num queries, hidden), and what its gradient needs."""
    if block.first_token_only:
        (queries,) = _split(block.qkv.product(x[layout.starts], 0, 1), layout.size, 1, block)
        keys, values = _split(
            layout.spread(block.qkv.product(x, 1), zeros=False), layout.size, 2, block
        )
    else:
        together = layout.spread(block.qkv.product(x), zeros=False)  # keys there are masked
        queries, keys, values = _split(together, layout.size, 3, block)
    queries.mul_(1 / math.sqrt(block.head_size))
    scores = torch.bmm(queries, keys.transpose(1, 2)).float()
    if layout.key_mask is not None:
        scores.view(layout.size, block.num_heads, -1, layout.length).add_(layout.key_mask)
    probabilities = scores.softmax(-1).to(x.dtype)
    mask = block.attention_dropout.draw(probabilities) if training else None
    context = torch.bmm(keep(probabilities, mask), values)
    if mask is not None:
        context.mul_(block.attention_dropout.scale)
    together = _join(block, layout.size, context[None])
    together = together if block.first_token_only else layout.gather(together)
    return together, _Attended(queries, keys, values, probabilities, mask)


def _split(x: Tensor, size: int, count: int, block: Block) -> Tensor:
    """(size * tokens, count * hidden) -> (count, size * num_heads, tokens, head_size)."""
    heads = x.view(size, -1, count, block.num_heads, block.head_size).permute(2, 0, 3, 1, 4)
    return heads.reshape(count, size * block.num_heads, -1, block.head_size)


def _join(block: Block, size: int, heads: Tensor) -> Tensor:
    """Undo `_split`."""
    count, _, tokens, _ = heads.shape
    apart = heads.view(count, size, block.num_heads, tokens, block.head_size)
    return apart.permute(1, 3, 0, 2, 4).reshape(size * tokens, -1)


class _BlockFunction(torch.autograd.Function):
    """A block as one node: input and trainable parameters in, output out."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: Block, layout: Ragged, training: bool, *parameters: Tensor
    ) -> Tensor:
        del parameters  # the block has them; autograd has to see them
        ctx.block, ctx.layout, ctx.num_tokens = block, layout, len(x)
        y, ctx.kept = _forward(block, x, layout, training)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, ctx.kept = ctx.kept, None  # freed as soon as it has been used
        gradient, found = _backward(
            ctx.block, kept, ctx.layout, gradients[0], ctx.needs_input_grad[0]
        )
        return (gradient, None, None, None, *found)


def _backward(
    block: Block, kept: _Kept, layout: Ragged, gradient: Tensor, needs_input_gradient: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Return the gradients of the input and of `block.parameters`; names say of what."""
    h, branch, of_output_norm = _norm_backward(
        block, block.output_norm, kept.output_normed, gradient
    )
    activated = F.gelu(kept.u) if block.output.needs_input else None
    of_output = block.output.parameter_gradients(activated, branch)
    u = torch.ops.aten.gelu_backward(block.output.input_gradient(branch), kept.u)
    of_intermediate = block.intermediate.parameter_gradients(kept.low_h, u)
    h.add_(block.intermediate.input_gradient(u))
    stream, branch, of_attention_norm = _norm_backward(
        block, block.attention_norm, kept.attention_normed, h
    )
    of_attention_output = block.attention_output.parameter_gradients(kept.context, branch)
    context = block.attention_output.input_gradient(branch)
    parts = _attend_backward(block, kept.attended, layout, context)
    of_qkv = _qkv_gradients(block.qkv, kept.low_x, parts)
    x = _input_gradient(block.qkv, parts, stream) if needs_input_gradient else None
    mapped = [*of_qkv, *of_attention_output, *of_intermediate, *of_output]
    return x, [*mapped, *of_attention_norm, *of_output_norm]


def _norm_backward(
    block: Block, norm: nn.LayerNorm, kept: _Normed, gradient: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return gradients of the stream (fp32), the branch (compute precision) and the norm."""
    wanted = [True, norm.weight.requires_grad, norm.bias.requires_grad]
    z, *own = torch.ops.aten.native_layer_norm_backward(
        gradient,
        kept.z,
        list(norm.normalized_shape),
        kept.mean,
        kept.inverse_deviation,
        norm.weight,
        norm.bias,
        wanted,
    )
    branch = z.to(block.output.weight.dtype, copy=True)
    if kept.mask is not None:
        keep_(branch, kept.mask).mul_(kept.scale)
    return (
        z,
        branch,
        [tensor for tensor, is_wanted in zip(own, wanted[1:], strict=True) if is_wanted],
    )


@dataclass
class _Part:
    """The gradient of one product of `qkv`: the maps `first:last` on some rows of the input."""

    gradient: Tensor
    first: int
    last: int
    rows: Tensor | None
    """None: all."""


def _attend_backward(
    block: Block, kept: _Attended, layout: Ragged, context: Tensor
) -> tuple[_Part, ...]:
    context = context if block.first_token_only else layout.spread(context, zeros=True)
    (heads,) = _split(context, layout.size, 1, block)
    if kept.mask is not None:
        heads = heads * block.attention_dropout.scale  # it may be a view of what autograd gave
    found = torch.empty(3, *kept.keys.shape, dtype=heads.dtype, device=heads.device)
    torch.bmm(keep(kept.probabilities, kept.mask).transpose(1, 2), heads, out=found[2])
    gradient = keep_(torch.bmm(heads, kept.values.transpose(1, 2)), kept.mask)
    scores = torch.ops.aten._softmax_backward_data(gradient, kept.probabilities, -1, gradient.dtype)
    torch.bmm(scores.transpose(1, 2), kept.queries, out=found[1])
    queries = torch.bmm(scores, kept.keys).mul_(1 / math.sqrt(block.head_size))
    if block.first_token_only:
        of_queries = _Part(_join(block, layout.size, queries[None]), 0, 1, layout.starts)
        others = layout.gather(_join(block, layout.size, found[1:]))
        return of_queries, _Part(others, 1, 3, None)
    found[0] = queries
    return (_Part(layout.gather(_join(block, layout.size, found)), 0, 3, None),)


def _qkv_gradients(qkv: FusedMap, low_x: Tensor | None, parts: tuple[_Part, ...]) -> list[Tensor]:
    own: list[Tensor] = []
    for part in parts:
        rows = low_x if low_x is None or part.rows is None else low_x[part.rows]
        own += qkv.parameter_gradients(rows, part.gradient, part.first, part.last)
    return own


def _input_gradient(qkv: FusedMap, parts: tuple[_Part, ...], stream: Tensor) -> Tensor:
    """Sum what comes through the products and past them; `stream` is of the rows that asked."""
    *few, whole = parts
    x = qkv.input_gradient(whole.gradient, whole.first, whole.last)
    if not few:
        return stream.add_(x)
    (part,) = few
    assert part.rows is not None
    past = stream.add_(qkv.input_gradient(part.gradient, part.first, part.last))
    return x.float().index_add_(0, part.rows, past)

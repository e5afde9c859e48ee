"""One transformer block with its gradient written out (Vaswani et al. 2017, arXiv:1706.03762).

This is the post-norm block of BERT (Devlin et al. 2018, arXiv:1810.04805) on tokens without
padding:

    z1 = x + dropout(W_o attention(x))     h = norm(z1)
    z2 = h + dropout(W_2 gelu(W_1 h))      y = norm(z2)

DistilBERT (arXiv:1910.01108), as transformers implements it, has no dropout in the first line.

Matrix products and attention use the compute precision. The stream x, z, h, y, softmax and norms
use fp32, as under autocast. A block is one autograd node. Its forward pass returns a `backward`
function that holds only what the trained parts need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from spafit_bench.models.fused.kernels import Dropout, Kernels, plus
from spafit_bench.models.fused.maps import FusedMap
from spafit_bench.models.ragged import Ragged

Backward = Callable[[Tensor, bool], tuple[Tensor | None, list[Tensor]]]
"""The gradient of the output, and whether the input needs one -> gradients of the input and of
`Block.parameters`."""


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
    attention_output_dropout: Dropout | None
    output_dropout: Dropout | None
    attention_dropout: Dropout | None
    """Dropout of the attention probabilities."""
    kernels: Kernels
    first_token_only: bool = False
    """Whether only each sequence's first token is needed, as in the last block."""

    @property
    def head_size(self) -> int:
        return self.attention_output.weight.shape[1] // self.num_heads

    @property
    def maps(self) -> tuple[FusedMap, ...]:
        """The matrix products, in the order of computation."""
        return (self.qkv, self.attention_output, self.intermediate, self.output)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """Trained parameters, in the order in which the backward pass returns gradients."""
        norms = [p for n in (self.attention_norm, self.output_norm) for p in n.parameters()]
        mapped = [p for fused in self.maps for p in fused.parameters]
        return [*mapped, *(p for p in norms if p.requires_grad)]

    def __call__(
        self, x: Tensor, low: Tensor, layout: Ragged, *, training: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the block's output in fp32 and in the compute precision.

        The output is (num_tokens, hidden), or (size, hidden) if `first_token_only`. `x` is
        (num_tokens, hidden) fp32, which compiled kernels overwrite. `low` is the same in the
        compute precision, and in fp32 it may be `x` itself. Dropout is on if `training`.
        """
        parameters = self.parameters
        if torch.is_grad_enabled() and (x.requires_grad or parameters):
            return _BlockFunction.apply(x, low, self, layout, training, *parameters)  # type: ignore[no-untyped-call]
        return self.forward(x, low, layout, training, differentiable=False)[:2]

    def forward(
        self, x: Tensor, low: Tensor, layout: Ragged, training: bool, *, differentiable: bool
    ) -> tuple[Tensor, Tensor, Backward]:
        """Compute the block without autograd; return its two results and its backward pass."""
        add_norm = partial(self.kernels.add_norm, differentiable=differentiable)
        stream = x[layout.starts] if self.first_token_only else x
        context, attend_backward = self._attend(low, layout, training)
        branch, bias = self.attention_output.product(context)
        dropout = self.attention_output_dropout if training else None
        h, low_h, above_attention = add_norm(stream, branch, bias, self.attention_norm, dropout)
        u, bias = self.intermediate.product(low_h)
        activated, activated_again, gelu_backward = self.kernels.gelu(
            u, bias, differentiable=differentiable, output_needed=self.output.needs_input
        )
        branch, bias = self.output.product(activated)
        dropout = self.output_dropout if training else None
        y, low_y, above_output = add_norm(h, branch, bias, self.output_norm, dropout)
        kept_context = context if self.attention_output.needs_input else None
        kept_h = low_h if self.intermediate.needs_input else None

        def backward(gradient: Tensor, to_input: bool) -> tuple[Tensor | None, list[Tensor]]:
            stream, branch, of_output_norm, sums = above_output(gradient, None)
            inner = activated_again() if self.output.needs_input else None
            of_output = self.output.parameter_gradients(inner, branch, sums)
            of_u, sums = gelu_backward(self.output.input_gradient(branch))
            of_intermediate = self.intermediate.parameter_gradients(kept_h, of_u, sums)
            of_h = self.intermediate.input_gradient(of_u)
            stream, branch, of_attention_norm, sums = above_attention(stream, of_h)
            of_attention = self.attention_output.parameter_gradients(kept_context, branch, sums)
            of_context = self.attention_output.input_gradient(branch)
            of_x, of_qkv = attend_backward(of_context, stream if to_input else None)
            mapped = [*of_qkv, *of_attention, *of_intermediate, *of_output]
            return of_x, [*mapped, *of_attention_norm, *of_output_norm]

        return y, low_y, backward

    def _attend(
        self, x: Tensor, layout: Ragged, training: bool
    ) -> tuple[Tensor, Callable[[Tensor, Tensor | None], tuple[Tensor | None, list[Tensor]]]]:
        """Return attention's output, (num queries, hidden), and its backward pass.

        The backward pass takes the gradient of the output, and the gradient of the residual stream
        if the input needs a gradient. It returns the gradients of the input and of `qkv`.
        """
        kernels, heads, qkv, few = self.kernels, self.num_heads, self.qkv, self.first_token_only
        query_scale = 1 / math.sqrt(self.head_size)
        dropout = self.attention_dropout if training else None
        scale = dropout.scale if dropout else 1.0
        if few:
            queries = plus(*qkv.product(x[layout.starts], 0, 1)).mul_(query_scale)
            queries = queries.view(-1, 1, self.head_size)
            keys, values = kernels.split(*qkv.product(x, 1), layout, heads, 2, 1.0)
        else:
            queries, keys, values = kernels.split(*qkv.product(x), layout, heads, 3, query_scale)
        scores = torch.bmm(queries, keys.transpose(1, 2))
        dropped, dropped_again, softmax_backward = kernels.softmax(scores, layout, dropout)
        context = torch.bmm(dropped, values)
        if few:
            context = context.view(layout.size, -1).mul_(scale)
        else:
            context = kernels.join(context[None], layout, scale)
        kept_x = x if qkv.needs_input else None

        def backward(gradient: Tensor, stream: Tensor | None) -> tuple[Tensor | None, list[Tensor]]:
            if few:
                gradient = gradient.view(-1, 1, self.head_size).mul_(scale)
            else:
                gradient = kernels.split_gradient(gradient, layout, heads, scale)
            found = gradient.new_empty(3, *keys.shape)
            torch.bmm(dropped_again().transpose(1, 2), gradient, out=found[2])
            scores = softmax_backward(torch.bmm(gradient, values.transpose(1, 2)))
            torch.bmm(scores.transpose(1, 2), queries, out=found[1])
            if few:
                of_queries = torch.bmm(scores, keys).mul_(query_scale).view(layout.size, -1)
                others = kernels.join(found[1:], layout)
                first = None if kept_x is None else kept_x[layout.starts]
                own = qkv.parameter_gradients(first, of_queries, None, 0, 1)
                own += qkv.parameter_gradients(kept_x, others, None, 1)
                if stream is None:
                    return None, own
                of_x = qkv.input_gradient(others, 1).float()
                stream = stream.add_(qkv.input_gradient(of_queries, 0, 1))
                return of_x.index_add_(0, layout.starts, stream), own
            torch.bmm(scores, keys, out=found[0])
            together = kernels.join(found, layout, query_scale)
            own = qkv.parameter_gradients(kept_x, together)
            if stream is None:
                return None, own
            return kernels.add_(stream, qkv.input_gradient(together)), own

        return context, backward


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
        x = x.detach()  # it may be stored, or overwritten
        y, low, ctx.block_backward = block.forward(x, low, layout, training, differentiable=True)
        low = low.detach()  # in fp32 it is y
        ctx.mark_non_differentiable(low)
        ctx.set_materialize_grads(False)
        return y, low

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        backward, ctx.block_backward = ctx.block_backward, None  # freed as soon as it was used
        gradient, found = backward(gradients[0], ctx.needs_input_grad[0])
        return (gradient, None, None, None, None, *found)

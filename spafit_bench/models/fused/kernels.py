"""Everything that a block computes between its matrix products.

`Kernels` uses PyTorch's operations and works on every device and in every precision. `native.py`
has the same in C for bf16 on a CPU. A computation with a gradient also returns `backward`, which
holds the values that the gradient needs. It may be called once, and may overwrite its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own custom)

from spafit_bench.models.ragged import Ragged

Again = Callable[[], Tensor]
"""Returns a result of the forward pass once more, stored or computed again."""
NormGradients = tuple[Tensor, Tensor, list[Tensor], Tensor | None]
"""Gradients of `norm(stream + dropout(branch))`: of the stream, (num_rows, hidden) fp32; of the
branch, in the compute precision; of the norm's weight and bias, if they train; and the branch's
summed over rows, (hidden,), if the kernel has it for free."""

_STEPS = 1 << 15
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Dropout:
    """Drops elements with a probability and scales the rest, from 16 random bits an element.

    `bernoulli_` takes a quarter of a training step on a CPU. Here 64 random bits decide four
    elements. Dropping is a bitwise AND with a mask of all ones or all zeros, which works for any
    float type.
    """

    threshold: int
    """An element is kept if its random 15-bit number is below this."""

    @classmethod
    def of(cls, probability: float) -> Dropout | None:
        """Round a probability to a multiple of 2^-15, never to 1; None if nothing is dropped."""
        threshold = max(1, round((1 - probability) * _STEPS))
        return cls(threshold) if threshold < _STEPS else None

    @property
    def scale(self) -> float:
        """Factor of the remaining elements, exact, so that the expectation is unchanged."""
        return _STEPS / self.threshold

    def draw(self, like: Tensor) -> Tensor:
        """Return a random mask, int16 in the shape of `like`: -1 keeps an element, 0 drops it.

        On a CPU a fast generator draws the bits. torch's global generator seeds it each time, so
        the state that a snapshot stores determines all of them.
        """
        count = (like.numel() + 3) // 4
        if like.device.type == "cpu":
            drawn = np.random.SFC64(draw_seed()).random_raw(count)
            words = torch.from_numpy(drawn.view(np.int64))
        else:
            words = torch.empty(count, dtype=torch.int64, device=like.device)
            words.random_(-(2**63), None)
        bits = words.view(torch.int16)[: like.numel()]
        bits = bits.bitwise_and_(_STEPS - 1).sub_(self.threshold).bitwise_right_shift_(15)
        return bits.view(like.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Drop and scale, as a differentiable operation."""
        return x * self.draw(x).to(x.dtype).mul_(-self.scale)


def draw_seed() -> int:
    """Draw 63 bits from torch's global generator of the CPU."""
    return int(torch.empty(1, dtype=torch.int64).random_(0, None).item())


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return `x` with dropped elements set to zero; the others are not scaled."""
    if mask is None:
        return x
    integers = _INTEGER[x.element_size()]
    return (x.view(integers) & mask.to(integers)).view(x.dtype)


def keep_(x: Tensor, mask: Tensor | None) -> Tensor:
    """Do `keep` in place."""
    if mask is not None:
        integers = _INTEGER[x.element_size()]
        x.view(integers).bitwise_and_(mask.to(integers))
    return x


def plus(x: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias that a product left out: (num_rows, width) + (width,), in the precision of `x`."""
    return x if bias is None else (x + bias).to(x.dtype)


class Kernels:
    """The computations in PyTorch. `bias` is always the one that the product left out, or None."""

    name = "torch"
    takes_bias = False
    """Whether products leave their fp32 bias to the next kernel, which adds it for free."""

    def split(
        self, x: Tensor, bias: Tensor | None, layout: Ragged, heads: int, count: int, scale: float
    ) -> Tensor:
        """Separate sequences and heads: return (count, size * heads, length, head_size).

        `x` is (num_rows, count * hidden) and may be overwritten: `count` parts (query, key, value)
        lie side by side. The first part is multiplied by `scale`. Padding gets any finite values.
        """
        return _split(layout.spread(plus(x, bias), zeros=False), layout, heads, count, scale)

    def split_gradient(self, x: Tensor, layout: Ragged, heads: int, scale: float) -> Tensor:
        """Do `split` with one part; padding gets zeros."""
        return _split(layout.spread(x, zeros=True), layout, heads, 1, scale)[0]

    def join(self, parts: Tensor, layout: Ragged, scale: float = 1.0) -> Tensor:
        """Undo `split`; `parts` may be overwritten.

        Padding rows get finite values, and zeros if the padding of `parts` is zero.
        """
        if scale != 1:
            parts[0].mul_(scale)
        count, pairs, length, head_size = parts.shape
        apart = parts.view(count, layout.size, pairs // layout.size, length, head_size)
        return layout.gather(apart.permute(1, 3, 0, 2, 4).reshape(layout.size * length, -1))

    def softmax(
        self, scores: Tensor, layout: Ragged, dropout: Dropout | None
    ) -> tuple[Tensor, Again, Callable[[Tensor], Tensor]]:
        """Turn scores into probabilities over a sequence's own keys.

        `scores` is (size * heads, queries, length) in the compute precision, and is overwritten.
        `queries` is `length`, or 1 if only the first tokens ask.

        Returns:
            Probabilities after dropout, not scaled; the same again; and `backward`, from their
            gradient to the gradient of the scores.
        """
        dtype, scores = scores.dtype, scores.float()
        if layout.key_mask is not None:
            masked = scores.view(layout.size, -1, scores.shape[1], layout.length)
            masked.add_(layout.key_mask)
        before = scores.softmax(-1).to(dtype)
        mask = dropout.draw(before) if dropout else None

        def backward(gradient: Tensor) -> Tensor:
            gradient = keep_(gradient, mask)  # padding has probability 0, so its gradient is 0
            return torch.ops.aten._softmax_backward_data(gradient, before, -1, gradient.dtype)

        return keep(before, mask), lambda: keep(before, mask), backward

    def gelu(
        self, u: Tensor, bias: Tensor | None, *, differentiable: bool, output_needed: bool
    ) -> tuple[Tensor, Again, Callable[[Tensor], tuple[Tensor, Tensor | None]]]:
        """Return GELU of `u`, (num_rows, width), which may be overwritten.

        `differentiable` says whether there will be gradients, `output_needed` whether one of them
        needs the output.

        Returns:
            The output; the same again; and `backward`, from its gradient to the gradient of `u`,
            and the latter summed over rows if the kernel has it for free.
        """
        del differentiable, output_needed
        u = plus(u, bias)
        return F.gelu(u), lambda: F.gelu(u), lambda g: (torch.ops.aten.gelu_backward(g, u), None)

    def add_norm(
        self,
        stream: Tensor,
        branch: Tensor,
        bias: Tensor | None,
        norm: nn.LayerNorm,
        dropout: Dropout | None,
        *,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor | None], NormGradients]]:
        """Return `norm(stream + dropout(branch))`, in fp32 and in the compute precision.

        `stream` is (num_rows, hidden) fp32, `branch` the same in the compute precision; both may be
        overwritten. `differentiable` says whether there will be gradients.

        Returns:
            Both results, and `backward`. Its arguments are the gradient of the first result and
            another gradient to add to it, in the compute precision, or None.
        """
        del differentiable
        branch = plus(branch, bias)
        mask = dropout.draw(branch) if dropout else None
        scale, dtype, shape = dropout.scale if dropout else 1.0, branch.dtype, branch.shape[-1:]
        z = torch.add(stream, keep_(branch, mask), alpha=scale)
        y, *moments = torch.native_layer_norm(z, shape, norm.weight, norm.bias, norm.eps)

        def backward(gradient: Tensor, more: Tensor | None) -> NormGradients:
            gradient = gradient if more is None else gradient + more
            wanted = [True, norm.weight.requires_grad, norm.bias.requires_grad]
            of_stream, *own = torch.ops.aten.native_layer_norm_backward(
                gradient, z, shape, *moments, norm.weight, norm.bias, wanted
            )
            of_branch = keep_(of_stream.to(dtype, copy=True), mask)
            if dropout:
                of_branch.mul_(scale)
            return of_stream, of_branch, [g for g in own if g is not None], None

        return y, y.to(dtype), backward

    def column_sums(self, x: Tensor) -> Tensor:
        """Sum over rows: (num_rows, width) -> (width,)."""
        return x.sum(0)

    def add_(self, x: Tensor, more: Tensor) -> Tensor:
        """Add `more`, in the compute precision, to `x`, fp32, in place."""
        return x.add_(more)


def _split(x: Tensor, layout: Ragged, heads: int, count: int, scale: float) -> Tensor:
    apart = x.view(layout.size, -1, count, heads, x.shape[1] // count // heads)
    parts = apart.permute(2, 0, 3, 1, 4).contiguous()
    if scale != 1:
        parts[0].mul_(scale)
    return parts.view(count, layout.size * heads, -1, parts.shape[-1])

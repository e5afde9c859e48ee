"""Everything that a block computes between its matrix products.

`Kernels` uses PyTorch's operations and works on every device and in every precision. `native.py`
has the same in C for bf16 on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own custom)

from spafit_bench.models.fused.dropout import Dropout, keep, keep_
from spafit_bench.models.ragged import Ragged


@dataclass(frozen=True)
class Normed:
    """Values that the gradient of `norm(stream + dropout(branch))` needs."""

    z: Tensor
    """(num_rows, hidden) fp32: the input of the norm, if there will be gradients. The first reader
    may overwrite it."""
    mean: Tensor
    inverse_deviation: Tensor
    dropout: Dropout | None
    dropped: Tensor | int | None
    """The dropout mask, or the seed that draws it again."""


@dataclass(frozen=True)
class Probabilities:
    """Values that the gradient of softmax with dropout needs; each has the shape of the scores."""

    before: Tensor
    """Probabilities before dropout."""
    after: Tensor | None = None
    """Probabilities after dropout, unscaled, if they are stored."""
    mask: Tensor | None = None
    """The dropout mask, if that is stored instead. Without both, nothing was dropped."""


@dataclass(frozen=True)
class Activation:
    """Values that the gradient of GELU needs."""

    output: Tensor | None
    """(num_rows, width), if it is stored instead of being computed again."""
    kept: Tensor | None
    """(num_rows, width): the slope or the input; None without gradients."""


@dataclass(frozen=True)
class NormGradients:
    """Gradients of `norm(stream + dropout(branch))`."""

    stream: Tensor
    """(num_rows, hidden) fp32."""
    branch: Tensor
    """(num_rows, hidden) in the compute precision."""
    norm: list[Tensor]
    """Gradients of the norm's weight and bias, if they train."""
    branch_sums: Tensor | None
    """(hidden,): the branch's gradient summed over rows, if the kernel has it for free."""


def plus(x: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias that a product left out: (num_rows, width) + (width,), in the precision of `x`."""
    return x if bias is None else (x + bias).to(x.dtype)


class Kernels:
    """The computations in PyTorch."""

    name = "torch"
    takes_bias = False
    """Whether products leave their fp32 bias to the next kernel, which adds it for free."""

    def split(
        self,
        x: Tensor,
        bias: Tensor | None,
        layout: Ragged,
        num_heads: int,
        count: int,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        """Separate sequences and heads.

        Args:
            x: (num_rows, count * hidden), sequences end to end, parts side by side; may be
                overwritten.
            bias: the bias that the product left out.
            layout: where the sequences are; padding gets any finite values.
            num_heads: heads of a part.
            count: parts.
            scale: factor of the first part.

        Returns:
            (count, size * num_heads, length, head_size).
        """
        spread = layout.spread(plus(x, bias), zeros=False)
        return self._split(spread, layout, num_heads, count, scale)

    def split_gradient(self, x: Tensor, layout: Ragged, num_heads: int, *, scale: float) -> Tensor:
        """`split` with one part, padded with zeros."""
        return self._split(layout.spread(x, zeros=True), layout, num_heads, 1, scale)[0]

    def _split(self, x: Tensor, layout: Ragged, num_heads: int, count: int, scale: float) -> Tensor:
        apart = x.view(layout.size, -1, count, num_heads, x.shape[1] // count // num_heads)
        heads = apart.permute(2, 0, 3, 1, 4).contiguous()
        if scale != 1:
            heads[0].mul_(scale)
        return heads.view(count, layout.size * num_heads, -1, heads.shape[-1])

    def join(self, heads: Tensor, layout: Ragged, *, scale: float = 1.0) -> Tensor:
        """Undo `split`; `heads` may be overwritten.

        Padding rows get finite values, and zeros if the padding of `heads` is zero.
        """
        if scale != 1:
            heads[0].mul_(scale)
        count, pairs, length, head_size = heads.shape
        apart = heads.view(count, layout.size, pairs // layout.size, length, head_size)
        return layout.gather(apart.permute(1, 3, 0, 2, 4).reshape(layout.size * length, -1))

    def softmax(
        self, scores: Tensor, layout: Ragged, dropout: Dropout | None
    ) -> tuple[Tensor, Probabilities]:
        """Turn scores into probabilities over a sequence's own keys.

        Args:
            scores: (size * num_heads, queries, length) in the compute precision; overwritten.
            layout: where the sequences are; `queries` is `length`, or one for each sequence.
            dropout: of the probabilities.

        Returns:
            Probabilities after dropout, not scaled, and what their gradient needs.
        """
        dtype, scores = scores.dtype, scores.float()
        if layout.key_mask is not None:
            masked = scores.view(layout.size, -1, scores.shape[1], layout.length)
            masked.add_(layout.key_mask)
        probabilities = scores.softmax(-1).to(dtype)
        mask = dropout.draw(probabilities) if dropout else None
        return keep(probabilities, mask), Probabilities(probabilities, mask=mask)

    def dropped(self, kept: Probabilities) -> Tensor:
        """Return the first result of `softmax` once more."""
        return keep(kept.before, kept.mask)

    def softmax_backward(self, gradient: Tensor, layout: Ragged, kept: Probabilities) -> Tensor:
        """Return the gradient of the scores.

        Args:
            gradient: of probabilities after dropout; overwritten.
            layout: where the sequences are.
            kept: of `softmax`.
        """
        del layout  # padding has probability 0, so its gradient is 0
        gradient = keep_(gradient, kept.mask)
        return torch.ops.aten._softmax_backward_data(gradient, kept.before, -1, gradient.dtype)

    def gelu(
        self, u: Tensor, bias: Tensor | None, *, differentiable: bool, output_needed: bool
    ) -> tuple[Tensor, Activation]:
        """Return GELU of `u` (num_rows, width), and the values that its gradient needs.

        Args:
            u: the input; may be overwritten.
            bias: the bias that the product left out.
            differentiable: whether there will be gradients.
            output_needed: whether one of them needs the output.
        """
        del differentiable, output_needed
        u = plus(u, bias)
        return F.gelu(u), Activation(None, u)

    def activated(self, kept: Activation) -> Tensor:
        """Return the first result of `gelu` once more."""
        assert kept.kept is not None
        return F.gelu(kept.kept)

    def gelu_backward(self, gradient: Tensor, kept: Activation) -> tuple[Tensor, Tensor | None]:
        """Return the gradient of `u`, and its column sums if the kernel has them for free.

        Args:
            gradient: of GELU of `u`; overwritten.
            kept: of `gelu`.
        """
        assert kept.kept is not None
        return torch.ops.aten.gelu_backward(gradient, kept.kept), None

    def add_norm(
        self,
        stream: Tensor,
        branch: Tensor,
        bias: Tensor | None,
        norm: nn.LayerNorm,
        dropout: Dropout | None,
        *,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Normed]:
        """Return `norm(stream + dropout(branch))`, in fp32 and in the compute precision.

        Args:
            stream: (num_rows, hidden) fp32; may be overwritten, so may `branch`.
            branch: (num_rows, hidden) in the compute precision.
            bias: the bias that the product left out of the branch.
            norm: in fp32.
            dropout: of the branch.
            differentiable: whether the `Normed` will be used.
        """
        del differentiable
        branch = plus(branch, bias)
        mask = dropout.draw(branch) if dropout else None
        z = torch.add(stream, keep_(branch, mask), alpha=dropout.scale if dropout else 1.0)
        shape = list(norm.normalized_shape)
        y, mean, deviation = torch.native_layer_norm(z, shape, norm.weight, norm.bias, norm.eps)
        return y, y.to(branch.dtype), Normed(z, mean, deviation, dropout, mask)

    def add_norm_backward(
        self,
        gradient: Tensor,
        more: Tensor | None,
        norm: nn.LayerNorm,
        kept: Normed,
        dtype: torch.dtype,
    ) -> NormGradients:
        """Return the gradients of `add_norm`.

        Args:
            gradient: (num_rows, hidden) fp32, of its output.
            more: a second gradient to add, in the compute precision.
            norm: as in `add_norm`.
            kept: of `add_norm`; may be overwritten.
            dtype: the compute precision.
        """
        wanted = [True, norm.weight.requires_grad, norm.bias.requires_grad]
        z, *own = torch.ops.aten.native_layer_norm_backward(
            gradient if more is None else gradient + more,
            kept.z,
            list(norm.normalized_shape),
            kept.mean,
            kept.inverse_deviation,
            norm.weight,
            norm.bias,
            wanted,
        )
        branch = z.to(dtype, copy=True)
        if kept.dropout is not None:
            assert not isinstance(kept.dropped, int)
            keep_(branch, kept.dropped).mul_(kept.dropout.scale)
        trained = [tensor for tensor, is_wanted in zip(own, wanted[1:], strict=True) if is_wanted]
        return NormGradients(z, branch, trained, None)

    def column_sums(self, x: Tensor) -> Tensor:
        """Sum over rows: (num_rows, width) -> (width,)."""
        return x.sum(0)

    def add_(self, x: Tensor, more: Tensor) -> Tensor:
        """Add `more`, in the compute precision, to `x`, fp32, in place."""
        return x.add_(more)

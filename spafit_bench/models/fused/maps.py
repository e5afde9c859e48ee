"""Linear maps of a block in the fast engine: merged weights and explicit gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor, nn

from spafit_bench.models.adapters import LoraLinear

PACKING_ROWS = 1024
"""Packing a matrix costs about as much time as it saves on one product with 2,048 rows, so a few
short texts would wait longer."""


@cache
def can_pack() -> bool:
    """Whether this PyTorch and this processor support packed matrices."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack(weight: Tensor) -> Tensor | None:
    """Copy a matrix (out, in) into oneDNN's own layout; None where that is impossible or useless.

    Otherwise oneDNN converts the matrix in every product, which takes up to a seventh of the time
    with 1,024 rows. Results are the same to the bit. The copy doubles the memory of the matrix, so
    it pays in evaluation but not in training (LOG.md).
    """
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not can_pack():
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + bias, (num_rows, out), for x (num_rows, in) and W from `pack`."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product


class FusedMap:
    """One matrix product for linear maps that read the same input (query, key and value).

    The product uses `weight` (out, in), in the compute precision, and `bias` (out,). They hold the
    rows of all maps, one map below the other. A frozen weight is stored only here: the model's own
    parameter becomes a view of it. `refresh` merges an adapter into its weight as W + s B A. With
    more tokens than the rank, this is cheaper than two more products for each token. The sum is
    rounded to the compute precision, so an update below half a rounding step of W has no effect
    until it has grown.
    """

    def __init__(
        self, linears: Sequence[nn.Linear], dtype: torch.dtype, *, adds_bias: bool = True
    ) -> None:
        """Prepare the product.

        Args:
            linears: maps with the same input, on one device.
            dtype: the compute precision.
            adds_bias: whether `product` adds the bias, in that precision.
        """
        self.linears, self.adds_bias = tuple(linears), adds_bias
        self.rows = _stacked([linear.out_features for linear in linears])
        device, num_rows = linears[0].weight.device, self.rows[-1].stop
        self.weight = torch.empty(num_rows, linears[0].in_features, dtype=dtype, device=device)
        bias_dtype = dtype if adds_bias else torch.float32
        self.bias = torch.empty(num_rows, dtype=bias_dtype, device=device)
        with torch.no_grad():
            for linear, rows in zip(self.linears, self.rows, strict=True):
                self.weight[rows], self.bias[rows] = linear.weight, linear.bias
                is_adapted = isinstance(linear, LoraLinear)  # then merging needs its own weight
                if linear.weight.dtype == dtype and not is_adapted:
                    linear.weight.data = self.weight[rows]
        own = [parameter for linear in linears for parameter in linear.parameters()]
        self.parameters = [parameter for parameter in own if parameter.requires_grad]
        ranks = [len(a.lora_A) if isinstance(a, LoraLinear) else 0 for a in self.linears]
        self.ranks = _stacked(ranks)
        self.factors_a = self.weight.new_empty(sum(ranks), self.weight.shape[1])
        self.adapters = {
            number: _Adapter(
                linear, self.factors_a[rows], self.weight.new_empty(linear.lora_B.shape)
            )
            for number, (linear, rows) in enumerate(zip(self.linears, self.ranks, strict=True))
            if isinstance(linear, LoraLinear)
        }

        self.is_training = True
        self.packed: dict[tuple[int, int], Tensor | None] = {}
        """First and past-the-last row of `weight` -> packed copy, cleared when training resumes."""

    @cached_property
    def needs_input(self) -> bool:
        """Whether gradients need the input, because a matrix or an adapter trains."""
        return any(parameter.dim() > 1 for parameter in self.parameters)

    @cached_property
    def needs_sums(self) -> bool:
        """Whether gradients need column sums of the output's gradient, because a bias trains."""
        return any(parameter.dim() == 1 for parameter in self.parameters)

    @torch.no_grad()
    def refresh(self, *, training: bool) -> None:
        """Copy trained weights and biases, and merge the adapters, before a step or evaluation."""
        self.is_training = training
        self.packed.clear()
        for number, (linear, rows) in enumerate(zip(self.linears, self.rows, strict=True)):
            own = self.weight[rows]
            if linear.weight.requires_grad and linear.weight.data_ptr() != own.data_ptr():
                own.copy_(linear.weight)
            if linear.bias.requires_grad:
                self.bias[rows] = linear.bias
            if adapter := self.adapters.get(number):
                adapter.merge(own)

    def product(
        self, x: Tensor, first: int = 0, last: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the maps `first:last` in one product.

        Args:
            x: (num_tokens, in).
            first: the first of these maps.
            last: one past the last of them; None for the end.

        Returns:
            (num_tokens, rows of these maps), and the bias that is still to be added, (rows of these
            maps,) fp32, or None.
        """
        rows = self._span(first, last)
        bias, late = (self.bias[rows], None) if self.adds_bias else (None, self.bias[rows])
        packed = None if self.is_training or len(x) < PACKING_ROWS else self._packed(rows)
        if packed is not None:
            return packed_product(x, packed, bias), late
        weight = self.weight[rows].t()
        return x @ weight if bias is None else torch.addmm(bias, x, weight), late

    def input_gradient(self, gradient: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Return the gradient of the input, given the gradient of `product`."""
        return gradient @ self.weight[self._span(first, last)]

    def _packed(self, rows: slice) -> Tensor | None:
        key = (rows.start, rows.stop)
        if key not in self.packed:
            self.packed[key] = pack(self.weight[rows])
        return self.packed[key]

    def _span(self, first: int, last: int | None) -> slice:
        return slice(self.rows[first].start, self.rows[last - 1 if last else -1].stop)

    def parameter_gradients(
        self,
        x: Tensor | None,
        gradient: Tensor,
        sums: Tensor | None,
        first: int = 0,
        last: int | None = None,
    ) -> list[Tensor]:
        """Return the gradients of trained parameters in `first:last`, in `parameters`' order.

        Args:
            x: (num_tokens, in) the input of `product`; only used if `needs_input`.
            gradient: (num_tokens, rows of these maps) of its output.
            sums: (rows of these maps,) the gradient summed over tokens; only used if `needs_sums`.
            first: the first of these maps.
            last: one past the last of them; None for the end.
        """
        maps = range(first, last or len(self.linears))
        start = self.rows[first].start
        spans = {i: slice(self.rows[i].start - start, self.rows[i].stop - start) for i in maps}
        parts = {i: gradient[:, span] for i, span in spans.items()}
        of_factors = self._factor_gradients(x, parts)
        found: list[Tensor] = []
        for index in maps:
            linear, part = self.linears[index], parts[index]
            if linear.weight.requires_grad:
                assert x is not None
                found.append(part.t() @ x)
            if linear.bias.requires_grad:
                assert sums is not None
                found.append(sums[spans[index]])
            found += of_factors.get(index, ())
        return [tensor.float() for tensor in found]

    def _factor_gradients(
        self, x: Tensor | None, parts: dict[int, Tensor]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Return gradients of A and B of each adapter; all of A come from one product.

        Args:
            x: (num_tokens, in) their input.
            parts: consecutive maps -> (num_tokens, out) the gradient of the output.
        """
        adapters = {number: self.adapters[number] for number in parts if number in self.adapters}
        if not adapters:
            return {}
        assert x is not None
        a = self.factors_a[self.ranks[min(parts)].start : self.ranks[max(parts)].stop]
        ranks = [len(adapter.a) for adapter in adapters.values()]
        through_b = [parts[number] @ adapter.b for number, adapter in adapters.items()]
        of_a = (torch.cat(through_b, 1).t() @ x).split(ranks)
        through_a = (x @ a.t()).split(ranks, 1)
        scaling = [adapter.linear.scaling for adapter in adapters.values()]
        return {
            number: (own * s, parts[number].t() @ low * s)
            for number, own, low, s in zip(adapters, of_a, through_a, scaling, strict=True)
        }


@dataclass(frozen=True)
class _Adapter:
    """A map with a low-rank update, and its factors in the compute precision."""

    linear: LoraLinear
    a: Tensor
    """(rank, in), a view into `factors_a` of the `FusedMap`."""
    b: Tensor
    """(out, rank)."""

    def merge(self, out: Tensor) -> None:
        """Write W + s B A to `out`, (out, in), and the present factors to `a` and `b`."""
        linear = self.linear
        a, b = self.a.copy_(linear.lora_A), self.b.copy_(linear.lora_B)
        torch.addmm(linear.weight.to(out.dtype), b, a, alpha=linear.scaling, out=out)


def _stacked(sizes: Sequence[int]) -> list[slice]:
    """Return the row range of each part when parts of these sizes are stacked."""
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]

"""Linear maps of a block as the fast engine computes them: merged weights, explicit gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from spafit_bench.models.adapters import LoraLinear
from spafit_bench.models.fused.packing import PACKING_ROWS, pack, packed_product


class FusedMap:
    """One matrix product for linear maps that read the same input (query, key and value).

    `weight` (out, in), in the compute precision, and `bias` (out,) hold what the product uses, the
    maps' rows below one another. A frozen weight lives here only: the model's own parameter becomes
    a view of it. An adapted weight is formed as W + s B A by `refresh`: with more tokens than the
    rank, that is cheaper than two more products for each token. It is rounded to the compute
    precision, so an update below half a step of W has no effect until it has grown.
    """

    def __init__(
        self, linears: Sequence[nn.Linear], dtype: torch.dtype, *, adds_bias: bool = True
    ) -> None:
        """Prepare the product.

        Args:
            linears: on one device; they share their input.
            dtype: the compute precision.
            adds_bias: whether `product` does, in that precision.
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
                is_adapted = isinstance(linear, LoraLinear)  # then its own weight is still needed
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
        """Rows of `weight`, first and past the last, as `packed_product` takes them; kept until
        training goes on, which has better uses for the memory."""

    @cached_property
    def needs_input(self) -> bool:
        """Whether gradients need the input: a matrix or an adapter trains."""
        return any(parameter.dim() > 1 for parameter in self.parameters)

    @cached_property
    def needs_sums(self) -> bool:
        """Whether gradients need that of the output summed over rows: a bias trains."""
        return any(parameter.dim() == 1 for parameter in self.parameters)

    @torch.no_grad()
    def refresh(self, *, training: bool) -> None:
        """Bring `weight` and `bias` up to date with what has trained, for a step or to evaluate."""
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
        """Apply the maps `first:last` at once.

        Args:
            x: (num_tokens, in).
            first: the first of these maps.
            last: one past the last of them; None for the end.

        Returns:
            (num_tokens, their rows), and what is still to be added to it, (their rows,) fp32, if
            anything.
        """
        rows = self._span(first, last)
        bias, late = (self.bias[rows], None) if self.adds_bias else (None, self.bias[rows])
        packed = None if self.is_training or len(x) < PACKING_ROWS else self._packed(rows)
        if packed is not None:
            return packed_product(x, packed, bias), late
        weight = self.weight[rows].t()
        return x @ weight if bias is None else torch.addmm(bias, x, weight), late

    def input_gradient(self, gradient: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Pull a gradient of `product` back to its input."""
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
        """Gradients of what trains in the maps `first:last`, in the order of `parameters`.

        Args:
            x: (num_tokens, in) the input of `product`; not looked at unless `needs_input`.
            gradient: (num_tokens, rows of these maps) of its output.
            sums: (rows of these maps,) the same summed over tokens; not looked at unless
                `needs_sums`.
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
        """Gradients of A and B of adapters; those of A, which read the same input, in one product.

        Args:
            x: (num_tokens, in) their input.
            parts: map -> (num_tokens, out) the gradient of its output; maps in a row.
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
    """A map with a low-rank update, and the factors in the compute precision."""

    linear: LoraLinear
    a: Tensor
    """(rank, in), a part of the map's `factors_a`."""
    b: Tensor
    """(out, rank)."""

    def merge(self, out: Tensor) -> None:
        """Write W + s B A to `out`, (out, in), and the factors as they are now to `a` and `b`."""
        linear = self.linear
        a, b = self.a.copy_(linear.lora_A), self.b.copy_(linear.lora_B)
        torch.addmm(linear.weight.to(out.dtype), b, a, alpha=linear.scaling, out=out)


def _stacked(sizes: Sequence[int]) -> list[slice]:
    """Return the rows of parts that lie below one another."""
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]

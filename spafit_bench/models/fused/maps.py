"""Linear maps of a block in the fast engine: merged weights and explicit gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache, cached_property

import torch
from torch import Tensor, nn

from spafit_bench.models.adapters import LoraLinear
from spafit_bench.models.fused.kernels import Kernels

PACKING_ROWS = 1024
"""Packing a matrix costs about as much time as it saves on one product with 2,048 rows, so a few
short texts would wait longer."""


@cache
def can_pack() -> bool:
    """Return whether this PyTorch and this processor support packed matrices."""
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
    return torch.ops.mkldnn._reorder_linear_weight(weight)


class FusedMap:
    """One matrix product for linear maps that read the same input (query, key and value).

    The product uses `weight` (out, in), in the compute precision, and `bias` (out,). They hold the
    rows of all maps, one map below the other. A frozen weight is stored only here: the model's own
    parameter becomes a view of it. `refresh` merges an adapter into its weight as W + s B A. With
    more tokens than the rank, this is cheaper than two more products for each token. The sum is
    rounded to the compute precision, so an update below half a rounding step of W has no effect
    until it has grown.

    Methods take `first` and `last` to use only the maps `first:last`.
    """

    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype, kernels: Kernels) -> None:
        """Prepare the product of maps with the same input; `dtype` is the compute precision."""
        self.linears, self.kernels = tuple(linears), kernels
        self.rows = _stacked([linear.out_features for linear in linears])
        device, num_rows = linears[0].weight.device, self.rows[-1].stop
        self.weight = torch.empty(num_rows, linears[0].in_features, dtype=dtype, device=device)
        bias_dtype = torch.float32 if kernels.takes_bias else dtype
        self.bias = torch.empty(num_rows, dtype=bias_dtype, device=device)
        ranks = [len(a.lora_A) if isinstance(a, LoraLinear) else 0 for a in linears]
        self.ranks = _stacked(ranks)
        self.factors_a = self.weight.new_empty(sum(ranks), self.weight.shape[1])
        self.adapters: dict[int, tuple[LoraLinear, Tensor, Tensor]] = {}
        """Number of a map -> its adapter; A (rank, in) and B (out, rank) in the compute precision.
        Each A is a view into `factors_a`."""
        with torch.no_grad():
            for number, (linear, rows) in enumerate(zip(linears, self.rows, strict=True)):
                self.weight[rows], self.bias[rows] = linear.weight, linear.bias
                if isinstance(linear, LoraLinear):  # merging needs the frozen weight beside the sum
                    a, b = self.factors_a[self.ranks[number]], linear.lora_B.to(dtype, copy=True)
                    self.adapters[number] = linear, a, b
                elif linear.weight.dtype == dtype:
                    linear.weight.data = self.weight[rows]
        own = [parameter for linear in linears for parameter in linear.parameters()]
        self.parameters = [parameter for parameter in own if parameter.requires_grad]
        self.is_training = True
        self.packed: dict[tuple[int, int], Tensor | None] = {}
        """First and past-the-last row of `weight` -> packed copy, cleared when training resumes."""

    @cached_property
    def needs_input(self) -> bool:
        """Whether gradients need the input, because a matrix or an adapter trains."""
        return any(parameter.dim() > 1 for parameter in self.parameters)

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
            if number in self.adapters:
                lora, a, b = self.adapters[number]
                factors = b.copy_(lora.lora_B), a.copy_(lora.lora_A)
                torch.addmm(linear.weight.to(own.dtype), *factors, alpha=lora.scaling, out=own)

    def product(
        self, x: Tensor, first: int = 0, last: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the maps to x, (num_tokens, in), in one product.

        Returns:
            (num_tokens, rows of these maps), and the bias that is still to be added, (rows of these
            maps,) fp32, or None.
        """
        rows = self._span(first, last)
        own = self.bias[rows]
        bias, late = (None, own) if self.kernels.takes_bias else (own, None)
        if not self.is_training and len(x) >= PACKING_ROWS:
            key = (rows.start, rows.stop)
            if key not in self.packed:
                self.packed[key] = pack(self.weight[rows])
            if (packed := self.packed[key]) is not None:
                return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""), late
        weight = self.weight[rows].t()
        return x @ weight if bias is None else torch.addmm(bias, x, weight), late

    def input_gradient(self, gradient: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Return the gradient of the input, given the gradient of `product`."""
        return gradient @ self.weight[self._span(first, last)]

    def parameter_gradients(
        self,
        x: Tensor | None,
        gradient: Tensor,
        sums: Tensor | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> list[Tensor]:
        """Return the gradients of the trained parameters, in the order of `parameters`.

        `x` is the input of `product`, only used if `needs_input`; `gradient` is that of its output;
        `sums` is the gradient summed over tokens, if the caller has it.
        """
        maps = range(len(self.linears))[first:last]
        if sums is None and any(self.linears[number].bias.requires_grad for number in maps):
            sums = self.kernels.column_sums(gradient)
        start = self.rows[first].start
        spans = {i: slice(self.rows[i].start - start, self.rows[i].stop - start) for i in maps}
        of_factors = self._factor_gradients(x, {i: gradient[:, spans[i]] for i in maps})
        found: list[Tensor] = []
        for number in maps:
            linear = self.linears[number]
            if linear.weight.requires_grad:
                assert x is not None
                found.append(gradient[:, spans[number]].t() @ x)
            if linear.bias.requires_grad:
                assert sums is not None
                found.append(sums[spans[number]])
            found += of_factors.get(number, ())
        return [tensor.float() for tensor in found]

    def _factor_gradients(
        self, x: Tensor | None, parts: dict[int, Tensor]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Return gradients of A and B of each adapter; all of A come from one product.

        `parts` maps the number of each of some consecutive maps to the gradient of its output.
        """
        adapters = {number: self.adapters[number] for number in parts if number in self.adapters}
        if not adapters:
            return {}
        assert x is not None
        together = self.factors_a[self.ranks[min(parts)].start : self.ranks[max(parts)].stop]
        ranks = [len(a) for _, a, _ in adapters.values()]
        through_b = [parts[number] @ b for number, (_, _, b) in adapters.items()]
        of_a = (torch.cat(through_b, 1).t() @ x).split(ranks)
        through_a = (x @ together.t()).split(ranks, 1)
        return {
            number: (own * lora.scaling, parts[number].t() @ low * lora.scaling)
            for (number, (lora, _, _)), own, low in zip(
                adapters.items(), of_a, through_a, strict=True
            )
        }

    def _span(self, first: int, last: int | None) -> slice:
        return slice(self.rows[first].start, self.rows[last - 1 if last else -1].stop)


def _stacked(sizes: Sequence[int]) -> list[slice]:
    """Return the row range of each part when parts of these sizes are stacked."""
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]

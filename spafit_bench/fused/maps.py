"""Linear maps of a block as the fast engine computes them: merged weights, explicit gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spafit_bench.lora import LoraLinear


class FusedMap:
    """One matrix product for linear maps that read the same input (query, key and value).

    `weight` (out, in) and `bias` (out,) hold what the product uses, in the compute precision, the
    maps' rows below one another. A frozen weight lives here only: the model's own parameter becomes
    a view of it. An adapted weight is formed as W + s B A by `refresh`: with more tokens than the
    rank, that is cheaper than two more products for each token. It is rounded to the compute
    precision, so an update below half a step of W has no effect until it has grown.
    """

    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.linears = tuple(linears)
        ends = torch.tensor([linear.out_features for linear in linears]).cumsum(0).tolist()
        self.rows = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        device = linears[0].weight.device
        self.weight = torch.empty(ends[-1], linears[0].in_features, dtype=dtype, device=device)
        self.bias = torch.empty(ends[-1], dtype=dtype, device=device)
        with torch.no_grad():
            for linear, rows in zip(self.linears, self.rows, strict=True):
                self.weight[rows], self.bias[rows] = linear.weight, linear.bias
                is_adapted = isinstance(linear, LoraLinear)  # then its own weight is still needed
                if linear.weight.dtype == dtype and not is_adapted:
                    linear.weight.data = self.weight[rows]
        own = [parameter for linear in linears for parameter in linear.parameters()]
        self.parameters = [parameter for parameter in own if parameter.requires_grad]

    @property
    def needs_input(self) -> bool:
        """Whether gradients need the input: a matrix or an adapter trains."""
        return any(parameter.dim() > 1 for parameter in self.parameters)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring `weight` and `bias` up to date with what has trained."""
        if not self.parameters:
            return
        for linear, rows in zip(self.linears, self.rows, strict=True):
            if isinstance(linear, LoraLinear):
                update = linear.lora_B @ linear.lora_A
                torch.add(linear.weight, update, alpha=linear.scaling, out=self.weight[rows])
            elif linear.weight.data_ptr() != self.weight[rows].data_ptr():
                self.weight[rows] = linear.weight
            self.bias[rows] = linear.bias

    def product(self, x: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Apply the maps `first:last` at once: (num_tokens, in) -> (num_tokens, their rows)."""
        rows = self._span(first, last)
        return torch.addmm(self.bias[rows], x, self.weight[rows].t())

    def input_gradient(self, gradient: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Pull a gradient of `product` back to its input."""
        return gradient @ self.weight[self._span(first, last)]

    def _span(self, first: int, last: int | None) -> slice:
        return slice(self.rows[first].start, self.rows[last - 1 if last else -1].stop)

    def parameter_gradients(
        self, x: Tensor | None, gradient: Tensor, first: int = 0, last: int | None = None
    ) -> list[Tensor]:
        """Gradients of what trains in the maps `first:last`, in the order of `parameters`.

        Args:
            x: (num_tokens, in) the input of `product`; not looked at unless `needs_input`.
            gradient: (num_tokens, rows of these maps) of its output.
            first: the first of these maps.
            last: one past the last of them; None for the end.
        """
        maps = range(first, last or len(self.linears))
        start = self.rows[first].start
        parts = {
            i: gradient[:, self.rows[i].start - start : self.rows[i].stop - start] for i in maps
        }
        adapted = {i: a for i in maps if isinstance(a := self.linears[i], LoraLinear)}
        of_factors = _factor_gradients(adapted, x, parts) if adapted else {}
        found: list[Tensor] = []
        for index in maps:
            linear, part = self.linears[index], parts[index]
            if linear.weight.requires_grad:
                assert x is not None
                found.append(part.t() @ x)
            if linear.bias.requires_grad:
                found.append(part.sum(0))
            found += of_factors.get(index, ())
        return [tensor.float() for tensor in found]


def _factor_gradients(
    adapted: dict[int, LoraLinear], x: Tensor | None, parts: dict[int, Tensor]
) -> dict[int, tuple[Tensor, Tensor]]:
    """Gradients of A and B of every adapter; the A's, which read the same input, in one product."""
    assert x is not None
    ranks = [len(linear.lora_A) for linear in adapted.values()]
    a = torch.cat([linear.lora_A for linear in adapted.values()]).to(x.dtype)
    through_b = [parts[i] @ linear.lora_B.to(x.dtype) for i, linear in adapted.items()]
    of_a = (torch.cat(through_b, 1).t() @ x).split(ranks)
    through_a = (x @ a.t()).split(ranks, 1)
    return {
        index: (own * linear.scaling, parts[index].t() @ low * linear.scaling)
        for (index, linear), own, low in zip(adapted.items(), of_a, through_a, strict=True)
    }

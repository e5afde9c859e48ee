"""A linear map with a low-rank update (LoRA, arXiv:2106.09685; rsLoRA; DoRA)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own custom)

from spafit_bench.methods.treatments import Lora


class LoraLinear(nn.Linear):
    """y = W x + b + s B A x, with W frozen and s = alpha / r (or alpha / sqrt r).

    `weight` (out, in) and `bias` (out,) are the parameters of the linear map that it replaces, so
    names in the model do not change. It adds `lora_A` (r, in), Kaiming-uniform with a = sqrt 5, and
    `lora_B` (out, r), zero, so that step 0 equals the pretrained model. DoRA (arXiv:2402.09353,
    section 4.1) adds `lora_magnitude` (out,): y = m (W + s B A) x / ||W + s B A|| + b. The gradient
    treats the row norm as a constant (section 4.3). As in LoRA, dropout changes only the input of
    the part that adaptation adds to W x.
    """

    def __init__(self, linear: nn.Linear, lora: Lora, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scaling, self.dropout = lora.scaling, lora.dropout
        device = linear.weight.device
        start = torch.empty(lora.rank, self.in_features)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, lora.rank, device=device))
        self.register_parameter("lora_magnitude", None)
        if lora.dora:
            self.lora_magnitude = nn.Parameter(self._row_norm())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the adapted map: x (..., in) -> (..., out)."""
        drops = self.training and self.dropout > 0
        dropped = F.dropout(x, self.dropout) if drops else x
        update = F.linear(F.linear(dropped, self.lora_A), self.lora_B) * self.scaling
        if self.lora_magnitude is None:
            return F.linear(x, self.weight, self.bias) + update
        gain = self.lora_magnitude / self._row_norm()
        base = F.linear(x, self.weight)
        y: Tensor = gain * (base + update)
        if drops:  # the pretrained product has no dropout
            y = base + (gain - 1) * F.linear(dropped, self.weight) + gain * update
        y = y if self.bias is None else y + self.bias
        return y.to(base.dtype)  # the type that a linear map returns under autocast

    @torch.no_grad()
    def _row_norm(self) -> Tensor:
        """Return ||W + s B A|| of each row, (out,), in at least fp32, also under autocast.

        Rounding to bf16 would make step 0 differ from the pretrained model.
        """
        with torch.autocast(self.weight.device.type, enabled=False):
            factor = self.lora_B @ self.lora_A
            return (self.weight.to(factor.dtype) + self.scaling * factor).norm(dim=1)

    def adapted_weight(self) -> Tensor:
        """Return W + s B A, (out, in), before DoRA's rescaling."""
        update: Tensor = self.lora_B @ self.lora_A
        return self.weight + self.scaling * update.to(self.weight.dtype)

    def merged_weight(self) -> Tensor:
        """Return the one matrix (out, in) that computes the same as the adapted map."""
        weight = self.adapted_weight()
        if self.lora_magnitude is None:
            return weight
        rescaling: Tensor = self.lora_magnitude / weight.norm(dim=1)
        return weight * rescaling.unsqueeze(1)

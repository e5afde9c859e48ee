"""Products with a matrix that is already in the layout in which oneDNN multiplies with it.

Otherwise every product lays it out anew: with 1,024 rows up to a seventh of the time. The results
are the same to the bit. The layout takes as much memory again, and laying out about as long as one
product of 2,048 rows gains: good for evaluation, not for training (LOG.md).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

PACKING_ROWS = 1024
"""With fewer, a few short texts of which a large encoder is asked would wait for the layout."""


@cache
def can_pack() -> bool:
    """Whether this PyTorch and this processor can: the operations are its compiler's own."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack(weight: Tensor) -> Tensor | None:
    """Lay out a matrix (out, in) for `packed_product`; None where it cannot be or gains nothing."""
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not can_pack():
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + bias, (num_rows, out): x (num_rows, in), W of `pack`, a bias or none."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product

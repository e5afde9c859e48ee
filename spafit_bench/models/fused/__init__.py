"""The fast engine: BERT-like encoders without padding, one autograd node per block."""

from spafit_bench.models.fused.encoder import FusedEncoder, why_not_fused
from spafit_bench.models.fused.native import kernels_name, why_not_native

__all__ = ["FusedEncoder", "kernels_name", "why_not_fused", "why_not_native"]

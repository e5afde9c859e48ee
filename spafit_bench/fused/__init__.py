"""The fast engine: BERT-like encoders without padding, one autograd node per block."""

from spafit_bench.fused.encoder import FusedEncoder, why_not_fused

__all__ = ["FusedEncoder", "why_not_fused"]

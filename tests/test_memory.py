"""Peak memory is that of one run."""

import sys

import pytest
import torch

from spafit_bench import memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_what_an_earlier_run_freed_is_not_counted():
    """Many small freed tensors below one that lives: the C library keeps their memory."""
    freed = [torch.ones(1000) for _ in range(50_000)]  # 200 MB
    alive = torch.ones(1000)
    freed.clear()
    if not memory.reset_peak_memory(CPU):
        pytest.skip("the high-water mark cannot be reset here")
    low = memory.peak_memory_bytes(CPU)
    again = [torch.ones(1000) for _ in range(50_000)]
    high = memory.peak_memory_bytes(CPU)
    assert high - low > 150e6, "memory that was free all along was counted before it was used"
    assert len(again) == 50_000
    assert alive.sum() == 1000

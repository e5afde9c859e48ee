"""Peak memory of one run, not of everything the process did before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> bool:
    """Set the high-water mark to what is in use now.

    On a CPU, what earlier runs of this process have freed is first given back to the system, since
    the C library keeps it (300 MB after a run of a 6-layer encoder). Kernels that were prepared for
    their shapes stay, some 100 MB.

    Returns:
        Whether this machine can; if not, `peak_memory_bytes` would speak of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return False
    return True


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the high-water mark since the reset: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM:")


def resident_bytes() -> int:
    """Return what this process has in memory now; 0 where that cannot be known."""
    return _status_bytes("VmRSS:") or 0


def _status_bytes(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None

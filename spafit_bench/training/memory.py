"""Memory of a run: its peak, and that what a step has freed stays for the next."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
_MMAP_BYTES = (1 << 30, 32 << 20)
"""Pieces that are never kept; the second is the most that older versions of the library take."""


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


def keep_freed_memory() -> None:
    """Have the C library keep, for good, what this process frees on a CPU.

    Every training step asks for the same again, and the system clears a returned page before it
    gives it out anew: up to a fifth of a step's time. `reset_peak_memory` returns what is free
    then. Settings of one's own in the environment stand.
    """
    settings = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if any(name in os.environ for name in settings):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        set_option = ctypes.CDLL(None).mallopt
        if any(set_option(_M_MMAP_THRESHOLD, size) for size in _MMAP_BYTES):
            set_option(_M_TRIM_THRESHOLD, -1)


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

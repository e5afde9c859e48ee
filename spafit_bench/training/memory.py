"""Memory of a run: its peak, and keeping freed memory for the next step."""

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
"""Larger pieces go back to the system. The second is the maximum in older versions of glibc."""


def reset_peak_memory(device: torch.device) -> bool:
    """Reset the peak to the memory in use now; return False if this machine cannot.

    On a CPU, freed memory is first returned to the system, because the C library keeps what earlier
    runs of this process freed (300 MB after a run of a 6-layer encoder). Kernels that were prepared
    for their shapes stay, about 100 MB. Without a reset, the peak is that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set size
    except OSError:
        return False
    return True


def keep_freed_memory() -> None:
    """Make the C library keep the memory that this process frees, from now on.

    Every training step allocates the same sizes again, and the system clears each returned page
    first: up to a fifth of a step's time. MALLOC_* variables set by the user take precedence.
    """
    settings = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if any(name in os.environ for name in settings):
        return
    with contextlib.suppress(OSError, AttributeError):  # not the GNU C library
        set_option = ctypes.CDLL(None).mallopt
        if any(set_option(_M_MMAP_THRESHOLD, size) for size in _MMAP_BYTES):
            set_option(_M_TRIM_THRESHOLD, -1)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak since the reset: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM:")


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 if it is unknown."""
    return _status_bytes("VmRSS:") or 0


def _status_bytes(key: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None

"""Settings of the native libraries below PyTorch, which read them once, at their start."""

from __future__ import annotations

import os

OPENMP = {"GOMP_SPINCOUNT": "20000"}
"""OpenMP's waiting threads spin for long by default: two processes on one machine then stop each
other almost entirely. This many turns cost an undisturbed run nothing (LOG.md)."""
KERNELS = {"LRU_CACHE_CAPACITY": "64"}
"""PyTorch keeps 1,024 matrix products that oneDNN has prepared, each for one shape; oneDNN does
that itself, at 0.3 MB each. A step's layers share some twenty, so 64 are as fast (LOG.md)."""


def set_defaults() -> None:
    """Set what the user has not, for this process and those that it starts."""
    for name, value in (OPENMP | KERNELS).items():
        os.environ.setdefault(name, value)

"""Settings of this process: native libraries, heavy imports, the command that the user typed."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from pathlib import Path, PurePath

OPENMP = {"GOMP_SPINCOUNT": "20000"}
"""By default OpenMP's waiting threads spin for so long that two processes on one machine almost
stop each other. With this limit a single run is as fast as without one (LOG.md)."""
KERNELS = {"LRU_CACHE_CAPACITY": "64"}
"""PyTorch caches 1,024 matrix products that oneDNN has prepared, at 0.3 MB each, and oneDNN caches
them as well. The layers of a step share about twenty, so 64 are as fast (LOG.md)."""
COMMAND = "SPAFIT_BENCH_COMMAND"
"""Environment variable with the user's command, set for the processes that a command starts."""


def set_native_defaults() -> None:
    """Set the variables above for this process and its children; the user's values stay.

    The native libraries read them once, when they are loaded.
    """
    for name, value in (OPENMP | KERNELS).items():
        os.environ.setdefault(name, value)


def load_libraries() -> None:
    """Import torch and transformers without garbage collection.

    The collector would search a million new objects and find nothing: 0.7 of 4.2 s on one core
    (torch 2.13, transformers 5.23).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import torch  # noqa: F401
        import transformers.modeling_utils
        import transformers.models  # noqa: F401
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def may_have_gpu() -> bool:
    """Return False if this Linux machine has no device file of any GPU; needs no torch."""
    names = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")  # NVIDIA, its Tegra, AMD, WSL
    return sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in names)


def typed_command() -> str:
    """Return the user's command, quoted for a shell, without the folder of the program."""
    if given := os.environ.get(COMMAND):
        return given
    program = PurePath(sys.argv[0]).name
    return shlex.join(["spafit-bench" if program == "__main__.py" else program, *sys.argv[1:]])

"""Where, with what, and from which state of the code a run computes."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

from spafit_bench.base import distributed
from spafit_bench.base.process import typed_command
from spafit_bench.models.numerics import Numerics, device_name
from spafit_bench.results.record import Environment

_PACKAGES = ("spafit-bench", "torch", "transformers", "tokenizers", "numpy", "evaluate", "datasets")


def describe_environment(numerics: Numerics, engine: str, kernels: str | None) -> Environment:
    """Say where and with what a run computes; `kernels` are the fast engine's."""
    return Environment(
        host=socket.gethostname(),
        device=str(numerics.device),
        device_name=device_name(numerics.device),
        precision=numerics.precision,
        engine=engine,
        kernels=kernels,
        num_threads=torch.get_num_threads(),
        world_size=distributed.size(),
        python=platform.python_version(),
        packages=versions(),
        git_commit=_git_commit(),
        command=typed_command(),
    )


def versions() -> dict[str, str]:
    """Return the version of every package that results depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


@lru_cache(maxsize=1)
def _git_commit() -> str | None:
    """Return the commit of the checkout that this is, marked where it has uncommitted changes."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            cwd=checkout,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None

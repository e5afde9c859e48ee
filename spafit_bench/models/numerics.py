"""Where and in which precision a run computes."""

from __future__ import annotations

import platform
import random
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spafit_bench.base import distributed
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.config.run_config import known_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Numerics:
    """A device and a compute precision; what trains is fp32 in all of them."""

    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """Element type of matrix products."""
        return DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock can be read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose_numerics(device: str, precision: str) -> Numerics:
    """Return the numerics for `--device` and `--precision` on this machine.

    The precision `auto` is bf16 if the hardware supports it natively, else fp32.

    Raises:
        UserError: an unknown name, a missing device, or one that does not support the precision.
    """
    try:
        known_device(device)
    except ValueError as error:
        raise UserError(f"--device {device}: {error}") from None
    if precision != "auto" and precision not in DTYPES:
        raise UserError(f"--precision {precision}: {nearest(precision, ('auto', *DTYPES))}")
    chosen = _device(device)
    if chosen.type == "cuda":
        native_bf16 = torch.cuda.get_device_capability(chosen) >= (8, 0)
    else:
        native_bf16 = has_bf16_instructions()
    if precision == "auto":
        precision = "bf16" if native_bf16 else "fp32"
    if precision == "bf16" and chosen.type == "cuda" and not native_bf16:
        raise UserError(f"--precision bf16: {device_name(chosen)} has no bf16 units; use fp16")
    return Numerics(chosen, precision)


def _device(name: str) -> torch.device:
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not count:
        raise UserError(f"--device {name}: no CUDA GPU is visible here; use --device cpu")
    local_rank = distributed.local_rank()
    if local_rank is None:
        if (device.index or 0) >= count:
            raise UserError(f"--device {name}: only {count} GPU(s) here, cuda:0-cuda:{count - 1}")
        return torch.device("cuda", device.index or 0)
    if device.index is not None:
        raise UserError(
            f"--device {device}: each process takes a GPU of its own; use --device cuda"
        )
    if local_rank >= count:
        raise UserError(
            f"more processes than GPUs on this machine: at most --nproc-per-node {count}, or use "
            "--device cpu"
        )
    return torch.device("cuda", local_rank)


def has_bf16_instructions() -> bool:
    """Return whether this machine's processor has bf16 instructions."""
    capability = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(capability and capability())


def device_name(device: torch.device) -> str:
    """Return the product name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) if torch.cuda.is_available() else "unknown"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)

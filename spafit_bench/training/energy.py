"""Energy used by the machine's processors during a run, from their own counters.

CPU packages and memory: Linux' powercap counters (Intel RAPL; AMD processors have it, too), in
microjoules, which restart from zero at `max_energy_range_uj`. GPU: NVML's total in millijoules, if
`pynvml` is installed. The counters cover whole processors, other programs included. If one counter
cannot be read we report nothing, because a partial sum would mislead. A machine without counters of
its CPU, such as a virtual machine, reports its GPU alone.
"""

from __future__ import annotations

import re
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_bench.base import distributed

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")
LOOK_S = 120.0
"""Seconds between two reads: at 400 W the usual counter of 262 kJ wraps in eleven minutes."""


@dataclass
class EnergyMeter:
    """Counts joules from its creation. A thread reads the counters before any can wrap twice."""

    gpu: int | None = None
    """Index of the GPU that a run uses."""
    earlier: float | None = 0.0
    """Joules of the earlier part of a resumed run; None if unknown."""
    powercap: Path = POWERCAP
    _last: dict[Path, int | None] = field(default_factory=dict)
    _total: float = 0.0
    _gpu_start: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, device: torch.device) -> EnergyMeter:
        """Return the meter of a run; with several processes the energy is unknown."""
        gpu = (device.index or 0) if device.type == "cuda" else None
        return cls(gpu=gpu, earlier=0.0 if distributed.size() == 1 else None)

    def __post_init__(self) -> None:
        self._last = {zone: _read(zone / "energy_uj") for zone in _zones(self.powercap)}
        self._gpu_start = None if self.gpu is None else _gpu_joules(self.gpu)
        if self._last:
            threading.Thread(target=_watch, args=(weakref.ref(self), LOOK_S), daemon=True).start()

    def joules(self) -> float | None:
        """Return the energy so far; None if any part of it cannot be read."""
        with self._lock:
            if not self._look():
                return None
        if self.earlier is None or not (self._last or self._gpu_start is not None):
            return None
        total = self.earlier + self._total
        if self.gpu is None:
            return round(total, 3)
        now_gpu = _gpu_joules(self.gpu)
        if now_gpu is None or self._gpu_start is None:
            return None
        return round(total + now_gpu - self._gpu_start, 3)

    def _look(self) -> bool:
        """Add the increase of each CPU counter; return whether all could be read."""
        for zone, last in self._last.items():
            now = _read(zone / "energy_uj")
            if now is None or last is None:
                return False
            size = _read(zone / "max_energy_range_uj") or 0
            self._total += (now - last + (size if now < last else 0)) / 1e6
            self._last[zone] = now
        return True


def _watch(meter: weakref.ref[EnergyMeter], look_s: float) -> None:
    """Read the counters until the meter is no longer used."""
    while True:
        time.sleep(look_s)
        found = meter()
        if found is None:
            return
        found.joules()
        del found


def _zones(powercap: Path) -> list[Path]:
    """Return counters that do not overlap: packages and memory."""
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
        except OSError:
            continue
        if re.fullmatch(r"package-\d+(-die-\d+)?", name) or name == "dram":
            found.append(zone)
    return found


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # most systems let only root read them
        return None


def _gpu_joules(index: int) -> float | None:
    try:
        import pynvml
    except ImportError:
        return None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(_handle(nvml, index))) / 1e3
    except nvml.NVMLError:
        return None


def _handle(nvml: Any, index: int) -> Any:
    """Return NVML's handle of a CUDA device, which CUDA_VISIBLE_DEVICES may have renumbered."""
    import os

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[index].strip() if index < len(visible) else ""
    if name.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    return nvml.nvmlDeviceGetHandleByIndex(int(name) if name.isdigit() else index)

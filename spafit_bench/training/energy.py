"""Energy that the machine's own counters saw while a run went on.

CPU packages and memory: Linux' powercap counters (Intel RAPL, which AMD's processors have too), in
microjoules, starting again from zero at `max_energy_range_uj`. GPU: NVML's total, in millijoules,
where `pynvml` is installed. The counters are of whole processors, other programs included. A sum
without a counter that is there would mislead, so there is none then; a machine without counters of
its processors (a virtual one, say) has its GPU's alone.
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
"""Between two looks at the counters: 400 W go around the usual 262 kJ in eleven minutes."""


@dataclass
class EnergyMeter:
    """Counts joules from its making; a thread looks often enough that no counter laps itself."""

    gpu: int | None = None
    """Index of the GPU that a run uses."""
    earlier: float | None = 0.0
    """Joules of the part of a run that was elsewhere or before; None where not known."""
    powercap: Path = POWERCAP
    _last: dict[Path, int | None] = field(default_factory=dict)
    _total: float = 0.0
    _gpu_start: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, device: torch.device) -> EnergyMeter:
        """Meter a run on a device; none is known of a run that has others, elsewhere."""
        gpu = (device.index or 0) if device.type == "cuda" else None
        return cls(gpu=gpu, earlier=0.0 if distributed.size() == 1 else None)

    def __post_init__(self) -> None:
        self._last = {zone: _read(zone / "energy_uj") for zone in _zones(self.powercap)}
        self._gpu_start = None if self.gpu is None else _gpu_joules(self.gpu)
        if self._last:
            threading.Thread(target=_watch, args=(weakref.ref(self), LOOK_S), daemon=True).start()

    def joules(self) -> float | None:
        """Return the energy so far; None where a part of it cannot be read."""
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
        """Add what the processors' counters have gone on; tell whether all could be read."""
        for zone, last in self._last.items():
            now = _read(zone / "energy_uj")
            if now is None or last is None:
                return False
            size = _read(zone / "max_energy_range_uj") or 0
            self._total += (now - last + (size if now < last else 0)) / 1e6
            self._last[zone] = now
        return True


def _watch(meter: weakref.ref[EnergyMeter], look_s: float) -> None:
    """Look at the counters until nobody holds the meter any more."""
    while True:
        time.sleep(look_s)
        found = meter()
        if found is None:
            return
        found.joules()
        del found


def _zones(powercap: Path) -> list[Path]:
    """Find counters that do not contain each other: packages, and the memory beside them."""
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
    except (OSError, ValueError):  # readable by root alone on most systems
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
    """Find a GPU by what CUDA calls it; `CUDA_VISIBLE_DEVICES` may have renumbered them."""
    import os

    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[index].strip() if index < len(visible) else ""
    if name.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    return nvml.nvmlDeviceGetHandleByIndex(int(name) if name.isdigit() else index)

"""Energy: counters in a folder like the kernel's, which wrap around, vanish or may not be read."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from spafit_bench.analysis.tables import ResultTable, build_tables
from spafit_bench.base import distributed
from spafit_bench.results.record import parse_record
from spafit_bench.training import energy
from spafit_bench.training.energy import EnergyMeter
from tests.support.records import cell, make_record, notes
from tests.support.tiny_runs import World, make_world


def write_zone(root: Path, zone: str, name: str, microjoules: int, size: int = 10**9) -> Path:
    """Write a powercap zone."""
    folder = root / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{size}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_packages_and_memory_are_added(tmp_path: Path) -> None:
    """A core is part of its package, and the platform contains all: neither is counted twice."""
    first = write_zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = write_zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    memory = write_zone(tmp_path, "intel-rapl:0:1", "dram", 100)
    core = write_zone(tmp_path, "intel-rapl:0:0", "core", 1)
    platform = write_zone(tmp_path, "intel-rapl:2", "psys", 1)
    meter = EnergyMeter(powercap=tmp_path)
    assert meter.joules() == 0
    first.write_text("8_000_000".replace("_", ""))
    second.write_text("9000000")
    memory.write_text("500100")
    core.write_text("99000000")
    platform.write_text("99000000")
    assert meter.joules() == pytest.approx(3 + 2 + 0.5)


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    """It starts again from zero at its range; asked in between, any number of times."""
    counter = write_zone(tmp_path, "intel-rapl:0", "package-0", 900_000_000)
    meter = EnergyMeter(powercap=tmp_path)
    counter.write_text("100000000")
    assert meter.joules() == pytest.approx(200)
    counter.write_text("950000000")
    assert meter.joules() == pytest.approx(1050)
    counter.write_text("50000000")
    assert meter.joules() == pytest.approx(1150)


def test_no_lap_is_missed_while_nobody_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread looks in between, and ends with its meter."""
    monkeypatch.setattr(energy, "LOOK_S", 0.01)
    counter = write_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    before = threading.active_count()
    meter = EnergyMeter(powercap=tmp_path)
    for microjoules in (600_000_000, 200_000_000, 800_000_000):
        (tmp_path / "new").write_text(str(microjoules))
        (tmp_path / "new").replace(counter)
        time.sleep(0.1)
    assert meter.joules() == pytest.approx(600 + 600 + 600)
    del meter
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_energy_of_an_earlier_part_is_added(tmp_path: Path) -> None:
    """A resumed run adds what its first part used, or does not know."""
    counter = write_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    meters = [EnergyMeter(powercap=tmp_path, earlier=earlier) for earlier in (40.0, None)]
    counter.write_text("2000000")
    assert [meter.joules() for meter in meters] == [pytest.approx(42), None]


def test_machines_that_tell_nothing_give_none(tmp_path: Path) -> None:
    """No folder, no counter, an unreadable one, and one that vanishes."""
    assert EnergyMeter(powercap=tmp_path / "none").joules() is None
    assert EnergyMeter(powercap=tmp_path).joules() is None
    counter = write_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    counter.write_text("not a number")
    assert EnergyMeter(powercap=tmp_path).joules() is None
    counter.write_text("5")
    meter = EnergyMeter(powercap=tmp_path)
    counter.unlink()
    assert meter.joules() is None


@pytest.mark.parametrize("gpu", [None, 0])
def test_one_unreadable_counter_is_enough_to_know_nothing(
    gpu: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other package's joules, or the GPU's alone, would pass for the whole."""
    monkeypatch.setattr(energy, "_gpu_joules", lambda index: 1.0)
    write_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 5).write_text("forbidden")
    assert EnergyMeter(gpu=gpu, powercap=tmp_path).joules() is None


def test_one_of_several_processes_does_not_know_the_runs_energy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sees neither the others' GPUs nor other machines."""
    monkeypatch.setattr(energy, "_gpu_joules", lambda index: 1.0)
    monkeypatch.setattr(energy, "_zones", lambda powercap: [])
    device = torch.device("cuda", 0)
    assert EnergyMeter.of(device).joules() == 0
    monkeypatch.setattr(distributed, "size", lambda: 2)
    assert EnergyMeter.of(device).joules() is None


def test_a_gpu_is_added_or_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a GPU whose energy cannot be read has none: the processor's alone would mislead."""
    counter = write_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    readings = iter([1000.0, 1250.0])
    monkeypatch.setattr(energy, "_gpu_joules", lambda index: next(readings, None))
    meter = EnergyMeter(gpu=0, powercap=tmp_path)
    counter.write_text("3000000")
    assert meter.joules() == pytest.approx(253)
    assert meter.joules() is None


class FakeNvml(ModuleType):
    """Two GPUs that have used 1 J and 20 J so far; every look costs another joule."""

    class NVMLError(Exception):
        """What the library raises."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules = {0: 1000, 1: 20_000}

    def nvmlInit(self) -> None:  # noqa: N802
        """Nothing to start."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        """A GPU is its number; there are two."""
        if index not in self.millijoules:
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        """Named by the last character."""
        return self.nvmlDeviceGetHandleByIndex(int(uuid[-1]))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        """Millijoules since the driver was loaded."""
        self.millijoules[handle] += 1000
        return self.millijoules[handle]


@pytest.mark.parametrize(
    ("visible", "first"), [(None, 2), ("1,0", 21), ("1", 21), ("GPU-abc-1", 21), ("0", 2)]
)
def test_the_gpu_is_the_one_that_cuda_calls_first(
    visible: str | None, first: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CUDA_VISIBLE_DEVICES` renumbers GPUs, and NVML does not follow it."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert energy._gpu_joules(0) == first


def test_a_gpu_without_a_counter_gives_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML does not know it, or is not installed; a GPU alone is enough where it does."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert EnergyMeter(gpu=7, powercap=tmp_path).joules() is None
    assert EnergyMeter(gpu=1, powercap=tmp_path).joules() == 1
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter(gpu=0, powercap=tmp_path).joules() is None


def test_a_run_records_its_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the machine's counters while it trains; None without them."""
    counter = write_zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    real = energy._read

    def reading(path: Path) -> int | None:
        value = real(path)
        if path == counter:
            counter.write_text(str((value or 0) + 1_000_000))  # a joule between two looks
        return value

    monkeypatch.setattr(energy, "_read", reading)
    world: World = make_world(tmp_path / "world")
    monkeypatch.setattr(EnergyMeter.__init__, "__defaults__", _with_powercap(counter.parents[1]))
    record = world.run("bitfit")
    assert record.energy_j is not None
    assert record.energy_j >= 1
    assert record.energy_j == int(record.energy_j)


def _with_powercap(folder: Path) -> tuple[object, ...]:
    """Defaults of `EnergyMeter`, with another folder of counters."""
    return tuple(
        folder if default == energy.POWERCAP else default
        for default in EnergyMeter.__init__.__defaults__ or ()
    )


def _cost(records: list[object]) -> ResultTable:
    (table,) = [t for t in build_tables(records) if t.kind == "cost"]  # type: ignore[arg-type]
    return table


def test_the_cost_table_has_energy_where_a_machine_told_it() -> None:
    """A column in kJ with its meaning; no column where nobody knows."""
    told = make_record(energy_j=12_345.0)
    table = _cost([told, make_record(method="lora")])
    assert cell(table, "spafit", "energy_j", "MRPC").text == "12.3"
    assert cell(table, "lora", "energy_j", "MRPC").value is None
    assert "other programs included" in notes(table)
    assert "energy_j" not in [column.key for column in _cost([make_record()]).columns]


def test_old_records_have_no_energy() -> None:
    """A record without the key is read, with None."""
    text = make_record(energy_j=1.0).to_json().replace('  "energy_j": 1.0,\n', "")
    assert "energy_j" not in text
    assert parse_record(text, "old").energy_j is None

"""Disks that are full, folders that cannot be written or disappear: told once, nothing lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from spafit_bench.base.errors import UserError
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.store import Store
from tests.conftest import Answer, Cli
from tests.support.records import make_record


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """Mount a small file system in memory; skip where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a file system needs root")
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", place], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> Path:
    """Fill a file system to the last byte."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def whole(results: Path, count: int) -> None:
    """Assert that a folder has so many sound runs, and nothing half written."""
    records, damages = Store(results).survey()
    assert (len(records), damages) == (count, [])
    assert {r.status for r in records} == {"done"}
    left = [p.relative_to(results) for p in results.rglob(".*") if p.name != ".lock"]
    assert left == []


@pytest.fixture
def sweep(call: Cli, tmp_path: Path, checkpoint: Path, data: Path) -> Callable[[Path], Answer]:
    """Carry a sweep of three runs out in a results folder."""
    body = {
        "tasks": ["mrpc"],
        "methods": ["bitfit", "lora", "full"],
        "settings": {
            "model": str(checkpoint),
            "data": str(data),
            "precision": "fp32",
            "train": {"epochs": 1, "batch_size": 8, "max_length": 32},
        },
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(body))
    return lambda results: call("sweep", "s.yaml", "--results", results)


def test_a_sweep_on_a_disk_that_fills_up_goes_on_once_there_is_room(
    sweep: Callable[[Path], Answer], call: Cli, tmp_path: Path
) -> None:
    """Its second run does not fit: one message, exit code 2, the first is whole; then all three."""
    with mounted(tmp_path / "disk", "-o", "size=200k") as disk:
        results = disk / "results"
        answer = sweep(results)
        assert answer.code == 2
        assert "cannot be written (No space left on device); free some space" in answer.err
        assert answer.err.count("error: ") == 1
        assert "Traceback" not in answer.err
        done = len(list(results.glob("runs/[!.]*/record.json")))
        assert 1 <= done < 3
        whole(results, done)
        assert call("table", "--results", results).code == 0
        assert sweep(results).code == 2, "nothing has changed"
        whole(results, done)
        subprocess.run(["mount", "-o", "remount,size=9M", disk], check=True)
        answer = sweep(results)
        assert answer.code == 0, answer.err
        assert f"{done} of 3 runs are there already" in answer.err
        whole(results, 3)
        assert not list((results / "unfinished").iterdir())


def test_a_disk_that_is_full_from_the_start(
    sweep: Callable[[Path], Answer], call: Cli, tmp_path: Path
) -> None:
    """Said before the first run; finished runs stay, and can still be shown and tabulated."""
    with mounted(tmp_path / "disk", "-o", "size=1M") as disk:
        results = disk / "results"
        store = Store(results)
        store.save(make_record(), {})
        ballast = fill(disk)
        answer = sweep(results)
        assert "No space left on device" in answer.error
        with pytest.raises(UserError, match="No space left on device"):
            store.save(make_record(seed=1), {"adapter.safetensors": bytes(5000)})
        whole(results, 1)
        table = call("table", "--results", results)
        assert table.code == 0, table.err
        assert "could not be updated" in table.err
        ballast.unlink()
        store.save(make_record(seed=1), {"adapter.safetensors": bytes(5000)})
        whole(results, 2)


def test_a_folder_mounted_for_reading_alone(
    sweep: Callable[[Path], Answer], call: Cli, tmp_path: Path
) -> None:
    """Nothing runs, everything can be read, a damaged run is left out and nothing crashes."""
    with mounted(tmp_path / "disk", "-o", "size=4M") as disk:
        results = disk / "results"
        store = Store(results)
        store.save(make_record(), {})
        damaged = make_record(seed=1)
        store.save(damaged, {})
        (store.runs / damaged.run_id / "record.json").write_text("{")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        message = sweep(results).error
        assert f"--results {results}: cannot be written (Read-only file system" in message
        with pytest.raises(UserError, match="Read-only file system"), RunLocks(results) as locks:
            locks.acquire("run")
        for command in (("table",), ("list", "runs")):
            answer = call(*command, "--results", results)
            assert answer.code == 0, answer.err
            assert f"{damaged.run_id}/record.json was changed after it was written" in answer.err
        assert call("show", make_record().run_id, "--results", results).code == 0


@pytest.mark.parametrize("name", ["runs", "unfinished", "locks", "results.csv", "set-aside"])
def test_files_and_folders_in_the_way(
    sweep: Callable[[Path], Answer], tmp_path: Path, name: str
) -> None:
    """One message, or the run goes on without; never a traceback, and nothing is removed."""
    results = tmp_path / "results"
    results.mkdir()
    if name == "results.csv":
        (results / name).mkdir()
    else:
        (results / name).write_text("in the way")
    answer = sweep(results)
    assert "Traceback" not in answer.err
    assert answer.code == (0 if name in ("unfinished", "set-aside") else 2), answer.err
    assert name in answer.err or name == "set-aside"
    assert (results / name).exists()


def test_a_results_folder_that_disappears(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    """Removed while a run is under way: it is said, and the run is saved where it was to be."""
    from spafit_bench.config.selection import RunRequest
    from spafit_bench.running.events import Event, Started, Warned
    from tests.support.tiny_runs import Silent, carry_out, prepare_runs

    results = tmp_path / "results"
    said: list[str] = []

    class View(Silent):
        def hear(self, event: Event) -> None:
            if isinstance(event, Started):
                shutil.rmtree(results)
            elif isinstance(event, Warned):
                said.append(event.message)

    flags = {"model": str(checkpoint), "data": str(data), "precision": "fp32"}
    train = {"epochs": 1, "batch_size": 8, "max_length": 32}
    request = RunRequest(task="mrpc", method="lora", flags=flags | {"train": train})
    (record,) = carry_out(prepare_runs(request), Store(results), View())
    assert record.status == "done"
    whole(results, 1)
    assert any("no snapshot could be kept" in text for text in said)

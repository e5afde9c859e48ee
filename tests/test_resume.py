"""A run that was stopped goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MAIN, Cli, clean_environment

from spafit_bench.execute import Outcome, Session, execute
from spafit_bench.prepare import PreparedRun, Preparer
from spafit_bench.record import Evaluation
from spafit_bench.requests import RunRequest, run_configs
from spafit_bench.snapshot import DamagedSnapshot, Snapshot
from spafit_bench.train import Progress


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-equality is promised for the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counter:
    """Counts the steps of one session."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, progress: Progress) -> None:
        """Count."""
        self.steps += 1

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Ignore."""


def prepared(checkpoint: Path, data: Path, method: str = "spafit", **settings: Any) -> PreparedRun:
    """Return a run of nine steps in three epochs."""
    train = {"epochs": 3, "batch_size": 8, "max_length": 32, "learning_rate": 1e-2}
    flags = {"model": str(checkpoint), "data": str(data), "precision": "fp32", "train": train}
    request = RunRequest(task="mrpc", method=method, flags=flags | settings)
    return Preparer().prepare(run_configs(request)[0])


def stopped_after(run: PreparedRun, steps: int) -> Snapshot:
    """Carry a run out for some steps; return what it kept when it was told to stop."""
    counter, kept = Counter(), list[bytes]()
    session = Session(
        observer=counter,
        keep=lambda snapshot: kept.append(snapshot.to_bytes()),
        stop=lambda: counter.steps >= steps,
    )
    with pytest.raises(KeyboardInterrupt):
        execute(run, session)
    return Snapshot.from_bytes(kept[-1])


def essence(outcome: Outcome) -> tuple[Any, ...]:
    """Everything about an outcome that is not a time."""
    record = outcome.record
    return (
        record.evaluations,
        record.metrics,
        record.best,
        record.last,
        record.train_tokens,
        {name: p.logits.tobytes() for name, p in outcome.predictions.items()},
        {f: {n: t.tobytes() for n, t in s.items()} for f, s in outcome.states.items()},
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_a_stopped_run_ends_bit_identical(
    checkpoint: Path, data: Path, precision: str, select: str
) -> None:
    """Within an epoch, at its end, twice; dropout and data order go on where they were."""
    run = prepared(checkpoint, data, precision=precision, select=select, save_weights="all")
    expected = essence(execute(run, Session(observer=Counter())))
    for steps in (1, 3, 5):
        resume = stopped_after(run, steps)
        assert essence(execute(run, Session(observer=Counter(), resume=resume))) == expected


def test_a_stopped_run_finds_its_kept_prefix(checkpoint: Path, data: Path) -> None:
    """With the first layer's output from the disk, the end is bit-identical, too."""
    method = "0:frozen;1:lora(query,r=2,alpha=4)"
    run = prepared(checkpoint, data, method, precision="bf16", cache_prefix=True)
    expected = essence(execute(run, Session(observer=Counter())))
    resume = stopped_after(run, 5)
    assert essence(execute(run, Session(observer=Counter(), resume=resume))) == expected


def test_a_snapshot_is_whole_or_refused(checkpoint: Path, data: Path) -> None:
    """Any cut or changed byte is noticed."""
    content = stopped_after(prepared(checkpoint, data), 2).to_bytes()
    again = Snapshot.from_bytes(content).to_bytes()
    assert Snapshot.from_bytes(again).facts == Snapshot.from_bytes(content).facts
    rng = random.Random(0)
    for _ in range(50):
        at = rng.randrange(len(content))
        changed = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        for damaged in (changed, content[:at], rng.randbytes(at % 1000)):
            with pytest.raises(DamagedSnapshot):
                Snapshot.from_bytes(damaged)


ARGUMENTS = (
    *("run", "--task", "mrpc", "--method", "lora", "--precision", "fp32"),
    *("--epochs", "40", "--batch-size", "4", "--max-length", "32", "--lr", "1e-2"),
)


def run_files(folder: Path) -> dict[str, bytes]:
    """Return the files of the one run that do not hold times."""
    [run] = (folder / "results" / "runs").glob("[!.]*")
    return {
        name: (run / name).read_bytes() for name in ("predictions.parquet", "adapter.safetensors")
    }


def test_a_killed_run_goes_on(
    cli: Cli, tmp_path: Path, checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Kill -9, SIGTERM and SIGINT at odd moments; the same command ends as an undisturbed one."""
    arguments = [*ARGUMENTS, "--model", str(checkpoint), "--data", str(data)]
    assert cli(*arguments).code == 0
    expected = run_files(tmp_path)
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", MAIN, *arguments]
    codes = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            command, cwd=folder, env=clean_environment(HF_HUB_OFFLINE="1"), stderr=subprocess.PIPE
        )
        snapshots = folder / "results" / "unfinished"
        before = {p.stat().st_mtime_ns for p in snapshots.glob("*.snapshot")}
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            if {p.stat().st_mtime_ns for p in snapshots.glob("*.snapshot")} - before:
                break
            time.sleep(0.01)
        os.kill(process.pid, number)
        process.communicate(timeout=60)
        codes.append(process.returncode)
    assert codes == [-signal.SIGKILL, 130, 130]
    done = subprocess.run(
        command,
        cwd=folder,
        env=clean_environment(HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert run_files(folder) == expected
    assert not list((folder / "results" / "unfinished").iterdir())


def test_a_damaged_snapshot_is_set_aside(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    """It is named, kept, and the run starts anew."""
    arguments = [*ARGUMENTS[:-8], "--model", checkpoint, "--data", data, "--epochs", "1"]
    assert call(*arguments).code == 0
    expected = run_files(tmp_path)
    [run] = (tmp_path / "results" / "runs").glob("[!.]*")
    (tmp_path / "results" / "unfinished").mkdir(exist_ok=True)
    snapshot = tmp_path / "results" / "unfinished" / f"{run.name}.snapshot"
    snapshot.write_bytes(b"not a snapshot")
    for file in run.iterdir():
        file.unlink()
    run.rmdir()
    answer = call(*arguments)
    assert answer.code == 0
    assert "the snapshot is damaged" in answer.err
    place = tmp_path / "results" / "set-aside" / snapshot.name
    assert str(place.relative_to(tmp_path)) in answer.err
    assert (place / snapshot.name).read_bytes() == b"not a snapshot"
    assert "its checksum does not match" in (place / "reason.txt").read_text()
    assert run_files(tmp_path) == expected

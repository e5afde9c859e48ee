"""A run that was stopped goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import stress
from spafit_bench.config.selection import RunRequest, run_configs
from spafit_bench.results.record import Evaluation
from spafit_bench.results.store import Store
from spafit_bench.training.loop import Progress, Session
from spafit_bench.training.prepare import PreparedRun, Preparer
from spafit_bench.training.run import Outcome, execute
from spafit_bench.training.snapshot import DamagedSnapshot, Snapshot
from tests.conftest import Cli


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
        keep=lambda snapshot: kept.append(b"".join(snapshot.pieces())),
        stop=lambda: counter.steps >= steps,
    )
    with pytest.raises(KeyboardInterrupt):
        execute(run, session)
    return Snapshot.from_bytes(kept[-1])


def keep_for(run: PreparedRun, snapshot: Snapshot, store: Store) -> None:
    """Put a snapshot where the next command looks for it."""
    whole = Snapshot(snapshot.tensors, {**snapshot.facts, "run_id": run.run_id})
    (store.root / "unfinished").mkdir(parents=True, exist_ok=True)
    store.keep_snapshot(run.run_id, *whole.pieces())


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


@pytest.mark.parametrize(("precision", "select"), [("fp32", "last"), ("bf16", "best")])
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
    content = b"".join(stopped_after(prepared(checkpoint, data), 2).pieces())
    again = b"".join(Snapshot.from_bytes(content).pieces())
    assert Snapshot.from_bytes(again).facts == Snapshot.from_bytes(content).facts
    rng = random.Random(0)
    for _ in range(50):
        at = rng.randrange(len(content))
        changed = content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        for damaged in (changed, content[:at], rng.randbytes(at % 1000)):
            with pytest.raises(DamagedSnapshot):
                Snapshot.from_bytes(damaged)


def test_a_snapshot_is_safetensors_without_a_copy(tmp_path: Path) -> None:
    """Its bytes are read by the library, and the library's by us; writing copies no tensor."""
    from safetensors.torch import load, save

    tensors = {
        "a": torch.randn(5, 3),
        "b": torch.arange(4, dtype=torch.float64),
        "c": torch.tensor(2.5),
        "d": torch.zeros(0, 7),
        "e": torch.randn(4, 6).t(),
        "f": torch.randn(3).bfloat16(),
        "g": torch.arange(5, dtype=torch.uint8),
    }
    snapshot = Snapshot(dict(tensors), {"step": 3})
    content = b"".join(snapshot.pieces())
    theirs = save({n: t.contiguous() for n, t in tensors.items()}, {"facts": '{"step": 3}'})
    again = hashlib.sha256(theirs).hexdigest().encode() + theirs
    for found in (load(content[64:]), Snapshot.from_bytes(again).tensors):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    pieces = snapshot.pieces()
    tensors["a"].zero_()
    assert b"".join(pieces) != content, "a view, not a copy"


def test_a_resumed_run_does_not_hold_its_snapshot(checkpoint: Path, data: Path) -> None:
    """Its tensors would be in memory until the end."""
    run = prepared(checkpoint, data)
    resume = stopped_after(run, 2)
    assert resume.tensors
    execute(run, Session(observer=Counter(), resume=resume))
    assert not resume.tensors


@pytest.mark.parametrize("evaluation", [1, 3])
def test_a_run_stopped_while_it_evaluates_ends_bit_identical(
    checkpoint: Path, data: Path, evaluation: int
) -> None:
    """It stops between two batches of dev examples, and evaluates when it goes on."""
    flags = {"train": {"epochs": 3, "batch_size": 8, "max_length": 32, "eval_batch_size": 2}}
    run = prepared(checkpoint, data, **flags)
    expected = essence(execute(run, Session(observer=Counter())))
    kept, asked = list[bytes](), 0

    class Counting(Counter):
        """Knows how many evaluations have ended."""

        evaluations = 0

        def on_evaluation(self, evaluation: Evaluation) -> None:
            self.evaluations += 1

    counter = Counting()

    def stop() -> bool:
        """Ask to stop after the second batch of an evaluation."""
        nonlocal asked
        asked += counter.steps == 3 * evaluation and counter.evaluations == evaluation - 1
        return asked >= 2

    def keep(snapshot: Snapshot) -> None:
        kept.append(b"".join(snapshot.pieces()))

    with pytest.raises(KeyboardInterrupt):
        execute(run, Session(observer=counter, keep=keep, stop=stop))
    assert counter.evaluations == evaluation - 1, "the evaluation did not end"
    resume = Snapshot.from_bytes(kept[-1])
    assert len(resume.tensors["losses"]) == 3 * evaluation
    assert essence(execute(run, Session(observer=Counter(), resume=resume))) == expected


def test_test_sets_are_not_predicted_to_the_end_once_stopped(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be the longest part of a run; the same command goes on with them."""
    from spafit_bench.training import run as execute_module

    real, done = execute_module.predict, []

    def interrupted(adapted: Any, split: Any, **options: Any) -> Any:
        if done.count("dev") == 3 and "stopped" not in done:
            done.append("stopped")
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            done.append("dev")
        return real(adapted, split, **options)

    monkeypatch.setattr(execute_module, "predict", interrupted)
    command = (*NINE_STEPS, "--model", checkpoint, "--data", data)
    assert call(*command).code == 130
    assert done == ["dev", "dev", "dev", "stopped"]
    assert call(*command).code == 0
    (record,) = Store(tmp_path / "results").records()
    assert (
        record.evaluations
        == execute(prepared(checkpoint, data), Session(observer=Counter())).record.evaluations
    )


ARGUMENTS = (
    *("run", "--task", "mrpc", "--method", "lora", "--precision", "fp32"),
    *("--epochs", "40", "--batch-size", "4", "--max-length", "32", "--lr", "1e-2"),
)


def run_files(folder: Path) -> dict[str, bytes]:
    """Return the files of the one run of a results folder that do not hold times."""
    [run] = (folder / "runs").glob("[!.]*")
    return {
        name: (run / name).read_bytes() for name in ("predictions.parquet", "adapter.safetensors")
    }


@pytest.fixture
def hangup() -> Iterator[None]:
    """Do not ignore SIGHUP, as under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
def test_a_killed_run_goes_on(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Kill -9, SIGTERM, SIGHUP and Ctrl-C; the same command ends as an undisturbed one."""
    arguments = [*ARGUMENTS, "--model", str(checkpoint), "--data", str(data), "--results"]
    assert call(*arguments, "whole").code == 0
    snapshots = tmp_path / "killed" / "unfinished"
    codes = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        before = {p.stat().st_mtime_ns for p in snapshots.glob("*.snapshot")}
        pid = stress.fork([*arguments, "killed"], 2)
        until = time.monotonic() + 60
        while {p.stat().st_mtime_ns for p in snapshots.glob("*.snapshot")} <= before:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(pid, number)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert codes == [-signal.SIGKILL, 130, 130, 130]
    said = capfd.readouterr().err
    assert said.count("interrupted; the same command resumes where it stopped") == 3
    assert "Traceback" not in said
    [run] = (tmp_path / "killed" / "runs").glob("[!.]*")
    assert {path.name for path in run.iterdir()} == {"record.json", "SHA256SUMS"}
    assert Store(tmp_path / "killed").records()[0].status == "interrupted"
    assert call(*arguments, "killed").code == 0
    assert run_files(tmp_path / "killed") == run_files(tmp_path / "whole")
    assert not list(snapshots.iterdir())


def test_a_damaged_snapshot_is_set_aside(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    """It is named, kept, and the run starts anew."""
    arguments = [*ARGUMENTS[:-8], "--model", checkpoint, "--data", data, "--epochs", "1"]
    assert call(*arguments).code == 0
    expected = run_files(tmp_path / "results")
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
    assert run_files(tmp_path / "results") == expected


NINE_STEPS = (
    *("run", "--task", "mrpc", "--method", "spafit", "--precision", "fp32"),
    *("--epochs", "3", "--batch-size", "8", "--max-length", "32", "--lr", "1e-2"),
)
"""What `prepared` prepares."""


def test_a_resumed_run_that_fails_later_keeps_its_state(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its newest snapshot was sound: it is not set aside, and --retry-failed goes on from it."""
    run, store = prepared(checkpoint, data), Store(tmp_path / "results")
    keep_for(run, stopped_after(run, 2), store)

    def broken(*_: object) -> None:
        raise RuntimeError("the GPU fell off the bus")

    command = (*NINE_STEPS, "--model", checkpoint, "--data", data)
    with monkeypatch.context() as patch:
        patch.setattr("spafit_bench.training.run._scores", broken)
        answer = call(*command)
    assert answer.code == 1, answer.err
    assert "fell off the bus" in answer.out
    assert not (store.root / "set-aside").exists()
    kept = store.snapshot(run.run_id)
    assert kept is not None
    assert len(Snapshot.from_bytes(kept).tensors["losses"]) == 9
    assert call(*command, "--retry-failed").code == 0
    record = store.find(run.run_id)
    assert record is not None
    assert record.evaluations == execute(run, Session(observer=Counter())).record.evaluations
    assert store.snapshot(run.run_id) is None


def test_an_interrupted_repetition_goes_on(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --force; but not from what was kept before the result that it repeats."""
    from spafit_bench.running import runner

    run, store = prepared(checkpoint, data), Store(tmp_path / "results")
    command = (*NINE_STEPS, "--model", checkpoint, "--data", data)
    assert call(*command).code == 0
    resumed: list[Any] = []

    def spy(run: PreparedRun, session: Session) -> Outcome:
        resumed.append(session.resume and len(session.resume.tensors["losses"]))
        return execute(run, session)

    monkeypatch.setattr(runner, "execute", spy)
    for _ in range(2):
        keep_for(run, stopped_after(run, 5), store)
        os.utime(store.snapshot_path(run.run_id), None if not resumed else (0, 0))
        assert call(*command, "--force").code == 0
    assert resumed == [5, None]


def test_kept_adapters_have_the_numbers_of_their_evaluations(checkpoint: Path, data: Path) -> None:
    """Also where the run was begun with another --save-weights."""
    kinds = ("none", "all", "best")
    none, every, best = (prepared(checkpoint, data, save_weights=kind) for kind in kinds)
    late = {f"adapter-evaluation-{n}.safetensors" for n in (2, 3)}
    outcome = execute(every, Session(observer=Counter(), resume=stopped_after(none, 4)))
    assert outcome.states.keys() - {"adapter.safetensors"} == late
    for name, tensor in outcome.states["adapter.safetensors"].items():
        assert (outcome.states["adapter-evaluation-3.safetensors"][name] == tensor).all()
    outcome = execute(best, Session(observer=Counter(), resume=stopped_after(every, 4)))
    assert outcome.states.keys() == {"adapter.safetensors"}

"""One run in several processes: the same numbers as in one, and no process left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spafit_bench.base import distributed
from spafit_bench.base.errors import UserError
from spafit_bench.config.selection import RunRequest, run_configs
from spafit_bench.models import numerics
from spafit_bench.training.loop import Session
from spafit_bench.training.prepare import PreparedRun, Preparer
from spafit_bench.training.run import Outcome, execute
from tests.conftest import Answer, Cli, call_main, clean_environment, write_checkpoint
from tests.support.models import Silent

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(  # imported once, not by every process
    [
        *("spafit_bench.cli", "spafit_bench.running.driver", "spafit_bench.running.estimate"),
        *(
            "spafit_bench.cli.views.progress",
            "evaluate",
            "datasets",
            "scipy.stats",
            "sklearn.metrics",
        ),
        *("pandas", "pyarrow.parquet", "transformers.models.bert.modeling_bert"),
        *("transformers.models.bert.tokenization_bert", "torch._dynamo"),
    ]
)
WAIT_S = 60


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _member(rank: int, size: int, port: int, folder: Path, work: Callable[..., Any], *args: Any):
    """Be one of the processes, as torchrun sets them up; what it says goes to files."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size}
    mine = {"RANK": rank, "LOCAL_RANK": rank, "HF_HUB_OFFLINE": 1}
    os.environ.update({key: str(value) for key, value in (where | mine).items()})
    torch.set_num_threads(1)
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    work(rank, *args)


class Processes:
    """Several processes of one run."""

    def __init__(self, size: int, folder: Path, work: Callable[..., Any], *args: Any) -> None:
        port, self.folder = free_port(), folder
        folder.mkdir(parents=True, exist_ok=True)
        self.members: list[BaseProcess] = [
            PROCESSES.Process(target=_member, args=(rank, size, port, folder, work, *args))
            for rank in range(size)
        ]
        for member in self.members:
            member.start()

    def end(self) -> list[int | None]:
        """Wait for all of them; return their exit codes, None for one that hangs."""
        until = time.monotonic() + WAIT_S
        for member in self.members:
            member.join(max(0, until - time.monotonic()))
        codes = [member.exitcode for member in self.members]
        for member in self.members:
            member.kill()
        return codes

    def err(self, rank: int) -> str:
        """Return what a process said on stderr."""
        return (self.folder / f"{rank}.err").read_text()


def prepared(model: Path, data: Path, engine: str, method: str, batch_size: int) -> PreparedRun:
    """Return a run of a few steps that moves what it trains far."""
    train = {"epochs": 3, "batch_size": batch_size, "max_length": 32, "learning_rate": 1e-2}
    flags = {"model": str(model), "data": str(data), "precision": "fp32", "device": "cpu"}
    flags |= {"engine": engine, "train": train | {"micro_batch_size": 3, "eval_batch_size": 4}}
    request = RunRequest(task="mrpc", method=method, flags=flags)
    return Preparer().prepare(run_configs(request)[0])


def numbers(outcome: Outcome) -> dict[str, np.ndarray]:
    """Return every number that a run is made of."""
    states = {n: t for state in outcome.states.values() for n, t in state.items()}
    logits = {f"logits/{name}": p.logits for name, p in outcome.predictions.items()}
    losses = [e.train_loss for e in outcome.record.evaluations]
    return states | logits | {"losses": np.array(losses)}


def compute(rank: int, *arguments: Any) -> None:
    """Carry a run out and leave its outcome."""
    distributed.join()
    outcome = execute(prepared(*arguments), Session(observer=Silent()))
    record = outcome.record
    facts = (record.train_tokens, record.environment.world_size, record.run_id, record.metrics)
    assert (record.movement is None) == (rank > 0)
    Path(f"{rank}.pickle").write_bytes(pickle.dumps((numbers(outcome), facts)))


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT in which nothing is random any more."""
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return write_checkpoint(tmp_path_factory.mktemp("models") / "without-dropout", **none)


@pytest.mark.parametrize(
    ("size", "engine", "method", "batch_size"),
    [(2, "fast", "spafit", 8), (2, "plain", "full", 8), (3, "fast", "lora", 23)],
    ids=["two", "full", "a step with one example for three"],
)
def test_several_processes_equal_one(
    tmp_path: Path, data: Path, without_dropout: Path,
    size: int, engine: str, method: str, batch_size: int,
) -> None:  # fmt: skip
    """Weights, logits and losses within 1e-5 after all steps; among each other bit for bit.

    Biases of keys get further apart: nothing depends on them (softmax does not see them), so their
    gradients are zeros with rounding errors, which Adam makes large.
    """
    arguments = (without_dropout, data, engine, method, batch_size)
    processes = Processes(size, tmp_path, compute, *arguments)
    run = prepared(*arguments)
    alone = execute(run, Session(observer=Silent()))
    assert processes.end() == [0] * size, processes.err(0)
    expected = numbers(alone)
    results = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in range(size)]
    first, (tokens, world_size, run_id, metrics) = results[0]
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-3 if name.endswith("key.bias") else 1e-5
        np.testing.assert_allclose(first[name], value, rtol=0, atol=atol, err_msg=name)
        assert all(np.array_equal(other[name], first[name]) for other, _ in results), name
    assert tokens == alone.record.train_tokens
    assert metrics == alone.record.metrics
    assert world_size == size
    assert run_id != run.run_id


def run_cli(rank: int, arguments: list[Any], faults: dict[int, str]) -> None:
    """Run the command line; in the process of a fault, predicting fails."""
    if rank in faults:
        from spafit_bench.training import run as module

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError(faults[rank])

        module.predict = fail  # type: ignore[assignment]
    mine = [str(a).replace("{rank}", str(rank)) for a in arguments]
    answer: Answer = call_main(*mine)
    Path(f"{rank}.json").write_text(json.dumps([answer.code, answer.out, answer.err]))
    sys.exit(answer.code)


@pytest.fixture
def arguments(checkpoint: Path, data: Path) -> list[Any]:
    """Of a run with dropout that takes a while."""
    return [
        *("run", "--task", "mrpc", "--method", "lora", "--precision", "fp32", "--device", "cpu"),
        *("--epochs", 8, "--batch-size", 4, "--max-length", 32, "--lr", "1e-2"),
        *("--model", checkpoint, "--data", data),
    ]


def answer(folder: Path, rank: int) -> Answer:
    """Return what a process's command line said."""
    return Answer(*json.loads((folder / f"{rank}.json").read_text()))


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of the one run that do not hold times."""
    [run] = (folder / "results" / "runs").glob("[!.]*")
    return {n: (run / n).read_bytes() for n in ("predictions.parquet", "adapter.safetensors")}


def wait_for_snapshot(folder: Path) -> None:
    """Wait until another snapshot has been kept."""

    def newest() -> int:
        found = (folder / "results" / "unfinished").glob("*.snapshot")
        return max((p.stat().st_mtime_ns for p in found), default=0)

    before, until = newest(), time.monotonic() + WAIT_S
    while newest() == before and time.monotonic() < until:
        time.sleep(0.01)


def test_no_process_outlives_another(tmp_path: Path, arguments: list[Any]) -> None:
    """Kill either, or ask one to stop: both end, and later go on to the very same result."""
    undisturbed = Processes(2, tmp_path / "undisturbed", run_cli, arguments, {})
    assert undisturbed.end() == [0, 0]
    folder = tmp_path / "disturbed"
    for victim, number, codes in (
        (1, signal.SIGKILL, [2, -9]),
        (0, signal.SIGKILL, [-9, 2]),
        (1, signal.SIGTERM, [130, 130]),
    ):
        processes = Processes(2, folder, run_cli, arguments, {})
        wait_for_snapshot(folder)
        os.kill(processes.members[victim].pid or 0, number)
        assert processes.end() == codes
        assert not [*folder.glob("results/runs/*/adapter.safetensors")]
        if codes[0] == 2:
            assert "error: another process of this run ended" in answer(folder, 0).err
    assert Processes(2, folder, run_cli, arguments, {}).end() == [0, 0]
    assert files(folder) == files(tmp_path / "undisturbed")
    assert answer(folder, 1) == Answer(0, "", "")


def test_an_error_in_one_process_ends_all(tmp_path: Path, arguments: list[Any]) -> None:
    """The first process says what happened in the other; what fails in it is recorded."""
    theirs = Processes(2, tmp_path / "theirs", run_cli, arguments, {1: "out of luck"})
    assert theirs.end() == [2, 1]
    said = answer(theirs.folder, 0).err
    assert "error: process 1 failed (RuntimeError: out of luck)" in said
    assert "Traceback" not in said
    assert not [*theirs.folder.glob("results/runs/*")]
    again = [*arguments, "--seed", "0,1"]
    ours = Processes(2, tmp_path / "ours", run_cli, again, {0: "out of luck"})
    assert ours.end() == [2, 2]
    assert "the run before this one failed" in answer(ours.folder, 0).err
    [record] = ours.folder.glob("results/runs/*/record.json")
    assert json.loads(record.read_text())["reason"] == "RuntimeError: out of luck"


def test_mistakes_are_said_once(tmp_path: Path, arguments: list[Any], checkpoint: Path) -> None:
    """By the first process, also those that only another one sees, and differences."""
    missing = Processes(2, tmp_path / "a", run_cli, [*arguments, "--data", "d{rank}"], {})
    for rank in (0, 1):
        (missing.folder / f"d{rank}").mkdir()
    assert missing.end() == [2, 2]
    assert len(answer(missing.folder, 0).err.splitlines()) == 1
    assert answer(missing.folder, 1).err == ""
    differing = Processes(2, tmp_path / "b", run_cli, [*arguments, "--seed", "{rank}"], {})
    assert differing.end() == [2, 2]
    assert "must be the same in every process" in answer(differing.folder, 0).error


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """A machine that seems to have two GPUs, and this process one of several on it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))

    def be(local_rank: int) -> None:
        monkeypatch.setattr(distributed, "local_rank", lambda: local_rank)

    return be


def test_each_process_has_a_gpu_of_its_own(two_gpus: Callable[[int], None]) -> None:
    """The one of its number; nobody shares one by mistake."""
    for number in (0, 1):
        two_gpus(number)
        for name in ("auto", "cuda"):
            assert numerics.choose_numerics(name, "auto").device == torch.device("cuda", number)
        assert numerics.choose_numerics("cpu", "fp32").device.type == "cpu"
    with pytest.raises(UserError, match="use --device cuda"):
        numerics.choose_numerics("cuda:1", "auto")
    two_gpus(2)
    with pytest.raises(UserError, match="at most --nproc-per-node 2"):
        numerics.choose_numerics("auto", "auto")


SMOKE = (
    *("run", "--task", "wnli", "--method", "bitfit", "--preset", "smoke"),
    *("--limit", "64", "--epochs", "1", "--json"),
)


def test_the_smoke_preset(cli: Cli, tmp_path: Path) -> None:
    """In two processes that the command line starts: one record, one JSON object."""
    done = cli(*SMOKE, "--processes", 2)
    assert done.code == 0, done.err
    check_smoke(tmp_path, done.json)


def check_smoke(folder: Path, record: dict[str, Any]) -> None:
    """Check what two processes leave behind and print."""
    assert record["status"] == "done"
    assert record["environment"]["world_size"] == 2
    [stored] = folder.glob("results/runs/*/record.json")
    assert json.loads(stored.read_text()) == record


@pytest.mark.smoke
def test_torchrun(tmp_path: Path) -> None:
    """Two processes that torchrun starts."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "spafit_bench", *SMOKE),
        ],
        env=clean_environment(HF_HUB_OFFLINE="1"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check_smoke(tmp_path, json.loads(done.stdout))

"""Locks on runs, with real processes that race, die and fork."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import spafit_bench
from spafit_bench.base.errors import UserError
from spafit_bench.results.locks import RunLocks
from tests.conftest import Cli

PREAMBLE = """
import os, sys, time
from pathlib import Path
from spafit_bench.results.locks import RunLocks

folder = Path(sys.argv[1])
locks = RunLocks(folder)
"""

HOLDER = (
    PREAMBLE
    + """
print("holding", all([locks.acquire(run_id) for run_id in sys.argv[2:]]), os.getpid(), flush=True)
sys.stdin.read()
locks.close()
"""
)

WORKER = (
    PREAMBLE
    + """
(folder / f"ready-{sys.argv[2]}").touch()
while len(list(folder.glob("ready-*"))) < 6:
    time.sleep(0.001)
left = [f"run-{n}" for n in range(40)]
while left:
    for run_id in left:
        if lock := locks.acquire(run_id):
            with lock:
                if not (folder / f"{run_id}.done").exists():
                    os.open(folder / f"{run_id}.started", os.O_CREAT | os.O_EXCL)
                    time.sleep(0.002)
                    (folder / f"{run_id}.done").touch()
    left = [run_id for run_id in left if not (folder / f"{run_id}.done").exists()]
locks.close()
"""
)

CHURN = (
    PREAMBLE
    + """
taken = 0
until = time.monotonic() + 20
while taken < 100 and time.monotonic() < until:
    if lock := locks.acquire("a"):
        with lock:
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            os.unlink(folder / "inside")
            taken += 1
print(taken)
"""
)


def start(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a script in a process of its own."""
    command = [*prefix, sys.executable, "-c", script, *map(str, arguments)]
    where = {**os.environ, "PYTHONPATH": str(Path(spafit_bench.__file__).parents[1])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=where, stdin=pipe, stdout=pipe, text=True)


@contextmanager
def holder(
    folder: Path, *run_ids: str, prefix: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Give a process that holds runs."""
    process = start(HOLDER, folder, *run_ids, prefix=prefix)
    try:
        assert process.stdout.readline().startswith("holding True")
        yield process
    finally:
        process.kill()
        process.communicate()


def test_processes_carry_out_each_run_once(tmp_path: Path) -> None:
    """Six of them, forty runs: none is done twice, all are done, no lock file stays."""
    workers = [start(WORKER, tmp_path, number) for number in range(6)]
    assert [worker.wait(timeout=60) for worker in workers] == [0] * 6
    assert len(list(tmp_path.glob("run-*.done"))) == 40
    assert list((tmp_path / "locks").iterdir()) == []


def test_removing_a_lock_file_lets_no_two_in(tmp_path: Path) -> None:
    """A process that opened the file just before its owner removed it does not hold the run."""
    workers = [start(CHURN, tmp_path) for _ in range(4)]
    assert [worker.communicate(timeout=60)[0] for worker in workers] == ["100\n"] * 4


def test_a_live_process_keeps_its_run_and_is_named(tmp_path: Path) -> None:
    """Even if it is stopped; another run of the folder is free."""
    with holder(tmp_path, "a") as other, RunLocks(tmp_path) as locks:
        other.send_signal(signal.SIGSTOP)
        assert locks.acquire("a") is None
        assert locks.held() == {"a"}
        said = locks.holder("a")
        assert re.fullmatch(rf"process {other.pid} on \S+ since \S+", said), said
        assert locks.acquire("b") is not None
        assert locks.acquire("b") is None, "nor does a process take its own run twice"


def test_a_killed_process_loses_its_run_at_once(tmp_path: Path) -> None:
    """One of those that want it gets it."""
    with holder(tmp_path, "a", "b") as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with RunLocks(tmp_path) as first, RunLocks(tmp_path) as second:
            assert [first.acquire("a") is None, second.acquire("a") is None] == [False, True]
            assert first.holder("a").startswith(f"process {os.getpid()} on ")
    assert list((tmp_path / "locks").iterdir()) == [], "the lock file of b, which nobody took"


def test_namespaces_with_the_same_host_name_and_pid(tmp_path: Path) -> None:
    """Two containers on one folder: the kernel knows their processes apart."""
    prefix = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces here")
    with holder(tmp_path, "a", prefix=prefix) as inside, holder(tmp_path, "b", prefix=prefix):
        with RunLocks(tmp_path) as locks:
            says = locks.holder("a"), locks.holder("b")
            assert all(text.startswith("process 1 on ") for text in says), says
            assert locks.held() == {"a", "b"}
        inside.kill()
        inside.wait()
        with RunLocks(tmp_path) as locks:
            until = time.monotonic() + 20
            while locks.acquire("a") is None and time.monotonic() < until:
                time.sleep(0.01)  # --kill-child is not instantaneous
            assert locks.held() == {"a", "b"}


def test_a_forked_child_inherits_no_lock(tmp_path: Path) -> None:
    """It can neither release nor keep its parent's, but take others."""
    script = (
        PREAMBLE
        + """
mine = locks.acquire("a")
if os.fork() == 0:
    mine.release()
    print([locks.acquire(run_id) is not None for run_id in ("a", "b")], flush=True)
    until = time.monotonic() + 60
    while not (folder / "stop").exists() and time.monotonic() < until:
        time.sleep(0.01)
    os._exit(0)
sys.stdin.readline()
print(RunLocks(folder).held() == {"a", "b"}, flush=True)
os._exit(0)
"""
    )
    parent = start(script, tmp_path)
    assert parent.stdout.readline() == "[False, True]\n"
    parent.stdin.write("go on\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "True\n"
    parent.wait()
    with RunLocks(tmp_path) as locks:
        assert locks.held() == {"b"}, "the child lives"
        assert locks.acquire("a") is not None
    (tmp_path / "stop").touch()
    parent.communicate()


def test_an_exception_releases(tmp_path: Path) -> None:
    """Whatever ends the `with` block, the run is free."""
    with RunLocks(tmp_path) as locks:
        with suppress(KeyboardInterrupt), locks.acquire("a"):
            raise KeyboardInterrupt
        assert locks.acquire("a") is not None


def _raises(number: int) -> object:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize(
    "flock",
    [_raises(errno.ENOLCK), _raises(errno.ENOSYS), _raises(errno.EOPNOTSUPP), lambda *_: None],
    ids=["no locks", "not implemented", "not supported", "locks that exclude nobody"],
)
def test_a_file_system_without_locks(
    call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: object
) -> None:
    """It is an error before the first run, unless nobody else does these runs."""
    monkeypatch.setattr(fcntl, "flock", flock)
    said = call("run", "--task", "mrpc", "--method", "lora", "--preset", "smoke").error
    assert "no working file locks" in said
    assert "--shard i/n" in said
    with RunLocks(tmp_path, needed=False) as locks:
        locks.check()
        assert locks.acquire("a") is not None
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """The message names the path."""
    (tmp_path / "results").write_text("a file")
    with RunLocks(tmp_path / "results") as locks:
        with pytest.raises(UserError, match=r"results/locks/a: cannot be locked"):
            locks.acquire("a")
        with pytest.raises(UserError, match="cannot be locked"):
            locks.check()


def test_a_full_disk(tmp_path: Path) -> None:
    """A lock file that cannot say who holds it is an error."""
    script = (
        PREAMBLE
        + """
import resource
from spafit_bench.base.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    locks.acquire("a")
except UserError as error:
    print(error)
locks.close()
"""
    )
    output, _ = start(script, tmp_path).communicate(timeout=60)
    assert f"{tmp_path}/locks/a: cannot be locked (File too large)" in output


@pytest.mark.parametrize("run_id", ["", ".", "..", "a/b", ".hidden"])
def test_a_run_id_is_a_file_name(tmp_path: Path, run_id: str) -> None:
    """Nothing outside locks/ can be touched."""
    with RunLocks(tmp_path) as locks, pytest.raises(UserError, match="not a run id"):
        locks.acquire(run_id)

"""Processes of one run end with the one that started them, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from spafit_bench.base.distributed import RENDEZVOUS
from spafit_bench.running.launch import launch
from tests.conftest import clean_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")

WORKER = """
import os, signal, sys, time
from pathlib import Path
from spafit_bench.running.launch import launch

rank = os.environ["RANK"]

def stop(number, frame):
    Path(f"stopped-{rank}").touch()
    sys.exit(130)

signal.signal(signal.SIGTERM, stop)
assert launch(2, []) is None
Path(f"started-{rank}").touch()
time.sleep(60)
"""
LAUNCHER = """
import signal, sys
from spafit_bench.running.launch import launch

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
sys.executable = "./worker"
sys.exit(launch(2, []))
"""


def wait_for(is_so: Callable[[], bool]) -> None:
    """Give it ten seconds."""
    until = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def launcher(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A process that has started two others, which wait."""
    worker = tmp_path / "worker"
    worker.write_text(f"#!{sys.executable}\n{WORKER}")
    worker.chmod(0o755)
    started = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=os.pathsep.join(("..", *sys.path))),
        start_new_session=True,
    )
    wait_for(lambda: all((tmp_path / f"started-{rank}").exists() for rank in (0, 1)))
    return started


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 130), (signal.SIGHUP, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_no_process_outlives_its_launcher(
    number: signal.Signals, code: int, launcher: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """They are asked to stop, so that they keep a snapshot: also when nobody is left to ask."""
    launcher.send_signal(number)
    assert launcher.wait(10) == code
    wait_for(lambda: all((tmp_path / f"stopped-{rank}").exists() for rank in (0, 1)))


def test_the_cores_that_may_be_used_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the system lets this process have, not all that there are."""
    threads: list[str] = []

    class Ended:
        returncode = 0

        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            threads.append(env["OMP_NUM_THREADS"])
            assert "MASTER_PORT" not in env, "they meet through a file: no port to be taken"
            assert env[RENDEZVOUS].startswith("file:///")

        def poll(self) -> int:
            return 0

        def kill(self) -> None:
            pass

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(subprocess, "Popen", Ended)
    assert launch(4, []) == 0
    assert threads == ["3"] * 4

"""Starts the processes of one run on this machine, with the environment that torchrun would set.

Unlike torchrun it adds nothing to what they say, and its exit code is the first process's.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

_PATIENCE_S = 60.0
"""For the others after one process has ended: they may be keeping a snapshot."""
_LAUNCHER = "SPAFIT_BENCH_LAUNCHER"
"""Holds the id of the process that started this one."""
_PR_SET_PDEATHSIG = 1


def is_one_of_several() -> bool:
    """Tell whether torchrun, or what sets the same variables, started this process."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_with_launcher() -> None:
    """In a process that `run_processes` started: be asked to stop when that one dies (prctl(2)).

    On Linux; elsewhere a launcher that is killed leaves its processes behind.
    """
    launcher = os.environ.pop(_LAUNCHER, None)
    if launcher is None or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
    if os.getppid() != int(launcher):  # it was gone before
        sys.exit(128 + signal.SIGTERM)


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Run `spafit-bench` in several processes that share every batch; return the exit code.

    The cores are divided among them unless OMP_NUM_THREADS says otherwise. Ctrl-C and SIGTERM are
    passed on, and so is a terminal's end (SIGHUP), as SIGTERM.

    Args:
        arguments: of `spafit-bench`.
        count: processes.
    """
    from spafit_bench.running.doctor import cores

    threads = str(max(1, cores() // count))
    common = {"OMP_NUM_THREADS": threads} | os.environ
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    common |= {"WORLD_SIZE": str(count), _LAUNCHER: str(os.getpid())}
    command = [sys.executable, "-m", "spafit_bench", *arguments]
    workers: list[subprocess.Popen[bytes]] = []
    passed_on = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        passed_on.append(signal.SIGHUP)
    before = {number: signal.signal(number, _passing_on(workers)) for number in passed_on}
    try:
        for rank in range(count):
            mine = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # Ctrl-C on a terminal reaches a whole session; they are to get it once.
            workers.append(subprocess.Popen(command, env=common | mine, start_new_session=True))
        return _exit_code(workers)
    finally:
        for worker in workers:
            worker.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all, or not much longer than for the first that ends."""
    until = float("inf")
    while any(worker.poll() is None for worker in workers) and time.monotonic() < until:
        if until == float("inf") and any(worker.returncode is not None for worker in workers):
            until = time.monotonic() + _PATIENCE_S
        time.sleep(0.05)
    codes = [-signal.SIGKILL if (c := worker.poll()) is None else c for worker in workers]
    if codes[0] < 0:
        sys.stderr.write(f"error: the first process was killed (signal {-codes[0]})\n")
    code = codes[0] or next(filter(None, codes), 0)
    return code if code >= 0 else 128 - code


def _passing_on(
    workers: Sequence[subprocess.Popen[bytes]],
) -> Callable[[int, FrameType | None], None]:
    def handler(number: int, frame: FrameType | None) -> None:
        del frame
        for worker in workers:
            worker.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    return handler


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])

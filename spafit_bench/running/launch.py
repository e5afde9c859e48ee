"""Starts the processes of one run on this machine (`run --processes`), as torchrun would.

Unlike torchrun it adds nothing to what they print, and its exit code is that of the first process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from spafit_bench.base.stop import INTERRUPTED, SIGNALS, end_with_parent, parent_environment

_PATIENCE_S = 60.0
"""For the others after one process has ended: they may be keeping a snapshot."""


def is_one_of_several() -> bool:
    """Return whether torchrun, or what sets the same variables, started this process."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(count: int, arguments: Sequence[str]) -> int | None:
    """Run `spafit-bench` in several processes that share every batch; return the exit code.

    The cores are divided among them unless OMP_NUM_THREADS is set. Signals that stop this process
    stop them.

    Args:
        count: number of processes.
        arguments: of `spafit-bench`.

    Returns:
        None in a process that must do the work itself: one that was launched, or the only one.
    """
    if is_one_of_several():
        end_with_parent()
        return None
    if count == 1:
        return None
    from spafit_bench.running.doctor import cores

    common = {"OMP_NUM_THREADS": str(max(1, cores() // count))} | os.environ
    common |= {"WORLD_SIZE": str(count)} | parent_environment()
    command = [sys.executable, "-m", "spafit_bench", *arguments]
    workers: list[subprocess.Popen[bytes]] = []
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        del number, frame
        asked = True
        for worker in workers:
            worker.send_signal(signal.SIGTERM)

    before = {n: signal.signal(n, stop) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    with tempfile.TemporaryDirectory(prefix="spafit-bench-") as folder:
        # read by base/distributed.py, which launching must not import: torch takes seconds
        common["SPAFIT_BENCH_RENDEZVOUS"] = (Path(folder) / "rendezvous").as_uri()
        try:
            for rank in range(count):
                mine = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # a session of their own: Ctrl-C on a terminal must reach them only once
                workers.append(subprocess.Popen(command, env=common | mine, start_new_session=True))
            code = _exit_code(workers)
        finally:
            for worker in workers:
                worker.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
    return INTERRUPTED if asked and code else code


def _exit_code(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, but not much longer than for the first one that ends."""
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

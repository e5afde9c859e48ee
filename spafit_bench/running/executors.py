"""Where runs are carried out on this machine: in this process, or in several worker processes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch

from spafit_bench.base.process import COMMAND, typed_command
from spafit_bench.base.stop import parent_environment
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.store import Store
from spafit_bench.running.events import Busy, Ended, Event, Hear, Lost, Refused, parse_event
from spafit_bench.running.runner import Options, Runner
from spafit_bench.training.prepare import PreparedRun

_PATIENCE_S = 30.0
"""Until an idle worker that does not end is killed."""
_MOST_CHARACTERS = 300
"""Of a worker's last words in a message."""


class Executor(Protocol):
    """Carries out runs and reports events."""

    def has_room(self) -> bool:
        """Return whether another run can start at once."""

    def submit(self, run: PreparedRun) -> None:
        """Start a run. Its last event is `Ended`, `Busy` or `Lost`."""

    def poll(self, hear: Hear, timeout_s: float) -> None:
        """Pass on new events; wait for the first one, at most `timeout_s`."""

    def stop(self) -> None:
        """Tell every run to keep a snapshot and end; each is then `Lost`."""

    def close(self) -> None:
        """End everything that still runs."""


class InProcess:
    """Carries out one run after another in this process."""

    def __init__(self, store: Store, options: Options, stop: Callable[[], bool]) -> None:
        self._store, self._options, self._stop = store, options, stop
        self._locks = RunLocks(store.root, needed=not options.sharded)
        self._next: PreparedRun | None = None

    def has_room(self) -> bool:
        return self._next is None

    def submit(self, run: PreparedRun) -> None:
        """Remember the run; `poll` carries it out."""
        self._next = run

    def poll(self, hear: Hear, timeout_s: float) -> None:
        """Carry the run out.

        Raises:
            KeyboardInterrupt: this process was told to stop; the state of the run is kept.
        """
        del timeout_s
        run, self._next = self._next, None
        if run is not None:
            Runner(self._store, self._options, self._locks, self._stop, hear).carry_out(run)

    def stop(self) -> None:
        """Do nothing: no run is under way between two calls of `poll`."""

    def close(self) -> None:
        self._locks.close()


def local_executor(
    jobs: int,
    num_threads: int,
    runs: Sequence[PreparedRun],
    store: Store,
    options: Options,
    stop: Callable[[], bool],
) -> Executor:
    """Return what carries out runs on this machine: this process, or `jobs` worker processes.

    The workers share `num_threads`, which `divide_threads` returned.
    """
    if jobs == 1:
        return InProcess(store, options, stop)
    chooses = all(run.config.device in ("auto", "cuda") for run in runs)
    on_gpu = chooses and any(run.numerics.device.type == "cuda" for run in runs)
    count = torch.cuda.device_count() if on_gpu else 0
    gpus = visible_gpus(count, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Workers(store, options, worker_environments(jobs, gpus, num_threads))


def divide_threads(jobs: int) -> int:
    """Give this process the threads of one of `jobs` workers; return how many it had.

    The number of threads is part of the name of a run on a CPU.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(max(1, num_threads // jobs))
    return num_threads


def worker_environments(
    jobs: int, gpus: Sequence[str], num_threads: int
) -> list[tuple[str, dict[str, str]]]:
    """Divide this machine among workers.

    Args:
        jobs: number of workers.
        gpus: names of the GPUs as `CUDA_VISIBLE_DEVICES` takes them, dealt out in turn. None: every
            worker sees the GPUs of this process.
        num_threads: threads of this process.

    Returns:
        For each worker its name, and changes to its environment.
    """
    each = str(max(1, num_threads // jobs))
    threads = {"OMP_NUM_THREADS": each, "MKL_NUM_THREADS": each}  # torch follows MKL's if it is set
    if not gpus:
        return [(f"cpu {n + 1}", threads) for n in range(jobs)]
    cards = [gpus[n % len(gpus)] for n in range(jobs)]
    return [(f"gpu {card}", threads | {"CUDA_VISIBLE_DEVICES": card}) for card in cards]


def visible_gpus(count: int, visible: str | None) -> list[str]:
    """Name the GPUs of this process as `CUDA_VISIBLE_DEVICES` does.

    Args:
        count: GPUs that this process sees.
        visible: its `CUDA_VISIBLE_DEVICES`, None if it is not set.
    """
    if visible is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in visible.split(",") if name.strip()][:count]


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    run_id: str | None = None
    """The run that it carries out now."""
    words: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    """Its last lines on standard error."""


@dataclass
class Workers:
    """Carries out runs in several processes (`worker.py`); one that dies is replaced."""

    store: Store
    options: Options
    environments: Sequence[tuple[str, Mapping[str, str]]]
    _workers: dict[int, _Worker] = field(default_factory=dict)
    """By the number of their environment."""
    _events: queue.SimpleQueue[tuple[int, _Worker, Event | None]] = field(
        default_factory=queue.SimpleQueue
    )
    """Events of workers; None: the worker has ended."""

    def has_room(self) -> bool:
        return self._idle() is not None

    def _idle(self) -> int | None:
        for number in range(len(self.environments)):
            if number not in self._workers or self._workers[number].run_id is None:
                return number
        return None

    def submit(self, run: PreparedRun) -> None:
        number = self._idle()
        assert number is not None
        worker = self._workers.get(number) or self._start(number)
        worker.run_id = run.run_id
        order = {"run_id": run.run_id, "config": run.config.model_dump(mode="json")}
        with suppress(OSError):  # the worker is dead, which its end will tell
            assert worker.process.stdin is not None
            worker.process.stdin.write(json.dumps(order).encode() + b"\n")
            worker.process.stdin.flush()

    def _start(self, number: int) -> _Worker:
        name, changes = self.environments[number]
        arguments = [str(self.store.root), json.dumps(asdict(self.options)), name]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "spafit_bench.running.worker", *arguments],
            env=os.environ | {COMMAND: typed_command()} | parent_environment() | dict(changes),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only this process, which passes it on once
        )
        worker = self._workers[number] = _Worker(process)
        threading.Thread(target=_read_words, args=(worker,), daemon=True).start()
        threading.Thread(target=self._read_events, args=(number, worker), daemon=True).start()
        return worker

    def _read_events(self, number: int, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            if line.endswith(b"\n"):  # else its death cut the line short
                self._events.put((number, worker, _event(line)))
        worker.process.wait()
        self._events.put((number, worker, None))

    def poll(self, hear: Hear, timeout_s: float) -> None:
        wait_s = timeout_s
        with suppress(queue.Empty):
            while True:
                number, worker, event = self._events.get(timeout=wait_s)
                wait_s = 0.0
                if event is not None:
                    if isinstance(event, Ended | Busy):
                        worker.run_id = None
                    hear(event)
                    continue
                if self._workers.get(number) is worker:
                    del self._workers[number]
                if worker.run_id is not None:
                    hear(Lost(run_id=worker.run_id, reason=_how_it_ended(worker)))

    def stop(self) -> None:
        """Close the workers' standard input, as if this process were dead.

        A signal would be wrong: a scheduler may have sent one to all processes already, and a
        second one stops a worker before it has kept a snapshot.
        """
        for worker in self._workers.values():
            with suppress(OSError):
                assert worker.process.stdin is not None
                worker.process.stdin.close()

    def close(self) -> None:
        """Let idle workers end; kill the others."""
        self.stop()
        for worker in self._workers.values():
            if worker.run_id is not None:
                worker.process.kill()
        for worker in self._workers.values():
            try:
                worker.process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()


def _event(line: bytes) -> Event:
    try:
        return parse_event(line)
    except ValueError:
        message = (
            "a worker process has another version of spafit-bench than this process, or it prints "
            "where its events go; finished runs are stored: run the same command again"
        )
        return Refused(message=message)


def _read_words(worker: _Worker) -> None:
    assert worker.process.stderr is not None
    for line in worker.process.stderr:
        if text := line.decode(errors="replace").strip():
            worker.words.append(text)


def _how_it_ended(worker: _Worker) -> str:
    code = worker.process.returncode
    if code == 130:
        return "its process was told to stop"
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (often: out of memory)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    words = f": {worker.words[-1][:_MOST_CHARACTERS]}" if worker.words else ""
    return f"its process ended with code {code}{words}"

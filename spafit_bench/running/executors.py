"""Where the runs of a sweep are carried out: in this process, or in several on this machine."""

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

from spafit_bench.base import command_line
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.store import Store
from spafit_bench.running.events import (
    Busy,
    Ended,
    Event,
    Hear,
    Lost,
    Refused,
    Reporter,
    parse_event,
)
from spafit_bench.running.series import Options, Series
from spafit_bench.training.prepare import PreparedRun

_PATIENCE_S = 30.0
"""For a worker without a run to end by itself."""
_MOST_WORDS = 300


class Executor(Protocol):
    """Carries out runs; everything that happens is an event."""

    def has_room(self) -> bool:
        """Tell whether another run can begin at once."""

    def submit(self, run: PreparedRun) -> None:
        """Begin a run. It ends with `Ended`, `Busy` or `Lost`."""

    def poll(self, hear: Hear, timeout_s: float) -> None:
        """Pass on what has happened; wait for the first event, but not longer than the timeout."""

    def stop(self) -> None:
        """Ask every run to keep its state and end; each is then `Lost`."""

    def close(self) -> None:
        """Stop at once whatever still goes on."""


@dataclass
class InProcess:
    """One run after another, in this process."""

    store: Store
    options: Options
    stopped: Callable[[], bool]
    _next: PreparedRun | None = None

    def has_room(self) -> bool:
        """Tell whether another run can begin."""
        return self._next is None

    def submit(self, run: PreparedRun) -> None:
        """Remember the run; `poll` carries it out."""
        self._next = run

    def poll(self, hear: Hear, timeout_s: float) -> None:
        """Carry the run out.

        Raises:
            KeyboardInterrupt: this process was told to stop; the run has kept its state.
        """
        del timeout_s
        run, self._next = self._next, None
        if run is None:
            return
        with RunLocks(self.store.root, needed=not self.options.sharded) as locks:
            reporter = Reporter(hear, "")
            series = Series(self.store, reporter, self.options, self.stopped, locks)
            if series.attempt(run) is None:
                hear(Busy(run_id=run.run_id, owner=locks.holder(run.run_id)))

    def stop(self) -> None:
        """Do nothing: nothing goes on between two calls of `poll`."""

    def close(self) -> None:
        """Do nothing."""


def local_executor(
    jobs: int,
    runs: Sequence[PreparedRun],
    store: Store,
    options: Options,
    stopped: Callable[[], bool],
) -> Executor:
    """Carry runs out on this machine: in this process, or in `jobs` processes."""
    if jobs == 1:
        return InProcess(store, options, stopped)
    import torch

    chooses = all(run.config.device in ("auto", "cuda") for run in runs)
    on_gpu = chooses and any(run.numerics.device.type == "cuda" for run in runs)
    count = torch.cuda.device_count() if on_gpu else 0
    gpus = visible_gpus(count, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Processes(store, options, worker_environments(jobs, gpus, divide_threads(jobs)))


def divide_threads(jobs: int) -> int:
    """Give this process the threads that each of `jobs` workers has; return how many it had.

    Threads are part of a run's name on a CPU.
    """
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(threads_per_worker(jobs, num_threads))
    return num_threads


def worker_environments(
    jobs: int, gpus: Sequence[str], num_threads: int
) -> list[tuple[str, dict[str, str]]]:
    """Divide this machine among processes.

    Args:
        jobs: processes.
        gpus: names of the GPUs as `CUDA_VISIBLE_DEVICES` takes them; they go round. None: every
            process gets its share of the CPU's threads, and sees the GPUs that this one sees.
        num_threads: threads of this process.

    Returns:
        For each process its name, and what changes in its environment.
    """
    each = str(threads_per_worker(jobs, num_threads))
    threads = {"OMP_NUM_THREADS": each, "MKL_NUM_THREADS": each}  # torch follows MKL's if it is set
    if not gpus:
        return [(f"cpu {n + 1}", threads) for n in range(jobs)]
    cards = [gpus[n % len(gpus)] for n in range(jobs)]
    return [(f"gpu {card}", threads | {"CUDA_VISIBLE_DEVICES": card}) for card in cards]


def threads_per_worker(jobs: int, num_threads: int) -> int:
    """Divide threads among processes; each has one at least."""
    return max(1, num_threads // jobs)


def visible_gpus(count: int, visible: str | None) -> list[str]:
    """Name the GPUs of this process as `CUDA_VISIBLE_DEVICES` does.

    Args:
        count: GPUs that this process sees.
        visible: its own `CUDA_VISIBLE_DEVICES`, None if it is not set.
    """
    if visible is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in visible.split(",") if name.strip()][:count]


@dataclass
class _Worker:
    """A process and the run that it has."""

    name: str
    process: subprocess.Popen[bytes]
    run_id: str | None = None
    words: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    """Its last lines on standard error."""


@dataclass
class Processes:
    """Several processes, each with one run at a time; one that dies is replaced."""

    store: Store
    options: Options
    environments: Sequence[tuple[str, Mapping[str, str]]]
    _workers: dict[int, _Worker] = field(default_factory=dict)
    """By the number of their environment."""
    _heard: queue.SimpleQueue[tuple[int, _Worker, Event | None]] = field(
        default_factory=queue.SimpleQueue
    )
    """Events of workers; None: the worker has ended."""

    def has_room(self) -> bool:
        """Tell whether a worker is idle, or not started yet."""
        return self._idle() is not None

    def _idle(self) -> int | None:
        for number in range(len(self.environments)):
            if number not in self._workers or self._workers[number].run_id is None:
                return number
        return None

    def submit(self, run: PreparedRun) -> None:
        """Give the run to an idle worker."""
        number = self._idle()
        assert number is not None
        worker = self._workers.get(number) or self._start(number)
        worker.run_id = run.run_id
        with suppress(OSError):  # it is dead; that is heard from its end
            assert worker.process.stdin is not None
            body = {"run_id": run.run_id, "config": run.config.model_dump(mode="json")}
            order = json.dumps(body).encode() + b"\n"
            worker.process.stdin.write(order)
            worker.process.stdin.flush()

    def _start(self, number: int) -> _Worker:
        name, changes = self.environments[number]
        options = json.dumps(asdict(self.options))
        command = [
            sys.executable,
            "-P",
            "-m",
            "spafit_bench.running.worker",
            str(self.store.root),
            options,
            name,
        ]
        process = subprocess.Popen(
            command,
            env=os.environ | {command_line.VARIABLE: command_line.typed_command()} | dict(changes),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
        worker = self._workers[number] = _Worker(name, process)
        threading.Thread(target=_read_words, args=(worker,), daemon=True).start()
        threading.Thread(target=self._read_events, args=(number, worker), daemon=True).start()
        return worker

    def _read_events(self, number: int, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            if not line.endswith(b"\n"):  # cut short by its death
                break
            self._heard.put((number, worker, _event(line)))
        worker.process.wait()
        self._heard.put((number, worker, None))

    def poll(self, hear: Hear, timeout_s: float) -> None:
        """Pass on what the workers say."""
        wait_s = timeout_s
        while True:
            try:
                number, worker, event = self._heard.get(timeout=wait_s)
            except queue.Empty:
                return
            wait_s = 0.0
            if event is None:
                self._bury(number, worker, hear)
                continue
            if isinstance(event, Ended | Busy):
                worker.run_id = None
            hear(event)

    def _bury(self, number: int, worker: _Worker, hear: Hear) -> None:
        if self._workers.get(number) is worker:
            del self._workers[number]
        if worker.run_id is not None:
            hear(Lost(run_id=worker.run_id, reason=_how_it_ended(worker)))

    def stop(self) -> None:
        """Let workers end as if this process were gone.

        No signal: a scheduler may have sent one to all processes, and a second stops at once.
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
            "a worker process is of another version of spafit-bench than this one, or prints to "
            "where its events go; what it has finished is kept: start this command again"
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
    words = f": {worker.words[-1][:_MOST_WORDS]}" if worker.words else ""
    return f"its process ended with code {code}{words}"

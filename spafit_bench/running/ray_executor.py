"""Carries out a sweep's runs on a Ray cluster, which need not share a file system with us.

Every run is one task of the cluster. Its lock, its snapshots and its results are in the sweep's
results folder: if a node dies, its run resumes on another one from the last snapshot that arrived
here. A node that lacks the model, the data or the package is left out, with a warning.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spafit_bench.base.errors import UserError
from spafit_bench.base.process import typed_command
from spafit_bench.config.run_config import RunConfig
from spafit_bench.models.fused import kernels_name
from spafit_bench.models.numerics import Numerics, choose_numerics
from spafit_bench.results.locks import RunLock, RunLocks
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store
from spafit_bench.running.events import Busy, Ended, Event, Hear, Lost, Refused, Started, Warned
from spafit_bench.running.ray_node import Delivery, Mailbox, RunOrder, carry_out
from spafit_bench.running.runner import Options, save_unfinished
from spafit_bench.training.prepare import PreparedRun, Preparer

MOST_SNAPSHOT_BYTES = 256 * 2**20
"""A larger snapshot (full fine-tuning of a large model) stays on its node."""
_ANSWER_S = 10.0
_PROBE_S = 300.0
"""Until a node must be free; the cluster may have to start it first."""
_LOOK_EVERY_S = 2.0
_MOST_REASON = 300


@dataclass(frozen=True)
class Resources:
    """What one run needs."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0

    @property
    def num_threads(self) -> int:
        return max(1, math.floor(self.num_cpus))

    def times_in(self, node: Mapping[str, float]) -> int:
        """Return how many runs fit on a node at once."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        fits = [math.floor(node.get(k, 0.0) / n + 1e-9) for k, n in wanted.items() if n > 0]
        return min(fits, default=0)


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray, and how its nodes compute."""

    ray: Any
    resources: Resources
    numerics: Numerics
    """Of the nodes, for `--precision auto`."""
    kernels: str
    """Of the nodes, in that precision."""

    def preparer(self) -> Preparer:
        """Return a preparer for runs on the nodes, which compute otherwise than this machine."""

        def choose(device: str, precision: str) -> Numerics:
            del device
            auto = precision == "auto"
            return Numerics(self.numerics.device, self.numerics.precision if auto else precision)

        def kernels(numerics: Numerics) -> str:
            return self.kernels if numerics.precision == self.numerics.precision else "torch"

        return Preparer(numerics=choose, kernels=kernels)


def connect(address: str | None, resources: Resources) -> Cluster:
    """Connect to a cluster, or start Ray on this machine if no address is given or known.

    The number of threads is part of a run's name, so this process gets as many as a run has.

    Raises:
        UserError: Ray is not installed, no cluster answers, or no node has what a run needs.
    """
    try:
        import ray as installed
    except ImportError:
        raise UserError(
            "--executor ray: Ray is not installed; pip install '.[ray]' in a checkout"
        ) from None
    ray: Any = installed  # its own types are incomplete
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:_MOST_REASON]
        raise UserError(
            f"--executor ray: no cluster at {address or 'any address'} ({reason})"
        ) from None
    torch.set_num_threads(resources.num_threads)
    device = "cuda" if resources.num_gpus else "cpu"
    task = ray.remote(_how_a_node_computes).options(
        num_cpus=resources.num_cpus, num_gpus=resources.num_gpus
    )
    try:
        precision, kernels = ray.get(task.remote(device), timeout=_PROBE_S)
    except ray.exceptions.GetTimeoutError:
        nodes = "; ".join(str(node["Resources"]) for node in ray.nodes() if node["Alive"])
        raise UserError(
            f"--executor ray: no node had {resources.num_cpus:g} CPUs and {resources.num_gpus:g} "
            f"GPUs free within {_PROBE_S:.0f} s; the nodes have {nodes:.500}"
        ) from None
    except ray.exceptions.RayError as error:
        raise UserError(f"--executor ray: {_reason(error)}") from None
    return Cluster(ray, resources, Numerics(torch.device(device), precision), kernels)


def _how_a_node_computes(device: str) -> tuple[str, str]:
    found = choose_numerics(device, "auto")
    return found.precision, kernels_name(found)


def _check_reachable(address: str | None) -> None:
    """Refuse an address where nothing answers; Ray itself would try for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:  # none, or a name that Ray knows, such as auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nothing answers there ({error}); `ray start --head` prints the "
            "address of a cluster"
        ) from None


@dataclass(frozen=True)
class _Task:
    """A run that was given to the cluster."""

    run: PreparedRun
    lock: RunLock
    reference: Any


class RayExecutor:
    """Gives runs to a cluster and stores what the nodes send back."""

    def __init__(self, cluster: Cluster, store: Store, options: Options) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._cluster, self._ray, self._store, self._options = cluster, cluster.ray, store, options
        self._locks = RunLocks(store.root, needed=not options.sharded)
        here = NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = self._ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here)
        self._mailbox = actor.remote()
        self._tasks: dict[str, _Task] = {}
        self._events: list[Event] = []
        """For the next `poll`."""
        self._started: set[str] = set()
        self._left_out: set[str] = set()
        """Ids of nodes that refused a run."""
        self._slots = 0
        self._looked_s = -math.inf

    def has_room(self) -> bool:
        """Return whether another run may queue; some do, so that a cluster knows when to grow."""
        if time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            fits = self._cluster.resources.times_in
            self._slots = sum(fits(node["Resources"]) for node in self._good_nodes())
        return len(self._tasks) < 2 * max(1, self._slots)

    def _good_nodes(self) -> list[Any]:
        nodes = self._ray.nodes()
        return [n for n in nodes if n["Alive"] and n["NodeID"] not in self._left_out]

    def submit(self, run: PreparedRun) -> None:
        """Lock the run and give it to the cluster."""
        lock = self._locks.acquire(run.run_id)
        if lock is None:
            owner = self._locks.holder(run.run_id)
            self._events.append(Busy(run_id=run.run_id, owner=owner))
            return
        self._send(run, lock)

    def _send(self, run: PreparedRun, lock: RunLock) -> None:
        resources = self._cluster.resources
        order = RunOrder(
            config=_elsewhere(run),
            run_id=run.run_id,
            options=self._options,
            num_threads=resources.num_threads,
            snapshot=self._store.snapshot(run.run_id),
            most_snapshot_bytes=MOST_SNAPSHOT_BYTES,
        )
        options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus}
        if self._left_out:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self._left_out)})"}
        # Ray must not retry: the next attempt has to start from the newest snapshot.
        task = self._ray.remote(carry_out).options(max_retries=0, **options)
        self._tasks[run.run_id] = _Task(run, lock, task.remote(order, self._mailbox))

    def poll(self, hear: Hear, timeout_s: float) -> None:
        """Store what the nodes have sent, and pass their events on."""
        references = {task.reference: run_id for run_id, task in self._tasks.items()}
        ended: list[Any] = []
        if references:
            ended, _ = self._ray.wait(
                list(references), num_returns=len(references), timeout=timeout_s
            )
        posted, snapshots = self._ray.get(self._mailbox.collect.remote())
        for run_id, content in snapshots.items():
            if run_id in self._tasks:
                try:
                    self._store.keep_snapshot(run_id, content)
                except OSError as error:
                    self._warn(f"no snapshot could be kept ({error}); the run continues")
        self._started |= {event.run_id for event in posted if isinstance(event, Started)}
        self._events += posted
        for reference in ended:
            self._receive(references[reference])
        events, self._events = self._events, []
        for event in events:
            hear(event)

    def _receive(self, run_id: str) -> None:
        """Store what a task returned."""
        task = self._tasks.pop(run_id)
        self._started.discard(run_id)
        try:
            delivery: Delivery = self._ray.get(task.reference)
        except self._ray.exceptions.RayError as error:
            task.lock.release()
            self._events.append(Lost(run_id=run_id, reason=_reason(error)))
            return
        if delivery.refused is not None:
            self._leave_out(task, delivery.node_id, delivery.refused)
            return
        with task.lock:
            if delivery.record is None:
                self._events.append(Lost(run_id=run_id, reason="its node was told to stop"))
            else:
                record = self._save(delivery.record, delivery.files)
                self._events.append(Ended(run_id=run_id, record=record))

    def _save(self, record: RunRecord, files: Mapping[str, bytes]) -> RunRecord:
        ours = record.environment.model_copy(update={"command": typed_command()})
        record = record.model_copy(update={"environment": ours})
        if record.status == "done":
            self._store.save(record, files)
        else:
            save_unfinished(self._store, record, self._warn)
        if record.status in ("done", "diverged"):
            self._store.drop_snapshot(record.run_id)
        return record

    def _warn(self, message: str) -> None:
        self._events.append(Warned(message=message))

    def _leave_out(self, task: _Task, node_id: str, reason: str) -> None:
        """Stop using a node; send its run to the others, if there are any."""
        self._left_out.add(node_id)
        nodes = {node["NodeID"]: node for node in self._ray.nodes()}
        name = nodes.get(node_id, {}).get("NodeManagerHostname", node_id)
        said = f"node {name} ({node_id[:8]}) is left out: {reason}"
        fits = self._cluster.resources.times_in
        if any(fits(node["Resources"]) for node in self._good_nodes()):
            self._send(task.run, task.lock)
            self._warn(said)
            return
        task.lock.release()
        self._events += [
            Refused(message=f"no node is left for these runs; {said}"),
            Lost(run_id=task.run.run_id, reason="no node is left for it"),
        ]

    def stop(self) -> None:
        """Tell runs to keep a snapshot and end; cancel those that have not started."""
        self._mailbox.stop.remote()
        for run_id, task in self._tasks.items():
            if run_id not in self._started:
                self._ray.cancel(task.reference)

    def close(self) -> None:
        for task in self._tasks.values():
            self._ray.cancel(task.reference, force=True)
        self._tasks.clear()
        self._locks.close()
        self._ray.kill(self._mailbox)


def _elsewhere(run: PreparedRun) -> RunConfig:
    """Return a configuration that means the same run on another machine."""
    config = run.config
    changes: dict[str, Any] = {
        "device": run.numerics.device.type,
        "precision": run.numerics.precision,
        "model": _absolute(config.model),
        "data": _absolute(config.data),
    }
    method = config.method.model_copy(update={"name": _absolute(config.method.name)})
    return config.model_copy(update=changes | {"method": method})


def _absolute(name: str) -> str:
    """Return the absolute path if the name is a path here, else the name as it is."""
    try:
        return str(Path(name).resolve()) if Path(name).exists() else name
    except OSError:  # too long to be a path
        return name


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if type(error).__name__ == "TaskCancelledError":
        return "it was cancelled before it started"
    if "No module named 'spafit_bench'" in text:
        return "spafit-bench is not installed on a node; all nodes need it, in the same version"
    return f"{type(error).__name__}: {text}"[:_MOST_REASON]

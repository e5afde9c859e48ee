"""What happens on the nodes of a Ray cluster: a mailbox, and the task that carries out one run.

A node needs no folder in common with the sweep's machine: the run's files, its snapshots and its
events travel as bytes. The node does need the package, the model and the data; it refuses a run
that would not be the one that was asked for.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_bench import __version__
from spafit_bench.base.errors import UserError
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_files
from spafit_bench.results.store import Store
from spafit_bench.running.events import Ended, Event, warnings_as_events

if TYPE_CHECKING:  # torch takes seconds, and the mailbox should be there at once
    from spafit_bench.config.run_config import RunConfig
    from spafit_bench.running.runner import Options
    from spafit_bench.training.prepare import PreparedRun, Preparer

ASK_EVERY_S = 1.0
"""Between two questions whether the sweep is stopping."""
_STEPS_EVERY_S = 2.0


class Mailbox:
    """An actor on the sweep's machine: nodes post to it, the sweep collects."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._snapshots: dict[str, bytes] = {}
        self._is_stopping = False

    def post(self, event: Event) -> None:
        self._events.append(event)

    def keep(self, run_id: str, snapshot: bytes) -> None:
        """Take the snapshot of a run, in place of an earlier one."""
        self._snapshots[run_id] = snapshot

    def collect(self) -> tuple[list[Event], dict[str, bytes]]:
        """Return new events and snapshots."""
        new, self._events, self._snapshots = (self._events, self._snapshots), [], {}
        return new

    def stop(self) -> None:
        """Let runs know that they must keep a snapshot and end."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        return self._is_stopping


@dataclass(frozen=True, kw_only=True)
class RunOrder:
    """A run that a node must carry out."""

    config: RunConfig
    """With device and precision resolved, and paths absolute."""
    run_id: str
    options: Options
    num_threads: int
    snapshot: bytes | None
    most_snapshot_bytes: int
    """Larger snapshots stay on the node."""
    version: str = __version__


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The result of an order."""

    node_id: str
    record: RunRecord | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    refused: str | None = None
    """Why this node cannot carry out the run; others may."""


@dataclass(frozen=True)
class _NodeStore(Store):
    """A results folder on the node that also sends snapshots to the sweep."""

    send: Callable[[str, bytes], None]
    most_bytes: int

    def keep_snapshot(self, run_id: str, *pieces: bytes | memoryview) -> None:
        super().keep_snapshot(run_id, *pieces)
        if sum(map(len, pieces)) <= self.most_bytes:
            self.send(run_id, b"".join(pieces))


def carry_out(order: RunOrder, mailbox: Any) -> Delivery:
    """Carry out one run in a temporary folder of the node; return its record and files.

    Args:
        order: the run.
        mailbox: handle of a `Mailbox` actor.
    """
    import ray
    import torch

    from spafit_bench.running.runner import Runner

    node_id = ray.get_runtime_context().get_node_id()
    torch.set_num_threads(order.num_threads)
    try:
        prepared = _prepared(order)
    except UserError as error:
        return Delivery(node_id=node_id, refused=str(error))
    records: list[RunRecord] = []

    def hear(event: Event) -> None:
        if isinstance(event, Ended):
            records.append(event.record)  # the delivery tells
        else:
            mailbox.post.remote(event)

    with tempfile.TemporaryDirectory(prefix="spafit-bench-") as folder, _stopping(mailbox) as stop:
        store = _NodeStore(Path(folder), mailbox.keep.remote, order.most_snapshot_bytes)
        store.check_writable()
        if order.snapshot is not None:
            (store.root / "unfinished").mkdir()
            Store(store.root).keep_snapshot(order.run_id, order.snapshot)
        where = f"{socket.gethostname()}/{node_id[:4]}"  # a machine may hold several nodes
        with warnings_as_events(hear), RunLocks(store.root, needed=False) as locks:
            runner = Runner(store, order.options, locks, stop, hear, where, _STEPS_EVERY_S)
            try:
                runner.carry_out(prepared)
            except KeyboardInterrupt:
                return Delivery(node_id=node_id)
        files = read_files(store.runs / order.run_id)
        return Delivery(node_id=node_id, record=records[0], files=files)


@cache
def _preparer() -> Preparer:
    """Return the preparer that a Ray worker process keeps from one run to the next."""
    from spafit_bench.training.prepare import Preparer

    return Preparer()


def _prepared(order: RunOrder) -> PreparedRun:
    if order.version != __version__:
        raise UserError(f"spafit-bench {__version__} is installed here, not {order.version}")
    prepared = _preparer().prepare(order.config)
    if prepared.run_id != order.run_id:
        raise UserError(
            f"model, data or method differ from those of the sweep's machine (--model "
            f"{order.config.model}, --data {order.config.data}): the run would be "
            f"{prepared.run_id}, not {order.run_id}"
        )
    return prepared


@contextmanager
def _stopping(mailbox: Any) -> Iterator[Callable[[], bool]]:
    """Ask the mailbox every second whether the sweep is stopping; yield what returns the answer."""
    asked, done = threading.Event(), threading.Event()

    def ask() -> None:
        import ray

        while not asked.is_set() and not done.wait(ASK_EVERY_S):
            with suppress(ray.exceptions.GetTimeoutError):
                try:
                    is_stopping = ray.get(mailbox.is_stopping.remote(), timeout=10)
                except ray.exceptions.RayActorError:  # the sweep is dead
                    is_stopping = True
                if is_stopping:
                    asked.set()

    threading.Thread(target=ask, daemon=True).start()
    try:
        yield asked.is_set
    finally:
        done.set()

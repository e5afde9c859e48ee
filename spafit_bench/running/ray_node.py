"""One run of a Ray cluster, on the node that carries it out.

A node needs no folder in common with the sweep's machine: the run's files, its snapshots and its
events travel to it as bytes. What the node does need is the package, the model and the data; a run
that would not be the one that was asked for is refused before it starts.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from spafit_bench import __version__
from spafit_bench.base.errors import UserError
from spafit_bench.config.run_config import RunConfig
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_files
from spafit_bench.results.store import Store
from spafit_bench.running.events import Event, Reporter, WarningsAsEvents
from spafit_bench.running.series import Options, Series
from spafit_bench.training.prepare import PreparedRun, Preparer

ASK_EVERY_S = 1.0
"""Between two questions whether the sweep is being stopped."""
_STEPS_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run that a node is to carry out."""

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
    """What came of an order."""

    node_id: str
    record: RunRecord | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    refused: str | None = None
    """Why this node cannot carry the run out; others may."""


@dataclass(frozen=True)
class _NodeStore(Store):
    """A results folder on the node that sends snapshots home."""

    send: Callable[[str, bytes], None]
    most_bytes: int

    def keep_snapshot(self, run_id: str, *pieces: bytes | memoryview) -> None:
        """Keep the state here, and at home unless it is too large to travel."""
        super().keep_snapshot(run_id, *pieces)
        if sum(map(len, pieces)) <= self.most_bytes:
            self.send(run_id, b"".join(pieces))


def carry_out(order: Order, mailbox: Any) -> Delivery:
    """Carry out one run in a folder of the node's own, and return its files.

    Args:
        order: the run.
        mailbox: handle of a `ray_mailbox.Mailbox` actor.
    """
    import ray
    import torch

    node_id = ray.get_runtime_context().get_node_id()
    torch.set_num_threads(order.num_threads)
    try:
        prepared = _prepared(order)
    except UserError as error:
        return Delivery(node_id=node_id, refused=str(error))
    with tempfile.TemporaryDirectory(prefix="spafit-bench-") as folder, _Stopping(mailbox) as stop:
        store = _NodeStore(Path(folder), mailbox.keep.remote, order.most_snapshot_bytes)
        store.check_writable()
        if order.snapshot is not None:
            (store.root / "unfinished").mkdir()
            Store(store.root).keep_snapshot(order.run_id, order.snapshot)
        where = f"{socket.gethostname()}/{node_id[:4]}"  # a machine may hold several nodes
        reporter = Reporter(_without_records(mailbox.post.remote), where)
        reporter.steps_every_s = _STEPS_EVERY_S
        heard = WarningsAsEvents(reporter.emit).listening()
        with heard, RunLocks(store.root, needed=False) as locks:
            series = Series(store, reporter, order.options, stop.is_asked, locks)
            try:
                record = series.attempt(prepared)
            except KeyboardInterrupt:
                return Delivery(node_id=node_id)
        assert record is not None, "nobody else works in this folder"
        return Delivery(node_id=node_id, record=record, files=read_files(store.runs / order.run_id))


@cache
def _preparer() -> Preparer:
    """Return what Ray's worker process keeps from one run to the next."""
    return Preparer()


def _prepared(order: Order) -> PreparedRun:
    if order.version != __version__:
        raise UserError(f"spafit-bench {__version__} is installed here, not {order.version}")
    prepared = _preparer().prepare(order.config)
    if prepared.run_id != order.run_id:
        raise UserError(
            f"model, data or method are not those of the sweep's machine (--model "
            f"{order.config.model}, --data {order.config.data}): the run would be "
            f"{prepared.run_id}, not {order.run_id}"
        )
    return prepared


def _without_records(post: Callable[[Event], object]) -> Callable[[Event], None]:
    """Post everything but the end of the run, which the delivery tells."""

    def emit(event: Event) -> None:
        if event.kind != "ended":
            post(event)

    return emit


class _Stopping:
    """Asks the sweep, now and then, whether it is being stopped."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._asked = threading.Event()
        self._done = threading.Event()

    def __enter__(self) -> _Stopping:
        threading.Thread(target=self._ask, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def is_asked(self) -> bool:
        """Tell whether the run should keep its state and end."""
        return self._asked.is_set()

    def _ask(self) -> None:
        import ray

        while not self._done.wait(ASK_EVERY_S):
            with suppress(ray.exceptions.GetTimeoutError):
                try:
                    asked = ray.get(self._mailbox.is_stopping.remote(), timeout=10)
                except ray.exceptions.RayActorError:  # the sweep is gone
                    asked = True
                if asked:
                    self._asked.set()
                    return

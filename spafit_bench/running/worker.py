"""A process that carries out the runs it is given, for `sweep --jobs`.

Started as `python -m spafit_bench.running.worker RESULTS OPTIONS NAME`. Every line on standard
input is a run's name and configuration in JSON. Every line on standard output is an event.
The worker ends when standard input does, and the run under way keeps its state: either the sweep is
being stopped, or its process was killed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from spafit_bench.base.errors import UserError
from spafit_bench.base.stop import StopSignal
from spafit_bench.config.run_config import RunConfig
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.store import Store
from spafit_bench.running.events import Busy, Event, Refused, Reporter, WarningsAsEvents
from spafit_bench.running.series import Options, Series
from spafit_bench.training.prepare import PreparedRun, Preparer


def main(results: str, options: str, name: str) -> int:
    """Carry out runs until there are no more; return the exit code."""
    emit = _Events(_keep_stdout())
    orphaned = threading.Event()
    orders: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders, orphaned), daemon=True).start()
    store, preparer = Store(Path(results)), Preparer()
    heard = WarningsAsEvents(emit).listening()
    how = Options(**json.loads(options))
    locks = RunLocks(store.root, needed=not how.sharded)
    with StopSignal() as stop, heard, locks:
        series = Series(
            store,
            Reporter(emit, name),
            how,
            stop=lambda: stop() or orphaned.is_set(),
            locks=locks,
        )
        try:
            while not stop() and (order := orders.get()) is not None:
                prepared = _prepared(order, preparer)
                if series.attempt(prepared) is None:
                    emit(Busy(run_id=prepared.run_id, owner=locks.holder(prepared.run_id)))
        except UserError as error:
            emit(Refused(message=str(error)))
            return 2
        except KeyboardInterrupt:
            return 130
    return 0


def _prepared(order: str, preparer: Preparer) -> PreparedRun:
    wanted = json.loads(order)
    prepared = preparer.prepare(RunConfig.model_validate(wanted["config"]))
    if prepared.run_id != wanted["run_id"]:
        raise UserError(
            f"a worker would compute {prepared.run_id}, not {wanted['run_id']}: model or data "
            "changed, or its device or number of threads is another than this process expects"
        )
    return prepared


class _Events:
    """Writes events, one a line; silent once nobody reads them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        try:
            self._stream.write(json.dumps(event.model_dump(mode="json")).encode() + b"\n")
            self._stream.flush()
        except OSError:
            pass


def _keep_stdout() -> BinaryIO:
    """Take standard output for events; what libraries print goes to standard error."""
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return events


def _listen(orders: queue.SimpleQueue[str | None], orphaned: threading.Event) -> None:
    for line in sys.stdin:
        orders.put(line)
    orphaned.set()
    orders.put(None)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""A process that carries out the runs it is given, for `sweep --jobs`.

Started as `python -m spafit_bench.running.worker RESULTS OPTIONS NAME`. Every line on standard
input is a run's name and configuration in JSON. Every line on standard output is an event. When
standard input ends, the sweep is stopping or its process is dead: the worker keeps a snapshot of
its run and ends.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from contextlib import suppress
from pathlib import Path

from spafit_bench.base.errors import UserError
from spafit_bench.base.stop import INTERRUPTED, StopSignal, end_with_parent
from spafit_bench.config.run_config import RunConfig
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.store import Store
from spafit_bench.running.events import Event, Hear, Refused, warnings_as_events
from spafit_bench.running.runner import Options, Runner
from spafit_bench.training.prepare import PreparedRun, Preparer


def main(results: str, options: str, name: str) -> int:
    """Carry out runs until there are no more; return the exit code."""
    end_with_parent()
    hear = _events_to_stdout()
    orders, orphaned = queue.SimpleQueue[str | None](), threading.Event()
    threading.Thread(target=_listen, args=(orders, orphaned), daemon=True).start()
    store, how, preparer = Store(Path(results)), Options(**json.loads(options)), Preparer()
    locks = RunLocks(store.root, needed=not how.sharded)
    with StopSignal() as signalled, warnings_as_events(hear), locks:

        def stop() -> bool:
            return signalled() or orphaned.is_set()

        runner = Runner(store, how, locks, stop, hear, where=name)
        try:
            while not signalled() and (order := orders.get()) is not None:
                runner.carry_out(_prepared(order, preparer))
        except UserError as error:
            hear(Refused(message=str(error)))
            return 2
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


def _prepared(order: str, preparer: Preparer) -> PreparedRun:
    wanted = json.loads(order)
    prepared = preparer.prepare(RunConfig.model_validate(wanted["config"]))
    if prepared.run_id != wanted["run_id"]:
        raise UserError(
            f"a worker would compute {prepared.run_id}, not {wanted['run_id']}: the model or the "
            "data changed, or the worker has another device or number of threads than expected"
        )
    return prepared


def _events_to_stdout() -> Hear:
    """Take standard output for events; what libraries print goes to standard error."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def hear(event: Event) -> None:
        with suppress(OSError):  # the sweep is dead
            stream.write(json.dumps(event.model_dump(mode="json")).encode() + b"\n")
            stream.flush()

    return hear


def _listen(orders: queue.SimpleQueue[str | None], orphaned: threading.Event) -> None:
    for line in sys.stdin:
        orders.put(line)
    orphaned.set()
    orders.put(None)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

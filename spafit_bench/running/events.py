"""What happens to runs, as typed events: in this process, in a worker, or on a Ray node."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from spafit_bench.base.frozen import Frozen
from spafit_bench.results.record import Evaluation, RunRecord


class Started(Frozen):
    """A run starts, from the beginning or from its last snapshot."""

    kind: Literal["started"] = "started"
    run_id: str
    where: str = ""
    """Which worker or node; empty in this process."""


class Stepped(Frozen):
    """A run has trained further."""

    kind: Literal["stepped"] = "stepped"
    run_id: str
    step: int
    total_steps: int
    loss: float
    tokens_per_s: float


class Evaluated(Frozen):
    """A run has evaluated its dev splits."""

    kind: Literal["evaluated"] = "evaluated"
    run_id: str
    evaluation: Evaluation


class Ended(Frozen):
    """A run has a record: done, diverged or failed."""

    kind: Literal["ended"] = "ended"
    run_id: str
    record: RunRecord
    found: bool = False
    """The record was stored before; this command did not train the run."""


class Busy(Frozen):
    """Another process holds the lock of a run; try again later."""

    kind: Literal["busy"] = "busy"
    run_id: str
    owner: str


class Lost(Frozen):
    """The process that trained a run ended; the last snapshot, if any, is kept."""

    kind: Literal["lost"] = "lost"
    run_id: str
    reason: str


class Warned(Frozen):
    """A warning; no run stops because of it."""

    kind: Literal["warned"] = "warned"
    message: str


class Refused(Frozen):
    """An error that the user must fix before any run can continue."""

    kind: Literal["refused"] = "refused"
    message: str


Event = Annotated[
    Started | Stepped | Evaluated | Ended | Busy | Lost | Warned | Refused,
    Field(discriminator="kind"),
]
Hear = Callable[[Event], None]

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """Read an event from JSON.

    Raises:
        ValueError: it is not an event.
    """
    return _EVENT.validate_python(json.loads(line))  # pydantic's own JSON refuses odd text


class _WarningsAsEvents(logging.Handler):
    def __init__(self, hear: Hear) -> None:
        super().__init__(logging.WARNING)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(Warned(message=record.getMessage()))


@contextmanager
def warnings_as_events(hear: Hear) -> Iterator[None]:
    """Turn what this package logs as a warning within the block into events."""
    package, handler = logging.getLogger("spafit_bench"), _WarningsAsEvents(hear)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)

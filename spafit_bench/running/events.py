"""What a run says while it goes: in this process, in another one, or on another machine."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter

from spafit_bench.base.frozen import Frozen
from spafit_bench.results.record import Evaluation, RunRecord

if TYPE_CHECKING:
    from spafit_bench.training.loop import Progress
    from spafit_bench.training.prepare import PreparedRun

STEPS_EVERY_S = 0.25
"""Between two events about the steps of one run."""


class Started(Frozen):
    """A run begins, anew or from its last snapshot."""

    kind: Literal["started"] = "started"
    run_id: str
    where: str


class Stepped(Frozen):
    """Training goes on."""

    kind: Literal["stepped"] = "stepped"
    run_id: str
    step: int
    total_steps: int
    loss: float
    tokens_per_s: float


class Evaluated(Frozen):
    """An evaluation has ended."""

    kind: Literal["evaluated"] = "evaluated"
    run_id: str
    evaluation: Evaluation


class Ended(Frozen):
    """A run has its record, finished or failed."""

    kind: Literal["ended"] = "ended"
    run_id: str
    record: RunRecord
    found: bool = False
    """Another process had carried it out already."""


class Busy(Frozen):
    """Another process has the run; ask again later."""

    kind: Literal["busy"] = "busy"
    run_id: str
    owner: str


class Lost(Frozen):
    """Whoever carried the run out is gone; its last snapshot, if any, is kept."""

    kind: Literal["lost"] = "lost"
    run_id: str
    reason: str


class Warned(Frozen):
    """Something that a user should know and that stops nothing."""

    kind: Literal["warned"] = "warned"
    message: str


class Refused(Frozen):
    """Nothing can go on before the user has mended this."""

    kind: Literal["refused"] = "refused"
    message: str


Event = Annotated[
    Started | Stepped | Evaluated | Ended | Busy | Lost | Warned | Refused,
    Field(discriminator="kind"),
]
Hear = Callable[[Event], None]

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """Read an event back from JSON.

    Raises:
        ValueError: the line is none.
    """
    return _EVENT.validate_python(json.loads(line))  # pydantic's own JSON refuses odd text


@dataclass
class Reporter:
    """Turns what a run's view and observer hear into events."""

    emit: Hear
    where: str
    run_id: str = ""
    steps_every_s: float = STEPS_EVERY_S
    last_step_s: float = 0.0

    def skipped(self, record: RunRecord) -> None:
        """Pass on that the run is already there."""
        self.emit(Ended(run_id=record.run_id, record=record, found=True))

    def started(self, prepared: PreparedRun, number: int, total: int) -> Reporter:
        """Pass on that a run begins."""
        del number, total
        self.run_id = prepared.run_id
        self.emit(Started(run_id=self.run_id, where=self.where))
        return self

    def finished(self, record: RunRecord) -> None:
        """Pass on how the run ended."""
        self.emit(Ended(run_id=record.run_id, record=record))

    def waiting(self, prepared: PreparedRun, owner: str) -> None:
        """Pass on that another process has the run."""
        self.emit(Busy(run_id=prepared.run_id, owner=owner))

    def warn(self, message: str) -> None:
        """Pass a warning on."""
        self.emit(Warned(message=message))

    def on_step(self, progress: Progress) -> None:
        """Pass on how far training is, now and then."""
        if time.monotonic() - self.last_step_s < self.steps_every_s:
            return
        self.last_step_s = time.monotonic()
        self.emit(
            Stepped(
                run_id=self.run_id,
                step=progress.step,
                total_steps=progress.total_steps,
                loss=progress.loss,
                tokens_per_s=progress.tokens_per_s,
            )
        )

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Pass an evaluation on."""
        self.emit(Evaluated(run_id=self.run_id, evaluation=evaluation))


class WarningsAsEvents(logging.Handler):
    """Passes on what this package logs as a warning, for whoever shows a run's events."""

    def __init__(self, hear: Hear) -> None:
        super().__init__(logging.WARNING)
        self.hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning on."""
        self.hear(Warned(message=record.getMessage()))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of warnings within the block."""
        package = logging.getLogger("spafit_bench")
        package.addHandler(self)
        try:
            yield
        finally:
            package.removeHandler(self)

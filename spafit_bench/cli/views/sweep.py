"""Shows a sweep on stderr: what runs and how long it will take, live on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spafit_bench.base.units import duration
from spafit_bench.cli.views.progress import format_metrics
from spafit_bench.results.record import RunRecord
from spafit_bench.running.events import (
    Busy,
    Ended,
    Evaluated,
    Event,
    Lost,
    Started,
    Stepped,
    Warned,
)
from spafit_bench.running.forecast import relative_work
from spafit_bench.training.prepare import PreparedRun

PLAIN_EVERY_S = 60.0
"""Between two lines about the whole where there is no terminal."""
_BAR_WIDTH = 10
_SHORT = {"learning_rate": "lr"}


@dataclass
class _Running:
    """A run under way."""

    label: str
    where: str
    work: float
    since_s: float
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    rate: float | None = None
    scores: str = ""
    first_share: float | None = None
    """How far it was when it was first heard of: a run may go on from a snapshot."""

    @property
    def share(self) -> float:
        """How much of it is done, between 0 and 1."""
        return self.step / self.total_steps if self.total_steps else 0.0

    @property
    def new_share(self) -> float:
        """How much of it was done here."""
        return self.share - (self.first_share or 0.0)

    def hear(self, event: Stepped) -> None:
        """Take in how far training is."""
        self.step, self.total_steps = event.step, event.total_steps
        self.loss, self.rate = event.loss, event.tokens_per_s
        if self.first_share is None:
            self.first_share = self.share

    def left_s(self) -> float | None:
        """Return the time left, None while that cannot be told."""
        if self.new_share <= 0:
            return None
        return (time.monotonic() - self.since_s) / self.new_share * (1 - self.share)


@dataclass
class SweepView:
    """Reports a sweep; use it in a `with` block."""

    title: str
    keys: Sequence[str] = ()
    """Settings that differ between the runs of a cell, to tell them apart."""
    force: bool = False
    """Whether the same command repeats what is finished."""
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    runs: dict[str, PreparedRun] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    """Run -> its work."""
    settled: dict[str, RunRecord] = field(default_factory=dict)
    running: dict[str, _Running] = field(default_factory=dict)
    found: dict[str, RunRecord] = field(default_factory=dict)
    """That were there already, until it is said."""
    work_done: float = 0.0
    """By this sweep, of runs that have ended."""
    since_s: float = field(default_factory=time.monotonic)
    live: Live | None = None
    said: set[str] = field(default_factory=set)
    last_line_s: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._say_found()
        if self.live is not None:
            self.live.stop()
        if kind is KeyboardInterrupt:
            others = " (and repeats the others: --force)" if self.force else ""
            text = f"interrupted; the same command goes on where this one stopped{others}"
            self.say(text, "yellow")

    def say(self, text: str, style: str = "") -> None:
        """Print one line as it is, above what is live."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def say_once(self, text: str, style: str) -> None:
        """Print a line unless it has been said."""
        if text not in self.said:
            self.said.add(text)
            self.say(text, style)

    def expect(self, runs: Sequence[PreparedRun]) -> None:
        """Take in which runs there are; those of choices not yet made are guesses."""
        self.runs |= {run.run_id: run for run in runs}
        self.expected = {
            run.run_id: self.expected.get(run.run_id) or relative_work(run) for run in runs
        }
        if self.live is None and self.console.is_terminal and len(self.settled) < len(runs):
            self.live = Live(
                console=self.console,
                get_renderable=self._picture,
                transient=True,
                vertical_overflow="ellipsis",
            )
            self.live.start()

    def hear(self, event: Event) -> None:
        """Take in what a run says."""
        match event:
            case Started():
                self._start(event)
            case Stepped() if event.run_id in self.running:
                self.running[event.run_id].hear(event)
            case Evaluated() if event.run_id in self.running:
                self.running[event.run_id].scores = format_metrics(event.evaluation.metrics)
            case Ended():
                self._end(event)
            case Lost():
                self.running.pop(event.run_id, None)
                self.say(f"{self._label(self.runs[event.run_id])}: {event.reason}", "yellow")
            case Busy():
                self.say_once(f"waiting for {event.run_id}, which {event.owner} has", "dim")
            case Warned():
                self.say_once(f"warning: {event.message}", "yellow")
        if self.live is None and time.monotonic() - self.last_line_s > PLAIN_EVERY_S:
            self.last_line_s = time.monotonic()
            self.say(self.summary())

    def _start(self, event: Started) -> None:
        self._say_found()
        run = self.runs[event.run_id]
        for warning in run.warnings:
            self.say_once(f"warning: {warning}", "yellow")
        work = self.expected.get(event.run_id, 0.0)
        now = time.monotonic()
        self.running[event.run_id] = _Running(self._label(run), event.where, work, now)

    def _end(self, event: Ended) -> None:
        run = self.running.pop(event.run_id, None)
        self.settled[event.run_id] = event.record
        if event.found:
            self.found[event.run_id] = event.record
            return
        self.work_done += run.work * (1 - (run.first_share or 0.0)) if run else 0.0
        number = f"[{len(self.settled)}/{len(self.expected)}]"
        label = self._label(self.runs[event.run_id])
        self.say(*_ending(f"{number} {label}", event.record))

    def _say_found(self) -> None:
        """Say once how much was there already."""
        if self.found:
            failed = sum(record.status != "done" for record in self.found.values())
            some = f", {failed} of them failed or diverged (--retry-failed)" if failed else ""
            self.say_once(
                f"{len(self.found)} of {len(self.expected)} runs are there already{some}", "dim"
            )
            self.found.clear()

    def _label(self, run: PreparedRun) -> str:
        config = run.config.model_dump()
        parts = [run.task.name, run.method, f"seed {run.config.seed}"]
        for key in self.keys:
            value: Any = config
            for part in key.split("."):
                value = value[part]
            name = key.rpartition(".")[2]
            parts += [f"{_SHORT.get(name, name)} {value}"] if value is not None else []
        parts += ["trial"] if run.config.holdout is not None else []
        return " ".join(parts)

    def left_s(self) -> float | None:
        """Return the time left for the whole, None while that cannot be told."""
        running = list(self.running.values())
        here = self.work_done + sum(run.work * run.new_share for run in running)
        ahead = sum(w for run_id, w in self.expected.items() if run_id not in self.settled)
        ahead -= sum(run.work * run.share for run in running)
        if here <= 0:
            return None
        return max(0.0, ahead) * (time.monotonic() - self.since_s) / here

    def summary(self) -> str:
        """Return one line about the whole."""
        failed = sum(record.status != "done" for record in list(self.settled.values()))
        done = len(self.settled) - failed
        parts = [f"{self.title}: {done} of {len(self.expected)} done"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{len(self.running)} running", duration(time.monotonic() - self.since_s)]
        left = self.left_s()
        parts += [f"about {duration(left)} left"] if left is not None else []
        return " · ".join(parts)

    def _picture(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0), expand=False)
        table.add_column(no_wrap=True, style="dim")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for width in (_BAR_WIDTH, 6, 10, 8):
            table.add_column(no_wrap=True, justify="right", min_width=width)
        for run in list(self.running.values()):
            left = run.left_s()
            table.add_row(
                f" {run.where}",
                run.label,
                ProgressBar(total=1.0, completed=run.share, width=_BAR_WIDTH),
                f"{100 * run.share:.0f} %" if run.total_steps else "starts",
                f"loss {run.loss:.3f}" if run.loss is not None else "",
                duration(left) if left is not None else "",
            )
        return Lines(Text(self.summary(), style="bold", no_wrap=True, overflow="ellipsis"), table)


def _ending(label: str, record: RunRecord) -> tuple[str, str]:
    """Return a line about a run that has ended, and its style."""
    if record.status != "done":
        return f"{label}: {record.status}: {record.reason}", "red"
    text = f"{label}: {format_metrics(record.metrics)}{'  COLLAPSED' if record.collapsed else ''}"
    text += f"  {duration(record.wall_time_s)}"
    text += f", {record.train_tokens_per_s:,.0f} tokens/s" if record.train_tokens_per_s else ""
    return text, "red" if record.collapsed else ""

"""Shows runs on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spafit_bench.base.escaping import printable
from spafit_bench.base.units import duration
from spafit_bench.results.record import Evaluation, RunRecord, SplitMetrics
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

if TYPE_CHECKING:
    from spafit_bench.training.prepare import PreparedRun

STEPS_EVERY_S = 10.0
"""Between two lines about the steps of a run where there is no terminal."""
SUMMARY_EVERY_S = 60.0
"""Between two lines about the whole sweep where there is no terminal."""
_BAR_WIDTH = 10
_SHORT = {"matthews_correlation": "MCC", "accuracy": "acc", "f1": "F1", "learning_rate": "lr"}


def format_metrics(metrics: SplitMetrics) -> str:
    """Return metrics times 100 for people, e.g. `F1 88.1  acc 83.3`."""
    parts = []
    for split, values in metrics.items():
        suffix = split.removeprefix("validation").removeprefix("holdout").replace("_", "-")
        suffix = f"-{suffix.lstrip('-')}" if suffix else ""
        parts += [f"{_SHORT.get(m, m)}{suffix} {100 * v:.1f}" for m, v in values.items()]
    return "  ".join(parts)


@dataclass
class _Running:
    """A run under way."""

    label: str
    where: str
    work: float
    since_s: float
    latest: Stepped | None = None
    first_share: float | None = None
    """The share that was done at the first event: a run may resume from a snapshot."""

    def hear(self, event: Stepped) -> None:
        self.latest = event
        if self.first_share is None:
            self.first_share = self.share

    @property
    def share(self) -> float:
        """How much is done, between 0 and 1."""
        return self.latest.step / self.latest.total_steps if self.latest else 0.0

    @property
    def new_share(self) -> float:
        """How much was done by this command."""
        return self.share - (self.first_share or 0.0)

    def left_s(self) -> float | None:
        """Return the time left, None while it is unknown."""
        if self.new_share <= 0:
            return None
        return (time.monotonic() - self.since_s) / self.new_share * (1 - self.share)


@dataclass
class ProgressView:
    """Shows the runs of a command; use it in a `with` block.

    A sweep, which has a title, gets one line a run; without a title there are lines about the
    start, the evaluations and the end of each run.
    """

    title: str | None = None
    keys: Sequence[str] = ()
    """Settings that differ between the runs of a cell, shown to tell them apart."""
    force: bool = False
    """Whether the same command repeats finished runs."""
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    _runs: dict[str, PreparedRun] = field(default_factory=dict)
    _work: dict[str, float] = field(default_factory=dict)
    """Run id -> its work, of every expected run."""
    _ended: dict[str, RunRecord] = field(default_factory=dict)
    _running: dict[str, _Running] = field(default_factory=dict)
    _found: list[RunRecord] = field(default_factory=list)
    """Records that were stored before and are not yet mentioned."""
    _work_done: float = 0.0
    """By this command, in runs that have ended."""
    _since_s: float = field(default_factory=time.monotonic)
    _last_line_s: float = field(default_factory=time.monotonic)
    _live: Live | None = None
    _said: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._say_found()
        if self._live is not None:
            self._live.stop()
        if kind is KeyboardInterrupt:
            others = " (and repeats the others: --force)" if self.force else ""
            self._say(f"interrupted; the same command resumes where it stopped{others}", "yellow")

    def _say(self, text: str, style: str = "") -> None:
        """Print one line as it is, above what is live."""
        self.console.print(Text(printable(text), style=style), soft_wrap=True)

    def _say_once(self, text: str, style: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text, style)

    def expect(self, runs: Sequence[PreparedRun]) -> None:
        """Take in all runs; those of open choices are guesses."""
        from spafit_bench.running.estimate import relative_work

        self._runs |= {run.run_id: run for run in runs}
        self._work = {r.run_id: self._work.get(r.run_id) or relative_work(r) for r in runs}
        if self._live is None and self.console.is_terminal and len(self._ended) < len(runs):
            self._live = Live(
                console=self.console,
                get_renderable=self._picture,
                transient=True,
                vertical_overflow="ellipsis",
            )
            self._live.start()

    def hear(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case Started():
                self._start(event)
            case Stepped() if event.run_id in self._running:
                self._running[event.run_id].hear(event)
            case Evaluated() if self.title is None:
                self._say(_evaluation(event.evaluation))
            case Ended():
                self._end(event)
            case Lost():
                self._running.pop(event.run_id, None)
                self._say(f"{self._label(event.run_id)}: {event.reason}", "yellow")
            case Busy():
                self._say_once(f"waiting for {event.run_id}: {event.owner} holds it", "dim")
            case Warned():
                self._say_once(f"warning: {event.message}", "yellow")
        every_s = STEPS_EVERY_S if self.title is None else SUMMARY_EVERY_S
        if self._live is None and time.monotonic() - self._last_line_s > every_s:
            self._last_line_s = time.monotonic()
            self._say_progress(event)

    def _say_progress(self, event: Event) -> None:
        if self.title is not None:
            self._say(self.summary())
        elif isinstance(event, Stepped):
            self._say(
                f"  step {event.step}/{event.total_steps}  loss {event.loss:.4f}  "
                f"{event.tokens_per_s:,.0f} tokens/s"
            )

    def _start(self, event: Started) -> None:
        self._say_found()
        run = self._runs[event.run_id]
        for warning in run.warnings:
            self._say_once(f"warning: {warning}", "yellow")
        label, work = self._label(event.run_id), self._work.get(event.run_id, 0.0)
        self._running[event.run_id] = _Running(label, event.where, work, time.monotonic())
        if self.title is None:
            number, plan = len(self._ended) + len(self._running), run.plan
            self._say(
                f"[{number}/{len(self._work)}] {run.task.name} · {run.method} · "
                f"seed {run.config.seed} · {plan.trainable_parameters:,} trainable "
                f"({plan.trainable_percent:.2f} %) · {run.numerics.precision} on "
                f"{run.numerics.device}",
                "bold",
            )

    def _end(self, event: Ended) -> None:
        run = self._running.pop(event.run_id, None)
        self._ended[event.run_id] = record = event.record
        if event.found:
            self._found.append(record)
            return
        self._work_done += run.work * (1 - (run.first_share or 0.0)) if run else 0.0
        label = ""
        if self.title is not None:
            label = f"[{len(self._ended)}/{len(self._work)}] {self._label(event.run_id)}:"
        self._say(*_ending(label, record))

    def _say_found(self) -> None:
        """Mention the runs that need not be carried out."""
        if self.title is None:
            for record in self._found:
                scores = format_metrics(record.metrics) or record.reason
                scores = f" ({scores})" if scores else ""
                flag = "--force" if record.status == "done" else "--retry-failed"
                text = f"{record.run_id}: already {record.status}{scores}; {flag} repeats it"
                self._say(text, "dim")
        elif self._found:
            failed = sum(record.status != "done" for record in self._found)
            some = f", {failed} of them failed or diverged (--retry-failed)" if failed else ""
            text = f"{len(self._found)} of {len(self._work)} runs are there already{some}"
            self._say_once(text, "dim")
        self._found.clear()

    def _label(self, run_id: str) -> str:
        run = self._runs[run_id]
        config = run.config.model_dump()
        parts = [run.task.name, run.method, f"seed {run.config.seed}"]
        for key in self.keys:
            value: Any = config
            for part in key.split("."):
                value = value[part]
            name = key.rpartition(".")[2]
            parts += [f"{_SHORT.get(name, name)} {value}"] if value is not None else []
        parts += ["trial"] if run.config.holdout is not None else []
        return printable(" ".join(parts))

    def left_s(self) -> float | None:
        """Return the time left for all runs, None while it is unknown."""
        running = list(self._running.values())
        done = self._work_done + sum(run.work * run.new_share for run in running)
        ahead = sum(work for run_id, work in self._work.items() if run_id not in self._ended)
        ahead -= sum(run.work * run.share for run in running)
        if done <= 0:
            return None
        return max(0.0, ahead) * (time.monotonic() - self._since_s) / done

    def summary(self) -> str:
        """Return one line about all runs."""
        failed = sum(record.status != "done" for record in list(self._ended.values()))
        done = len(self._ended) - failed
        title = "" if self.title is None else f"{self.title}: "
        parts = [f"{title}{done} of {len(self._work)} done"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{len(self._running)} running", duration(time.monotonic() - self._since_s)]
        left = self.left_s()
        parts += [f"about {duration(left)} left"] if left is not None else []
        return " · ".join(parts)

    def _picture(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0), expand=False)
        table.add_column(no_wrap=True, style="dim")
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for width in (_BAR_WIDTH, 6, 10, 8):
            table.add_column(no_wrap=True, justify="right", min_width=width)
        for run in list(self._running.values()):
            left, now = run.left_s(), run.latest
            cells = [f"{100 * run.share:.0f} %", f"loss {now.loss:.3f}"] if now else ["starts", ""]
            if now and self.title is None:
                cells[0] = f"{now.step}/{now.total_steps} steps"
                cells[1] += f"  {now.tokens_per_s:,.0f} tokens/s"
            bar = ProgressBar(total=1.0, completed=run.share, width=_BAR_WIDTH)
            time_left = f"{duration(left)} left" if left is not None else ""
            table.add_row(f" {run.where}", run.label, bar, *cells, time_left)
        return Lines(Text(self.summary(), style="bold", no_wrap=True, overflow="ellipsis"), table)


def _evaluation(evaluation: Evaluation) -> str:
    return (
        f"  epoch {evaluation.epoch:g}  loss {evaluation.train_loss or 0:.4f}  "
        f"{format_metrics(evaluation.metrics)}"
    )


def _ending(label: str, record: RunRecord) -> tuple[str, str]:
    """Return a line about a run that has ended (without a label if it has lines), and its style."""
    if record.status != "done":
        return f"{label or ' '} {record.status}: {record.reason}", "red"
    rate = f"{record.train_tokens_per_s:,.0f} tokens/s" if record.train_tokens_per_s else ""
    scores = format_metrics(record.metrics)
    if record.collapsed:
        scores += "  COLLAPSED" if label else "  COLLAPSED: it predicts one constant"
    if label:
        text = f"{label} {scores}  {duration(record.wall_time_s)}" + (f", {rate}" if rate else "")
        return text, "red" if record.collapsed else ""
    text = f"  {scores}  in {record.wall_time_s:.1f} s" + (f" ({rate})" if rate else "")
    return text, "red" if record.collapsed else "green"

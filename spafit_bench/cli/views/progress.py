"""Shows runs on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from spafit_bench.results.record import Evaluation, RunRecord, SplitMetrics

if TYPE_CHECKING:
    from spafit_bench.training.loop import Progress as TrainProgress
    from spafit_bench.training.prepare import PreparedRun

PLAIN_EVERY_S = 10.0
"""Between two lines about the same run where there is no terminal."""

_SHORT = {"matthews_correlation": "MCC", "accuracy": "acc", "f1": "F1"}


def format_metrics(metrics: SplitMetrics) -> str:
    """Return metrics times 100 for people, e.g. `F1 88.1  acc 83.3`."""
    parts = []
    for split, values in metrics.items():
        suffix = split.removeprefix("validation").removeprefix("holdout").replace("_", "-")
        parts += [f"{_SHORT.get(m, m)}{suffix} {100 * v:.1f}" for m, v in values.items()]
    return "  ".join(parts)


@dataclass
class ProgressView:
    """Reports a series of runs."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    quiet: bool = False
    current: RunView | None = None
    warned: set[str] = field(default_factory=set)

    def say(self, text: str, style: str = "") -> None:
        """Print one line as it is, without markup."""
        if not self.quiet:
            self.console.print(Text(text, style=style), soft_wrap=True)

    def waiting(self, prepared: PreparedRun, owner: str) -> None:
        """Say once whom this process waits for."""
        message = f"waiting for {prepared.run_id}, which {owner} has"
        if message not in self.warned:
            self.say(message, "dim")
            self.warned.add(message)

    def warn(self, message: str) -> None:
        """Print a warning."""
        self.say(f"warning: {message}", "yellow")

    def skipped(self, record: RunRecord) -> None:
        """Say that a run is already there."""
        result = format_metrics(record.metrics) or record.reason or ""
        how = "--force repeats it" if record.status == "done" else "--retry-failed repeats it"
        self.say(f"{record.run_id}: already {record.status} ({result}); {how}", "dim")

    def started(self, prepared: PreparedRun, number: int, total: int) -> RunView:
        """Announce a run."""
        for warning in prepared.warnings:
            if warning not in self.warned:
                self.say(f"warning: {warning}", "yellow")
        self.warned.update(prepared.warnings)
        plan = prepared.plan
        label = f"[{number}/{total}] {prepared.task.name} · {prepared.method}"
        self.say(
            f"{label} · seed {prepared.config.seed} · {plan.trainable_parameters:,} trainable "
            f"({plan.trainable_percent:.2f} %) · {prepared.numerics.precision} on "
            f"{prepared.numerics.device}",
            "bold",
        )
        self.current = RunView(self, label)
        return self.current

    def close(self) -> None:
        """Take the bar of the run under way off the terminal."""
        if self.current is not None:
            self.current.close()

    def finished(self, record: RunRecord) -> None:
        """Say how a run ended."""
        self.close()
        if record.status != "done":
            self.say(f"  {record.status}: {record.reason}", "red")
            return
        collapsed = "  COLLAPSED: it predicts one constant" if record.collapsed else ""
        rate = f"{record.train_tokens_per_s:,.0f} tokens/s" if record.train_tokens_per_s else ""
        self.say(
            f"  {format_metrics(record.metrics)}{collapsed}  "
            f"in {record.wall_time_s:.1f} s ({rate})",
            "red" if record.collapsed else "green",
        )


@dataclass
class RunView:
    """Reports one run."""

    parent: ProgressView
    label: str
    bar: Progress | None = None
    last_line_s: float = field(default_factory=time.monotonic)

    def on_step(self, progress: TrainProgress) -> None:
        """Show loss, speed and time left."""
        if self.parent.quiet:
            return
        if self.parent.console.is_terminal:
            self._live(progress)
        elif time.monotonic() - self.last_line_s > PLAIN_EVERY_S:
            self.last_line_s = time.monotonic()
            self.parent.say(
                f"  step {progress.step}/{progress.total_steps}  loss {progress.loss:.4f}  "
                f"{progress.tokens_per_s:,.0f} tokens/s"
            )

    def _live(self, progress: TrainProgress) -> None:
        if self.bar is None:
            self.bar = Progress(
                TextColumn("  {task.completed}/{task.total} steps"),
                BarColumn(bar_width=None),
                TextColumn("loss {task.fields[loss]:.4f}"),
                TextColumn("{task.fields[rate]:,.0f} tok/s"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.parent.console,
                transient=True,
            )
            self.bar.add_task(self.label, total=progress.total_steps, loss=0.0, rate=0.0)
            self.bar.start()
        self.bar.update(
            self.bar.task_ids[0],
            completed=progress.step,
            loss=progress.loss,
            rate=progress.tokens_per_s,
        )

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Show the scores of an evaluation."""
        self.parent.say(
            f"  epoch {evaluation.epoch:g}  loss {evaluation.train_loss or 0:.4f}  "
            f"{format_metrics(evaluation.metrics)}"
        )

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

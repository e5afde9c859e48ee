"""The plan of `--dry-run`: what would run, and about what it would take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from spafit_bench.encoding import encode, load_tokenizer
from spafit_bench.estimate import (
    MATMUL_SHARE,
    Shape,
    activation_bytes,
    matmul_rate,
    state_bytes,
    training_flops_per_token,
)
from spafit_bench.numerics import Numerics
from spafit_bench.plan_view import human_bytes
from spafit_bench.prepare import PreparedRun

_SAMPLE = 256
"""Training rows that are tokenised to learn their length."""

_LETTERS_PER_TOKEN = 4.5

_rate = lru_cache(maxsize=4)(matmul_rate)


@dataclass(frozen=True)
class Forecast:
    """One run that would be carried out, with estimates."""

    run_id: str
    finished: bool
    """Already there, so it would be skipped."""
    steps: int
    train_time_s: float
    memory_bytes: int
    stored_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def forecast(prepared: PreparedRun, *, finished: bool) -> Forecast:
    """Estimate time, memory and disk of a run.

    Time is good to about a factor of two: it divides counted matrix products by the rate measured
    on this device, and takes them to be `MATMUL_SHARE` of a step.
    """
    settings, plan = prepared.config.train, prepared.plan
    sample = encode(
        prepared.data.splits["train"].head(_SAMPLE),
        load_tokenizer(prepared.checkpoint),
        max_length=settings.max_length,
    )
    rows = prepared.data.splits["train"].num_rows
    tokens = rows * settings.epochs * float(sample.lengths.mean())
    flops = tokens * training_flops_per_token(plan)
    width = 4 if prepared.numerics.precision == "fp32" else 2
    activations = activation_bytes(
        plan,
        Shape.of(prepared.checkpoint.config),
        batch_size=settings.micro_batch_size or settings.batch_size,
        length=int(sample.lengths.max()),
        width=width,
    )
    kept = 0 if prepared.config.save_weights == "none" else 4 * plan.trainable_parameters
    if prepared.config.save_weights == "all":
        kept *= 1 + math.ceil(settings.epochs)
    return Forecast(
        run_id=prepared.run_id,
        finished=finished,
        steps=math.ceil(settings.epochs * math.ceil(rows / settings.batch_size)),
        train_time_s=round(flops / (_measured_rate(prepared.numerics) * MATMUL_SHARE), 1),
        memory_bytes=state_bytes(plan, width) + activations,
        stored_bytes=kept,
    )


def relative_work(prepared: PreparedRun) -> float:
    """Return about how much there is to compute, to be compared with other runs on one machine.

    Text is counted in characters, not tokenised: a sweep asks this of every run as it starts.
    """
    settings, task = prepared.config.train, prepared.task
    flops = training_flops_per_token(prepared.plan)
    forward = 2 * sum(t.num_parameters for t in prepared.plan.tensors if t.place.layer is not None)

    def tokens(name: str) -> float:
        split = prepared.data.splits[name]
        rows = min(split.num_rows, _SAMPLE)
        letters = sum(len(text) for column in split.head(rows).texts for text in column)
        length = min(settings.max_length, 3 + letters / rows / _LETTERS_PER_TOKEN)
        return split.num_rows * length

    evaluation = sum(tokens(name) for name in task.dev_splits)
    return settings.epochs * (tokens("train") * flops + evaluation * forward)


def _measured_rate(numerics: Numerics) -> float:
    return _rate(numerics)


def forecast_table(rows: Sequence[Forecast]) -> str:
    """Lay the forecasts out for people."""
    width = max(len(row.run_id) for row in rows)
    lines = [f"{'run':<{width}}  {'steps':>7}  {'time':>8}  {'memory':>8}  {'disk':>8}"]
    for row in rows:
        cells = f"{row.steps:>7}  {duration(row.train_time_s):>8}"
        cells += f"  {human_bytes(row.memory_bytes):>8}  {human_bytes(row.stored_bytes):>8}"
        lines.append(f"{row.run_id:<{width}}  " + ("finished, skipped" if row.finished else cells))
    ahead = [row for row in rows if not row.finished]
    total = sum(row.train_time_s for row in ahead)
    disk = sum(row.stored_bytes for row in ahead)
    lines.append(
        f"{len(ahead)} of {len(rows)} to run: about {duration(total)} of training on this machine "
        f"(within a factor of two), {human_bytes(disk)} of weights kept"
    )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

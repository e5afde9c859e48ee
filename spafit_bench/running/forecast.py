"""The plan of `--dry-run`: what would run, and about what it would take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from spafit_bench.base.units import duration, human_bytes
from spafit_bench.models.encoding import encode, load_tokenizer
from spafit_bench.running.estimate import (
    MATMUL_SHARE,
    Pass,
    Shape,
    activation_bytes,
    matmul_rate,
    state_bytes,
    training_flops_per_token,
)
from spafit_bench.training.memory import resident_bytes
from spafit_bench.training.prepare import PreparedRun

_SAMPLE = 256
"""Training rows that are tokenised to learn their length."""

_LETTERS_PER_TOKEN = 4.5

_rate = lru_cache(maxsize=4)(matmul_rate)


@dataclass(frozen=True)
class Forecast:
    """One run that would be carried out, with estimates."""

    run_id: str
    task: str
    method: str
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
    lengths = _token_lengths(prepared)
    rows = prepared.data.splits["train"].num_rows
    mean_length = float(lengths.mean())
    tokens = rows * settings.epochs * mean_length
    batch_size = settings.batch_size
    if settings.batch_tokens is not None:
        batch_size = max(1, round(settings.batch_tokens / mean_length))
    flops = tokens * training_flops_per_token(plan, prepared.prefix_layers)
    share = MATMUL_SHARE[prepared.engine]
    kept = 0 if prepared.config.save_weights == "none" else 4 * plan.trainable_parameters
    if prepared.config.save_weights == "all":
        kept *= 1 + math.ceil(settings.epochs)
    return Forecast(
        run_id=prepared.run_id,
        task=prepared.task.name,
        method=prepared.method,
        finished=finished,
        steps=math.ceil(settings.epochs * math.ceil(rows / batch_size)),
        train_time_s=round(flops / (_rate(prepared.numerics) * share), 1),
        memory_bytes=_memory_bytes(prepared, batch_size, int(lengths.max())),
        stored_bytes=kept,
    )


KERNEL_BYTES = 200_000_000
"""What a CPU's matrix-product library keeps for the shapes that it has met, about."""


def _memory_bytes(prepared: PreparedRun, batch_size: int, length: int) -> int:
    """Estimate what a record calls peak memory: of a CPU's process, libraries included."""
    width = 4 if prepared.numerics.precision == "fp32" else 2
    at = Pass(prepared.config.train.micro_batch_size or batch_size, length, width, prepared.engine)
    shape = Shape.of(prepared.checkpoint.config)
    state = state_bytes(prepared.plan, at)
    own = max(
        state + activation_bytes(prepared.plan, shape, at),
        4 * prepared.plan.base_parameters,  # stored in fp16, it is loaded in fp32 first
    )
    if prepared.numerics.device.type == "cuda":
        return own
    return own + resident_bytes() + KERNEL_BYTES


_LENGTHS: dict[tuple[object, ...], np.ndarray] = {}


def _token_lengths(prepared: PreparedRun) -> np.ndarray:
    """Tokenise the first training rows, once for all runs that read the same."""
    config, max_length = prepared.config, prepared.config.train.max_length
    rows_read = (prepared.data.fingerprint, config.limit, config.holdout)
    key = (*rows_read, prepared.files_sha256, max_length)
    if key not in _LENGTHS:
        rows = prepared.data.splits["train"].head(_SAMPLE)
        tokenizer = load_tokenizer(prepared.checkpoint)
        _LENGTHS[key] = encode(rows, tokenizer, max_length=max_length).lengths
    return _LENGTHS[key]


def relative_work(prepared: PreparedRun) -> float:
    """Return about how much there is to compute, to be compared with other runs on one machine.

    Text is counted in characters, not tokenised: a sweep asks this of every run as it starts.
    """
    settings, task = prepared.config.train, prepared.task
    first = prepared.prefix_layers
    flops = training_flops_per_token(prepared.plan, first)
    places = [(t.place.layer, t.num_parameters) for t in prepared.plan.tensors]
    forward = 2 * sum(n for layer, n in places if layer is not None and layer >= first)

    def tokens(name: str) -> float:
        split = prepared.data.splits[name]
        rows = min(split.num_rows, _SAMPLE)
        letters = sum(len(text) for column in split.head(rows).texts for text in column)
        length = min(settings.max_length, 3 + letters / rows / _LETTERS_PER_TOKEN)
        return split.num_rows * length

    evaluation = sum(tokens(name) for name in task.dev_splits)
    return settings.epochs * (tokens("train") * flops + evaluation * forward)


def forecast_table(rows: Sequence[Forecast]) -> str:
    """Lay the forecasts out for people."""
    width = max(len(row.run_id) for row in rows)
    lines = [f"{'run':<{width}}  {'steps':>7}  {'time':>8}  {'memory':>8}  {'disk':>8}"]
    for row in rows:
        cells = f"{row.steps:>7}  {duration(row.train_time_s):>8}"
        cells += f"  {human_bytes(row.memory_bytes):>8}  {human_bytes(row.stored_bytes):>8}"
        lines.append(f"{row.run_id:<{width}}  " + ("there, skipped" if row.finished else cells))
    lines.append(_total(rows))
    return "\n".join(lines)


def forecast_cells(rows: Sequence[Forecast], jobs: int = 1) -> str:
    """Lay the forecasts out for people, one line for each task and method.

    Args:
        rows: of every run.
        jobs: runs at a time.
    """
    cells: dict[tuple[str, str], list[Forecast]] = {}
    for row in rows:
        cells.setdefault((row.task, row.method), []).append(row)
    width = max(len(method) for _, method in cells)
    lines = [
        f"{'task':<6}  {'method':<{width}}  {'runs':>5}  {'there':>8}  {'each':>8}  {'all':>8}  "
        f"{'memory':>8}  {'disk':>8}"
    ]
    for (task, method), found in cells.items():
        ahead = [row for row in found if not row.finished]
        finished = len(found) - len(ahead)
        line = f"{task:<6}  {method:<{width}}  {len(found):>5}  {finished:>8}"
        if ahead:
            all_s = sum(row.train_time_s for row in ahead)
            line += f"  {duration(all_s / len(ahead)):>8}  {duration(all_s):>8}"
            line += f"  {human_bytes(max(row.memory_bytes for row in ahead)):>8}"
            line += f"  {human_bytes(sum(row.stored_bytes for row in ahead)):>8}"
        lines.append(line)
    return "\n".join([*lines, _total(rows, jobs)])


def _total(rows: Sequence[Forecast], jobs: int = 1) -> str:
    ahead = [row for row in rows if not row.finished]
    if not ahead:
        return f"all of {len(rows)} are there, nothing to run"
    in_turn = "one run after another" if jobs == 1 else f"{jobs} runs at a time"
    time_s = sum(row.train_time_s for row in ahead) / jobs
    return (
        f"{len(ahead)} of {len(rows)} to run: about {duration(time_s)} of training on this "
        f"machine, {in_turn} (within a factor of two), up to "
        f"{human_bytes(jobs * max(r.memory_bytes for r in ahead))} of memory, "
        f"{human_bytes(sum(r.stored_bytes for r in ahead))} of weights kept"
    )

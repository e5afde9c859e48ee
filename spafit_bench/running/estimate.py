"""What a run will cost: FLOPs, memory and disk, before any weights are loaded (`--dry-run`).

The matrix products of the blocks are counted from the plan: 2 FLOPs per weight and token forward;
the same again for the gradient of the activations in every block from the first that trains; and
the same again for the gradient of every matrix that trains. The plain engine does that, and
attention's own products. The fast engine does less: an adapter is merged into its matrix, and in
the last block only what first tokens need is computed. Time is the count divided by a measured
rate of matrix products; see `MATMUL_SHARE`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from spafit_bench.base.units import duration, human_bytes
from spafit_bench.methods.plan import Plan
from spafit_bench.models.encoding import encode, load_tokenizer
from spafit_bench.models.numerics import Numerics
from spafit_bench.training.memory import resident_bytes
from spafit_bench.training.prepare import PreparedRun

MATMUL_SHARE = {"plain": 0.45, "fast": 0.7}
"""About the share of a training step that matrix products take."""
KERNEL_BYTES = 200_000_000
"""About what a CPU's matrix-product library keeps for the shapes that it has met."""
_SAMPLE = 256
"""Training rows whose length is measured."""
_LETTERS_PER_TOKEN = 4.5


@dataclass(frozen=True)
class Shape:
    """Sizes of an encoder."""

    hidden: int
    intermediate: int
    num_heads: int

    @classmethod
    def of(cls, config: dict[str, object]) -> Shape:
        """Read the sizes under the names that the architectures use."""

        def first(*names: str) -> int:
            return next(int(str(config[name])) for name in names if name in config)

        return cls(
            hidden=first("hidden_size", "dim"),
            intermediate=first("intermediate_size", "hidden_dim"),
            num_heads=first("num_attention_heads", "n_heads"),
        )


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass."""

    batch_size: int
    """Examples."""
    length: int
    """Tokens of each example, with padding."""
    width: int
    """Bytes of an element in the compute precision."""
    engine: str
    """`fast` or `plain`."""


def training_flops_per_token(plan: Plan, prefix_layers: int = 0) -> float:
    """Count the matrix products of one training step per token, without attention's own.

    Args:
        plan: what trains.
        prefix_layers: number of first layers whose output is cached, so that no step computes them.
    """
    flops = 0.0
    for tensor in plan.tensors:
        layer = tensor.place.layer
        if layer is None or layer < prefix_layers or len(tensor.shape) != 2:
            continue
        products = 1 + (layer >= plan.first_trained_layer) + tensor.trains
        flops += 2 * tensor.num_parameters * products
        if tensor.lora is not None:
            flops += 6 * tensor.num_trainable
    return flops


def activation_bytes(plan: Plan, shape: Shape, at: Pass) -> int:
    """Estimate what one pass keeps for its gradient, and its largest working space.

    Counted for the blocks that gradients reach. Plain: Korthikanti et al. 2022, arXiv:2205.05198,
    equation 2, s b h (34 + 5 a s / h) bytes at 16 bits, of which masks are 3 / 34. Fast: what
    `fused.block` keeps; of the last block that is little more than keys and values.
    """
    tokens = at.batch_size * at.length
    scores = at.batch_size * shape.num_heads * at.length**2
    reached = plan.num_layers - plan.first_trained_layer
    if at.engine == "plain":
        linear = tokens * (7.5 * shape.hidden + 2 * shape.intermediate) * at.width
        return int(reached * (linear + scores * (2 * at.width + 1)))
    in_blocks = [t for t in plan.tensors if t.place.layer is not None]
    matrices_train = any(t.lora or (t.trains and len(t.shape) > 1) for t in in_blocks)
    inputs = shape.hidden * at.width if matrices_train else 0
    token = 3 * shape.hidden * at.width + shape.intermediate * at.width + inputs
    token += 2 * shape.hidden * 4 + 2 * shape.hidden * 2  # the stream, and masks of 16 bits
    working = scores * (8 + at.width) + tokens * (4 * shape.hidden + shape.intermediate) * at.width
    kept = max(reached - 1, 0) * (tokens * token + scores * (at.width + 2))
    return int(kept + working + tokens * 3 * shape.hidden * at.width)


def state_bytes(plan: Plan, at: Pass) -> int:
    """Count weights (frozen matrices at `width`), gradients and AdamW's two moments.

    The fast engine holds trained and adapted matrices twice: also as it multiplies with them.
    """
    frozen_matrices = sum(
        t.num_parameters
        for t in plan.tensors
        if not t.trains and len(t.shape) == 2 and t.place.component != "embeddings"
    )
    rest = plan.base_parameters - frozen_matrices
    adapters = sum(t.num_trainable - (t.num_parameters if t.trains else 0) for t in plan.tensors)
    again = sum(
        t.num_parameters
        for t in plan.tensors
        if at.engine == "fast"
        and t.place.layer is not None
        and (t.lora or (len(t.shape) == 2 and t.trains))
    )
    weights = at.width * (frozen_matrices + again) + 4 * (rest + adapters)
    return weights + 12 * plan.trainable_parameters


@lru_cache(maxsize=4)
def _matmul_rate(numerics: Numerics, *, seconds: float = 0.2) -> float:
    """Measure matrix products on this device: FLOPs per second in the run's precision."""
    side = 4096 if numerics.device.type == "cuda" else 768
    left = torch.randn(side, side, device=numerics.device, dtype=numerics.dtype)
    left @ left
    numerics.synchronize()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        left @ left
        numerics.synchronize()
        count += 1
    return 2 * side**3 * count / (time.perf_counter() - start)


@dataclass(frozen=True)
class Forecast:
    """The estimated cost of one run."""

    run_id: str
    task: str
    method: str
    finished: bool
    """The run has a record and would be skipped."""
    steps: int
    train_time_s: float
    memory_bytes: int
    stored_bytes: int


def forecast(prepared: PreparedRun, *, finished: bool) -> Forecast:
    """Estimate time, memory and disk of a run; time within about a factor of two."""
    settings, plan = prepared.config.train, prepared.plan
    lengths = _token_lengths(prepared)
    rows = prepared.data.splits["train"].num_rows
    mean_length = float(lengths.mean())
    batch_size = settings.batch_size
    if settings.batch_tokens is not None:
        batch_size = max(1, round(settings.batch_tokens / mean_length))
    tokens = rows * settings.epochs * mean_length
    flops = tokens * training_flops_per_token(plan, prepared.prefix_layers)
    rate = _matmul_rate(prepared.numerics) * MATMUL_SHARE[prepared.engine]
    stored = 0 if prepared.config.save_weights == "none" else 4 * plan.trainable_parameters
    if prepared.config.save_weights == "all":
        stored *= 1 + math.ceil(settings.epochs)
    return Forecast(
        run_id=prepared.run_id,
        task=prepared.task.name,
        method=prepared.method,
        finished=finished,
        steps=math.ceil(settings.epochs * math.ceil(rows / batch_size)),
        train_time_s=round(flops / rate, 1),
        memory_bytes=_memory_bytes(prepared, batch_size, int(lengths.max())),
        stored_bytes=stored,
    )


def _memory_bytes(prepared: PreparedRun, batch_size: int, length: int) -> int:
    """Estimate what a record calls peak memory: on a CPU that of the process, with libraries."""
    width = 4 if prepared.numerics.precision == "fp32" else 2
    at = Pass(prepared.config.train.micro_batch_size or batch_size, length, width, prepared.engine)
    shape = Shape.of(prepared.checkpoint.config)
    own = max(
        state_bytes(prepared.plan, at) + activation_bytes(prepared.plan, shape, at),
        4 * prepared.plan.base_parameters,  # a checkpoint in fp16 is loaded in fp32 first
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
    """Return about how much a run computes, to compare it with other runs on one machine.

    Characters are counted, not tokens: a sweep asks this of every run when it starts.
    """
    settings, first = prepared.config.train, prepared.prefix_layers
    flops = training_flops_per_token(prepared.plan, first)
    places = [(t.place.layer, t.num_parameters) for t in prepared.plan.tensors]
    forward = 2 * sum(n for layer, n in places if layer is not None and layer >= first)

    def tokens(name: str) -> float:
        split = prepared.data.splits[name]
        rows = min(split.num_rows, _SAMPLE)
        letters = sum(len(text) for column in split.head(rows).texts for text in column)
        return split.num_rows * min(settings.max_length, 3 + letters / rows / _LETTERS_PER_TOKEN)

    evaluation = sum(tokens(name) for name in prepared.task.dev_splits)
    return settings.epochs * (tokens("train") * flops + evaluation * forward)


def forecast_table(rows: Sequence[Forecast]) -> str:
    """Return a table of forecasts, one line a run."""
    width = max(len(row.run_id) for row in rows)
    lines = [f"{'run':<{width}}  {'steps':>7}  {'time':>8}  {'memory':>8}  {'disk':>8}"]
    for row in rows:
        cells = f"{row.steps:>7}  {duration(row.train_time_s):>8}"
        cells += f"  {human_bytes(row.memory_bytes):>8}  {human_bytes(row.stored_bytes):>8}"
        lines.append(f"{row.run_id:<{width}}  " + ("there, skipped" if row.finished else cells))
    return "\n".join([*lines, _total(rows)])


def forecast_cells(rows: Sequence[Forecast], jobs: int = 1) -> str:
    """Return a table of forecasts, one line for each task and method.

    Args:
        rows: one for each run.
        jobs: number of runs at a time.
    """
    cells: dict[tuple[str, str], list[Forecast]] = {}
    for row in rows:
        cells.setdefault((row.task, row.method), []).append(row)
    width = max(len(method) for _, method in cells)
    lines = [
        f"{'task':<6}  {'method':<{width}}  {'runs':>5}  {'there':>8}  {'each':>8}  {'all':>8}  "
        f"{'memory':>8}  {'disk':>8}"
    ]
    for (task, method), runs in cells.items():
        ahead = [row for row in runs if not row.finished]
        line = f"{task:<6}  {method:<{width}}  {len(runs):>5}  {len(runs) - len(ahead):>8}"
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
        return f"all {len(rows)} runs are there, nothing to run"
    in_turn = "one run after another" if jobs == 1 else f"{jobs} runs at a time"
    time_s = sum(row.train_time_s for row in ahead) / jobs
    return (
        f"{len(ahead)} of {len(rows)} to run: about {duration(time_s)} of training on this "
        f"machine, {in_turn} (within a factor of two), up to "
        f"{human_bytes(jobs * max(r.memory_bytes for r in ahead))} of memory, "
        f"{human_bytes(sum(r.stored_bytes for r in ahead))} of stored weights"
    )

"""Measure throughput and memory against length, batch size, depth and rank, beside the estimate.

    python -m benchmarks.scaling --out benchmarks/results/scaling

Each point runs in its own process: SPAFIT on a random encoder in the shape of MiniLM-L6 (384 wide,
12 heads) repeats one step of random tokens. The points of a line differ from the middle point in
one size. Time is compared with the count of `spafit_bench.running.estimate`, scaled at the middle
point.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spafit_bench.base import process

STEPS, WARM_UP = 12, 3


@dataclass(frozen=True)
class Point:
    """Sizes of one measurement."""

    length: int = 64
    batch_size: int = 16
    depth: int = 6
    rank: int = 64


LINES: dict[str, tuple[int, ...]] = {
    "length": (16, 32, 64, 128, 256),
    "batch_size": (4, 8, 16, 32, 64),
    "depth": (2, 4, 6, 12, 24),
    "rank": (4, 16, 64, 256),
}
LABELS = {
    "length": "tokens per example",
    "batch_size": "examples per step",
    "depth": "layers",
    "rank": "LoRA rank",
}


def measure(point: Point) -> dict[str, float]:
    """Time steps of one size in this process."""
    import numpy as np
    import torch
    import transformers

    from spafit_bench.methods.architectures import get_architecture
    from spafit_bench.methods.method import get_method
    from spafit_bench.methods.plan import make_plan
    from spafit_bench.models.adapt import adapt
    from spafit_bench.models.encoding import EncodedSplit, collate
    from spafit_bench.models.numerics import choose_numerics
    from spafit_bench.running.estimate import (
        Pass,
        Shape,
        activation_bytes,
        training_flops_per_token,
    )
    from spafit_bench.training import memory
    from spafit_bench.training.gradients import loss_sum

    config = transformers.BertConfig(
        vocab_size=2000, hidden_size=384, intermediate_size=1536, num_attention_heads=12,
        num_hidden_layers=point.depth,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    method = get_method("spafit").with_lora(rank=point.rank, alpha=2.0 * point.rank)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan = make_plan(method, get_architecture("bert"), shapes)
    numerics = choose_numerics("cpu", "auto")
    adapted = adapt(model, plan, numerics=numerics, seed=0, engine="fast")
    rng = np.random.default_rng(0)
    tokens = point.length * point.batch_size
    offsets = np.arange(point.batch_size + 1) * point.length
    ids = rng.integers(5, 2000, tokens).astype(np.int32)
    labels = rng.integers(0, 2, point.batch_size)
    split = EncodedSplit(ids, None, offsets, labels, pad_token_id=0)
    batch = collate(split, np.arange(point.batch_size), numerics.device)
    optimizer = torch.optim.AdamW(adapted.trainable().values(), fused=True)
    adapted.model.train()
    before, times = memory.resident_bytes(), []
    memory.reset_peak_memory(numerics.device)
    for _ in range(STEPS + WARM_UP):
        start = time.perf_counter()
        adapted.engine.refresh()
        loss_sum(adapted.engine.logits(batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    width = 4 if numerics.precision == "fp32" else 2
    at = Pass(point.batch_size, point.length, width, "fast")
    return {
        "step_s": statistics.median(times[WARM_UP:]),
        "tokens": tokens,
        "flops": tokens * training_flops_per_token(plan),
        "memory_bytes": (memory.peak_memory_bytes(numerics.device) or 0) - before,
        "counted_bytes": activation_bytes(plan, Shape.of(config.to_dict()), at),
        "threads": torch.get_num_threads(),
    }


def draw(found: dict[str, list[dict[str, Any]]], out: Path, title: str) -> None:
    """Draw measured and estimated throughput and memory, one column for each size."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(LINES), figsize=(12, 5), sharey="row", layout="constrained")
    for column, (name, points) in enumerate(found.items()):
        values = [point["point"][name] for point in points]
        middle = next(p for p in points if p["point"] == asdict(Point()))
        scale = middle["flops"] / middle["step_s"]
        lines = {
            "measured": ("#0072B2", "-", "o", [p["tokens"] / p["step_s"] for p in points]),
            "counted": ("#D55E00", "--", "s", [p["tokens"] * scale / p["flops"] for p in points]),
        }
        for label, (color, dash, marker, rates) in lines.items():
            axes[0, column].plot(values, rates, dash, color=color, marker=marker, label=label)
        for label, key in (("measured", "memory_bytes"), ("counted", "counted_bytes")):
            color, dash, marker, _ = lines[label]
            sizes = [point[key] / 1e6 for point in points]
            axes[1, column].plot(values, sizes, dash, color=color, marker=marker, label=label)
        for row in axes[:, column]:
            row.set_xscale("log", base=2)
            row.set_yscale("log")
            row.set_xticks(values, [str(value) for value in values])
            row.minorticks_off()
            row.spines[["top", "right"]].set_visible(False)
            row.grid(alpha=0.3, linewidth=0.5)
        axes[1, column].set_xlabel(LABELS[name])
    axes[0, 0].set_ylabel("training tokens / s")
    axes[1, 0].set_ylabel("memory of a step, MB")
    axes[0, 0].legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(out.with_suffix(".svg"))
    figure.savefig(out.with_suffix(".png"), dpi=110)


def main() -> None:
    """Measure every point and draw them, or measure one point in this process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--point")
    given = parser.parse_args()
    if given.point:
        print(json.dumps(measure(Point(**json.loads(given.point)))))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    known: dict[Point, dict[str, Any]] = {}
    for name, values in LINES.items():
        for value in values:
            point = replace(Point(), **{name: value})
            if point not in known:
                known[point] = _in_a_process(point) | {"point": asdict(point)}
            found.setdefault(name, []).append(known[point])
    from spafit_bench.models.numerics import choose_numerics, device_name

    machine = device_name(choose_numerics("cpu", "auto").device)
    threads = found["rank"][0]["threads"]
    date = datetime.now(UTC).date().isoformat()
    middle = ", ".join(f"{LABELS[k]} {v}" for k, v in asdict(Point()).items())
    title = f"SPAFIT, fast engine, {machine}, {threads} threads, {date}; else {middle}"
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_text(json.dumps({"title": title, "lines": found}))
    draw(found, given.out, title)


def _in_a_process(point: Point) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--point", json.dumps(asdict(point))],
        env=os.environ | process.OPENMP | process.KERNELS,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    print(point, f"{found['tokens'] / found['step_s']:,.0f} tokens/s", flush=True)
    return found


if __name__ == "__main__":
    main()

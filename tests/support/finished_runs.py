"""A results folder of runs that never took place, with curves, strata, movement and predictions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spafit_bench.results.record import Evaluation, Movement, RunRecord, StratumCount
from spafit_bench.results.store import Store
from tests.support.records import METHODS, make_record, metrics_of, write_run

STRATA = {
    "full": (("0-23", "full"),),
    "bitfit": (("0-23", "bias"),),
    "lora": (("0-23", "lora(query+key+value,r=64,alpha=128)"),),
    "spafit": (("0-4", "frozen"), ("5-9", "bias"), ("10-23", "lora(query,r=64,alpha=128)")),
}
LEVELS = {"full": 0.86, "lora": 0.85, "spafit": 0.84, "bitfit": 0.80}


def strata(*layers: tuple[str, str]) -> tuple[StratumCount, ...]:
    """Write strata with the parts around the layers."""
    rows = (("embeddings", "frozen"), *layers, ("pooler", "bias"), ("classifier", "full"))
    return tuple(
        StratumCount(stratum=name, treatment=text, parameters=100, trainable=10)
        for name, text in rows
    )


def movement(method: str) -> dict[str, dict[str, Movement]]:
    """Invent movement of four layers: SPAFIT's first one is frozen."""
    found = {}
    for layer in range(4):
        share = 0.0 if method == "spafit" and layer == 0 else 0.01 * (layer + 1)
        attention = 0.0 if method == "bitfit" else share
        found[str(layer)] = {
            "attention": Movement(change=10 * attention, pretrained=10.0),
            "bias": Movement(change=share, pretrained=1.0),
        }
    return found


def finished(task: str, method: str, seed: int, *, epochs: int = 3, **fields: Any) -> RunRecord:
    """Make a finished run that got better with every epoch."""
    noise = random.Random(f"{task} {method} {seed}")
    final = LEVELS.get(method, 0.82) + noise.gauss(0, 0.004)
    final = fields.pop("final", final)
    evaluations = tuple(
        Evaluation(
            step=10 * epoch,
            epoch=float(epoch),
            train_loss=0.7 / epoch,
            metrics=metrics_of(task, final - 0.05 * (epochs - epoch)),
        )
        for epoch in range(1, epochs + 1)
    )
    values = {
        "evaluations": evaluations,
        "score": final,
        "strata": strata(*STRATA.get(method, STRATA["spafit"])),
        "movement": movement(method),
    } | fields
    metrics = values.pop("metrics", metrics_of(task, final))
    return make_record(task, method, seed, metrics, **values)


def write_results(
    root: Path,
    tasks: Sequence[str] = ("cola", "mrpc", "rte"),
    methods: Sequence[str] = tuple(METHODS),
    seeds: int = 3,
    **fields: Any,
) -> Store:
    """Write a folder of finished runs."""
    records = [
        finished(task, method, seed, **fields)
        for method in methods
        for task in tasks
        for seed in range(seeds)
    ]
    return save(root, *records)


def save(root: Path, *records: RunRecord) -> Store:
    """Write records as runs without predictions."""
    store = Store(root)
    for record in records:
        write_run(store.runs, record)
    return store

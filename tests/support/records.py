"""Records of runs that never took place, and a look into the tables made of them."""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spafit_bench.analysis.tables import Cell, ResultTable, Row, build_tables
from spafit_bench.base.checksums import SUMS, sums_of
from spafit_bench.data.tasks import TASKS, get_task
from spafit_bench.results.record import (
    DataProvenance,
    Environment,
    ModelProvenance,
    RunRecord,
    SplitMetrics,
)

METHODS = {"full": 333_581_314, "lora": 9_439_234, "spafit": 5_650_434, "bitfit": 274_434}
"""Method -> trainable parameters of BERT-large-cased with two labels."""
BASE = 333_581_314
HIDDEN = 1024


def metrics_of(task: str, value: float) -> SplitMetrics:
    """Give every metric of every dev split the same value."""
    facts = get_task(task)
    return {split: dict.fromkeys(facts.metrics, value) for split in facts.dev_splits}


def make_record(
    task: str = "mrpc",
    method: str = "spafit",
    seed: int = 0,
    metrics: SplitMetrics | float = 0.8,
    *,
    config: dict[str, Any] | None = None,
    fingerprint: str | None = None,
    weights: str = "c0ffee" * 10,
    environment: dict[str, Any] | None = None,
    **fields: Any,
) -> RunRecord:
    """Make a finished run of BERT-large-cased on official data; `fields` replace the record's.

    A number for `metrics` stands for every metric. `config` has dotted keys.
    """
    head = (get_task(task).num_labels - 2) * (HIDDEN + 1)
    trainable = METHODS.get(method, 5_650_434) + head
    official = fields.get("official_split", True)
    values: dict[str, Any] = {
        "status": "done",
        "model": "bert-large-cased",
        "official_split": official,
        "train_limit": None,
        "select": "last",
        "metrics": metrics_of(task, metrics) if isinstance(metrics, float) else metrics,
        "majority": metrics_of(task, 0.5),
        "trainable_parameters": trainable,
        "base_parameters": BASE + head,
        "trainable_percent": 100 * trainable / (BASE + head),
        "strata": (),
        "train_time_s": 100.0,
        "train_tokens_per_s": 20_000.0,
        "eval_tokens_per_s": 60_000.0,
        "wall_time_s": 120.0,
        "peak_memory_bytes": 8_000_000_000,
        "stored_bytes": 4 * trainable,
        "started_at": f"2026-11-01T00:00:{seed:02d}Z",
        "data": DataProvenance(
            source="hub" if official else "mini",
            fingerprint=f"{fingerprint or official}-{task}",
            official_basis="fingerprint" if official else "differs",
            rows={},
        ),
    } | fields
    path_free = method.replace("/", "-")
    mark = random.Random(repr((config, values))).getrandbits(32)
    return RunRecord(
        run_id=f"{task}-{path_free}-{seed}-{mark:x}",
        task=task,
        method=method,
        seed=seed,
        config=_config(task, method, seed, config or {}),
        weights=ModelProvenance(
            revision=None,
            weights_sha256=weights,
            files_sha256="0" * 64,
            architecture="bert",
            num_layers=24,
            fresh_tensors=(),
        ),
        environment=Environment(**(_ENVIRONMENT | (environment or {}))),
        **values,
    )


_ENVIRONMENT: dict[str, Any] = {
    "host": "box",
    "device": "cuda",
    "device_name": "NVIDIA H100",
    "precision": "bf16",
    "num_threads": 8,
    "python": "3.12.0",
    "packages": {},
    "git_commit": None,
    "command": "spafit-bench run",
}


def _config(task: str, method: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Write a resolved configuration, with dotted keys replaced or added."""
    config: dict[str, Any] = {
        "task": task,
        "method": {"name": method, "strata": [{"layers": [0, 4], "treatment": "frozen"}]},
        "model": "bert-large-cased",
        "data": "hub",
        "seed": seed,
        "precision": "auto",
        "limit": None,
        "select": "last",
        "train": {"learning_rate": 1e-3, "epochs": 3, "batch_size": 32},
        "head": {"pooler": "bias"},
    }
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return config


def write_run(runs: Path, record: RunRecord, files: Mapping[str, bytes] | None = None) -> Path:
    """Write a run folder as the store does, without its syncs; an earlier one is written over."""
    folder = runs / record.run_id
    folder.mkdir(parents=True, exist_ok=True)
    every = {"record.json": record.to_json().encode(), **(files or {})}
    for name, content in {**every, SUMS: sums_of(every)}.items():
        (folder / name).write_bytes(content)
    return folder


def seal(folder: Path) -> None:
    """Write checksums of a run folder's files as they are now, as if the run had made them."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != SUMS}
    (folder / SUMS).write_bytes(sums_of(files))


def matrix(seeds: int = 3, **fields: Any) -> list[RunRecord]:
    """Make runs of four methods on nine tasks: invented scores, one collapsed, one limited."""
    noise = random.Random(0)
    records = []
    for level, method in enumerate(METHODS):
        for place, task in enumerate(TASKS.values()):
            for seed in range(seeds):
                score = 0.84 + 0.008 * place - 0.004 * level + noise.gauss(0, 0.006)
                score = 0.5634 + noise.gauss(0, 0.01) if task.note else score
                found = {
                    split: {name: score + 0.02 * i for i, name in enumerate(task.metrics)}
                    for split in task.dev_splits
                }
                cost = 60.0 * math.exp(place / 2) * (1 - 0.15 * level)
                collapsed = (method, task.name, seed) == ("full", "cola", 1)
                special = {"train_limit": 20_000} if task.name == "qqp" else {}
                records.append(
                    make_record(
                        task.name,
                        method,
                        seed,
                        metrics_of(task.name, 0.0) if collapsed else found,
                        collapsed=collapsed,
                        train_time_s=cost + noise.gauss(0, 1),
                        **(special | fields),
                    )
                )
    return records


def scores(records: list[RunRecord]) -> ResultTable:
    """Build the only scores table of some records."""
    (table,) = [table for table in build_tables(records) if table.kind == "scores"]
    return table


def row(table: ResultTable, name: str, group: str = "") -> Row:
    """Find a row."""
    (found,) = [row for row in table.rows if row.name == name and row.group == group]
    return found


def cell(table: ResultTable, name: str, key: str, group: str = "") -> Cell:
    """Find a cell by row and column."""
    keys = [column.key for column in table.columns]
    return row(table, name, group).cells[keys.index(key)]


def notes(table: ResultTable) -> str:
    """Join the notes."""
    return "\n".join(table.notes)

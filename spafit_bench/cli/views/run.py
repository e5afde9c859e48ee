"""One run in full, for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spafit_bench.cli.views.progress import format_metrics
from spafit_bench.results.record import Confusion, RunRecord


def run_text(record: RunRecord, folder: Path) -> str:
    """Describe a run.

    Args:
        record: the run.
        folder: where its files are.
    """
    lines = [record.run_id, f"status      {record.status}" + _because(record)]
    lines += _facts(record, folder)
    if record.evaluations:
        lines += ["", "epoch   step   train loss   dev"]
        for e in record.evaluations:
            loss = "-" if e.train_loss is None else f"{e.train_loss:.4f}"
            lines.append(f"{e.epoch:<7g} {e.step:<6} {loss:<12} {format_metrics(e.metrics)}")
    lines += confusion_text(record.confusion or {})
    lines += ["", "stratum      treatment -> trainable of parameters"]
    lines += [
        f"{row.stratum:<12} {row.treatment} -> {row.trainable:,} of {row.parameters:,}"
        for row in record.strata
    ]
    lines += _forgetting(record) + _movement(record)
    lines += ["", "configuration", *_settings(record.config, "  ")]
    lines += [f"warning: {warning}" for warning in record.warnings]
    return "\n".join(lines)


def confusion_text(confusion: Mapping[str, Confusion]) -> list[str]:
    """Return a table of each split: the confusion matrix, and scores of each class."""
    lines = []
    for split, found in confusion.items():
        width = max(map(len, (*found.classes, "true class")))
        heads = "".join(f"{name:>{max(len(name), 9) + 2}}" for name in found.classes)
        lines += ["", f"{split}: rows by true class, columns by predicted class"]
        lines.append(f"{'true class':<{width}}{heads}  precision  recall  F1")
        for name, counts in zip(found.classes, found.counts, strict=True):
            cells = "".join(
                f"{count:>{max(len(head), 9) + 2},}"
                for head, count in zip(found.classes, counts, strict=True)
            )
            of = found.scores[name]
            shown = f"{100 * of.precision:>9.1f}  {100 * of.recall:>6.1f}  {100 * of.f1:.1f}"
            lines.append(f"{name:<{width}}{cells}  {shown}")
    return lines


def _forgetting(record: RunRecord) -> list[str]:
    if record.forgetting is None:
        return []
    lines = ["", "forgetting   CKA with the pretrained encoder, relative distance from it"]
    for layer, drift in record.forgetting.items():
        lines.append(f"{layer:<12} {drift.cka:.4f}  {drift.relative_distance:.4f}")
    return lines


def _movement(record: RunRecord) -> list[str]:
    if record.movement is None:
        return []
    kinds = list(dict.fromkeys(kind for found in record.movement.values() for kind in found))
    lines = ["", "movement     norm of the change over that of the pretrained parameters"]
    lines.append(f"{'':<12} {''.join(f'{kind:<10}' for kind in kinds)}".rstrip())
    for where, found in record.movement.items():
        shares = [found[kind].relative if kind in found else None for kind in kinds]
        cells = "".join(f"{'-' if s is None else f'{s:.4f}':<10}" for s in shares)
        lines.append(f"{where:<12} {cells}".rstrip())
    return lines


def _because(record: RunRecord) -> str:
    return f": {record.reason}" if record.reason else ""


def _facts(record: RunRecord, folder: Path) -> list[str]:
    basis = record.data.official_basis
    official = "official split" if record.official_split else "NOT official split"
    if record.task_definition and not record.task_definition.rows:
        official = "not a task of GLUE"
    facts = {
        "task": f"{record.task}, {official} ({basis}), from {record.data.source}",
        "method": record.method,
        "model": f"{record.model} ({record.weights.architecture}, weights "
        f"{record.weights.weights_sha256[:12]})",
        "scores": format_metrics(record.metrics) + (" COLLAPSED" if record.collapsed else ""),
        "majority": format_metrics(record.majority),
        "trainable": f"{record.trainable_parameters:,} of {record.base_parameters:,} "
        f"({record.trainable_percent:.3f} %)",
        "time": f"{record.wall_time_s:.1f} s, training {record.train_time_s or 0:.1f} s at "
        f"{record.train_tokens_per_s or 0:,.0f} tokens/s",
        "memory": _memory(record),
        "energy": "" if record.energy_j is None else f"{record.energy_j / 1e3:,.2f} kJ",
        "stored": _stored(record.stored_bytes),
        "machine": f"{record.environment.device_name}, {record.environment.precision}, "
        f"{record.environment.engine} engine, {record.environment.num_threads} threads",
        "files": str(folder),
    }
    return [f"{name:<11} {value}" for name, value in facts.items() if value]


def _stored(count: int | None) -> str:
    """Size of what was trained, in the precision that it is kept in and in half of it."""
    return "" if count is None else f"{_bytes(count)} in fp32 ({_bytes(count // 2)} in bf16)"


def _memory(record: RunRecord) -> str:
    size, several = _bytes(record.peak_memory_bytes), record.environment.world_size
    return f"{size} in the first of {several} processes" if size and several > 1 else size


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f} MB"


def _settings(settings: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in settings.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_settings(value, indent + "  ")]
        elif value is not None:
            lines.append(f"{indent}{key}: {value}")
    return lines

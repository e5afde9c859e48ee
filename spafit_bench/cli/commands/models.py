"""What `export` and `predict` do, given their flags."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from spafit_bench.base.errors import UserError
from spafit_bench.data.text_input import TextSource, read_texts
from spafit_bench.export.export import Export, export_run
from spafit_bench.export.predict import FORMATS, POOL_BATCHES, predict_texts, rendered
from spafit_bench.export.restore import Base, load_run
from spafit_bench.results.lookup import find_run
from spafit_bench.results.store import Store
from spafit_bench.training import memory


def export(run: str, results: Path, to: Path, format_: str, base: Base) -> Export:
    """Write a run as a model; see `export_run`."""
    return export_run(find_run(run, Store(results)), to, format_, base)


def export_text(made: Export, *, as_json: bool) -> str:
    """Say what has been written."""
    if as_json:
        body = {
            "folder": str(made.folder),
            "format": made.format,
            "files": made.file_bytes,
            "total_bytes": made.total_bytes,
            "stored_bytes": made.trained_bytes,
            "notes": list(made.notes),
        }
        return json.dumps(body, indent=2, ensure_ascii=False)
    trained = made.trained_bytes
    lines = [
        f"{made.folder}: {made.format}, {_size(made.total_bytes)}",
        *(f"  {name:<26} {_size(size)}" for name, size in made.file_bytes.items()),
        f"what was trained: {_size(trained)} in fp32 ({_size(trained // 2)} in bf16)",
        *(f"note: {note}" for note in made.notes),
    ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def predict(
    run: str,
    results: Path,
    source: TextSource,
    base: Base,
    format_: str,
    batch_size: int | None,
) -> Iterator[str]:
    """Predict texts; yields output as it is ready.

    Raises:
        UserError: the run cannot be restored, or a text cannot be read.
    """
    if format_ not in FORMATS:
        raise UserError(f"--format {format_}: choices: {', '.join(FORMATS)}")
    memory.keep_freed_memory()
    restored = load_run(Store(results), run, base)
    for warning in restored.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    size = batch_size or restored.config.train.eval_batch_size
    at_once = size if source.is_stream else size * POOL_BATCHES
    examples = read_texts(restored.task, source)
    predictions = predict_texts(restored, examples, batch_size=size, at_once=at_once)
    return rendered(predictions, restored, format_)

"""What each command does, given its flags; returns text for stdout."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_bench.errors import UserError, nearest
from spafit_bench.lookup import find_run
from spafit_bench.record import RunRecord
from spafit_bench.requests import RunRequest, run_configs
from spafit_bench.store import Store

if TYPE_CHECKING:
    from spafit_bench.prepare import PreparedRun
    from spafit_bench.submit import SubmitRequest

__all__ = [
    "RunRequest",
    "compare",
    "dry_run",
    "list_things",
    "plan",
    "prepare_runs",
    "run",
    "show",
    "submit",
    "table",
]


def prepare_runs(request: RunRequest) -> list[PreparedRun]:
    """Find and check the inputs of every requested run, before the first one starts."""
    configs = run_configs(request)
    from spafit_bench.prepare import Preparer

    preparer = Preparer()
    return [preparer.prepare(config) for config in configs]


def run(
    runs: Sequence[PreparedRun],
    results: Path,
    *,
    force: bool,
    retry_failed: bool,
    as_json: bool,
) -> tuple[list[RunRecord], str]:
    """Carry out runs; return their records, and tables (or JSON) of them."""
    from spafit_bench.progress import ProgressView
    from spafit_bench.run import Options, run_all

    view = ProgressView()
    try:
        options = Options(force=force, retry_failed=retry_failed)
        records = run_all(runs, Store(results), view, options)
    finally:
        view.close()
    if as_json:
        bodies = [record.model_dump(mode="json") for record in records]
        return records, _json(bodies[0] if len(bodies) == 1 else {"runs": bodies})
    return records, _summary(records, results)


def _summary(records: Sequence[RunRecord], results: Path) -> str:
    done = [record for record in records if record.status == "done"]
    lines = [f"{len(done)} of {len(records)} runs done; records in {results / 'runs'}"]
    lines += [f"{r.run_id}: {r.status} ({r.reason})" for r in records if r.status != "done"]
    if not done:
        return "\n".join(lines)
    from spafit_bench.tables import build_tables

    scores = [table for table in build_tables(done) if table.kind == "scores"]
    return _rendered(scores, "terminal") + "\n" + "\n".join(lines)


def _rendered(tables: Sequence[Any], format_: str) -> str:
    from spafit_bench.tables.render import render

    width = max(80, shutil.get_terminal_size((80, 24)).columns)
    return render(tables, format_, width, color=sys.stdout.isatty())


def _json(body: Any) -> str:
    return json.dumps(body, indent=2, ensure_ascii=False)


DEMO_METHODS = "full,bitfit,lora,spafit"

_NEXT = """
What to try next
  spafit-bench show mrpc-spafit --results {results}
      one of these runs in full
  spafit-bench plan --method spafit
      what SPAFIT trains in BERT-large-cased, layer by layer
  spafit-bench run --task mrpc --method "0-1:frozen;2-5:lora(value,r=8,alpha=16)" --preset smoke
      a method of your own, in one line
  spafit-bench run --task mrpc --method spafit,lora --seed 0-2
      the real thing: GLUE and BERT-large-cased from the hub
"""


def demo(results: Path, *, as_json: bool) -> tuple[list[RunRecord], str]:
    """Run every task with four methods on the package's own model and data; tables of all."""
    runs = prepare_runs(RunRequest(task="all", method=DEMO_METHODS, preset="smoke"))
    records, text = run(runs, results, force=False, retry_failed=False, as_json=as_json)
    if not as_json:
        text = table(results, "terminal", None) + _NEXT.format(results=results)
    return records, text


def dry_run(runs: Sequence[PreparedRun], results: Path, *, as_json: bool) -> str:
    """Say what would run and what it would cost, about."""
    from spafit_bench.forecast import forecast

    store = Store(results)
    finished = {
        r.run_id for r in runs if (found := store.find(r.run_id)) and found.status == "done"
    }
    rows = [forecast(prepared, finished=prepared.run_id in finished) for prepared in runs]
    if as_json:
        return _json({"runs": [row.as_dict() for row in rows]})
    from spafit_bench.forecast import forecast_table

    return forecast_table(rows)


def table(
    results: Path,
    format_: str,
    out: Path | None,
    reference: Path | None = None,
    *,
    unlike: bool = False,
) -> str:
    """Build the tables; without `out`, also renew `DIR/tables`."""
    from spafit_bench.references import read_references
    from spafit_bench.store import replacing
    from spafit_bench.tables import build_tables
    from spafit_bench.tables.render import FORMATS, render, write_tables

    if format_ not in FORMATS:
        raise UserError(f"--format {format_}: {nearest(format_, FORMATS)}")
    references = None if reference is None else read_references(reference)
    records = Store(results).records()
    if not records:
        raise UserError(
            f"--results {results}: no runs here; make one with `spafit-bench run --task mrpc "
            "--method spafit --preset smoke`"
        )
    tables = build_tables(records, references, unlike=unlike)
    try:
        if out is not None:
            with replacing(out) as temporary:
                temporary.write_text(render(tables, format_, None), encoding="utf-8")
            return ""
        Store(results).rebuild_csv()
        folder = results / "tables"
        folder.mkdir(exist_ok=True)
        files = write_tables(tables)
        for stale in [*folder.glob("*.csv"), *folder.glob("*.md")]:
            if stale.name not in files:
                stale.unlink()
        for name, content in files.items():
            with replacing(folder / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out or results}: cannot be written ({error.strerror})") from None
    return _rendered(tables, format_)


def submit(results: Path, request: SubmitRequest, out: Path, *, as_json: bool) -> str:
    """Write the GLUE server's zip; say which run each file is of."""
    from spafit_bench.submit import SEED_RULE, build_submission

    submission = build_submission(Store(results), request)
    submission.write(out)
    for warning in submission.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    files = [file.as_dict() for file in submission.files]
    rule = f"{request.seed} for all" if request.seed is not None else SEED_RULE
    head = {"out": str(out), "method": submission.label, "model": submission.model}
    if as_json:
        more = {"data": submission.data, "seed_rule": rule, "warnings": submission.warnings}
        return _json(head | more | {"files": files})
    rows = [
        file
        | {"run": file["run_id"] or f"{file['filled_with']} everywhere: {file['filled_because']}"}
        | {"dev": None if file["dev_score"] is None else f"{100 * file['dev_score']:.2f}"}
        for file in files
    ]
    listing = _columns(Listing(("file", "rows", "seed", "dev", "run"), rows))
    title = f"{submission.label} ({submission.model}, {submission.data}); seed: {rule}"
    return f"{title}\n\n{listing}\n\n{out}: {len(files)} files, every row checked"


def compare(names: Sequence[str], results: Path, *, as_json: bool) -> str:
    """Say whether one method is better than another, and on what grounds."""
    from spafit_bench.compare import compare
    from spafit_bench.compare_view import comparison_json, comparison_text

    found = compare(Store(results), names)
    return comparison_json(found) if as_json else comparison_text(found)


def plan(request: RunRequest, *, as_json: bool) -> str:
    """Show what a method trains in a model."""
    from spafit_bench.tasks import get_task

    two_labels = request.task is None
    request = replace(request, task=request.task or "mrpc")
    configs = run_configs(request)
    if len(configs) > 1:
        raise UserError("plan shows one method (and task) at a time; name one, not several")
    config = configs[0]
    from spafit_bench.checkpoint import find_checkpoint
    from spafit_bench.plan_view import plan_json, plan_picture
    from spafit_bench.prepare import model_shapes, plan_method

    task = get_task(config.task)
    checkpoint = find_checkpoint(
        config.model, revision=config.revision, offline=config.offline, weights=False
    )
    made, warnings = plan_method(
        config.resolved_method(),
        checkpoint,
        model_shapes(checkpoint, task),
        fresh_pooler=config.head.pooler_init == "fresh",
    )
    name = Path(config.model).name if Path(config.model).is_dir() else config.model
    if as_json:
        body = plan_json(made, name, task.num_labels) | {"warnings": list(warnings)}
        return _json(body if two_labels else body | {"task": task.name})
    text = plan_picture(made, checkpoint.architecture, name, task.num_labels)
    return text + "".join(f"warning: {warning}\n" for warning in warnings)


@dataclass(frozen=True)
class Listing:
    """Rows of one kind of thing, for `list`."""

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]


def list_things(what: str, results: Path, *, as_json: bool) -> str:
    """List tasks, methods, models or runs."""
    kinds: dict[str, Callable[[], Listing]] = {
        "tasks": _list_tasks,
        "methods": _list_methods,
        "models": _list_models,
        "runs": partial(_list_runs, results),
    }
    if what not in kinds:
        raise UserError(f"cannot list {what!r}: {nearest(what, kinds)}")
    listing = kinds[what]()
    if as_json:
        return _json({what: listing.rows})
    return _columns(listing)


def _columns(listing: Listing) -> str:
    """Align a listing, one row per line, cut to nothing: it is made to be piped."""
    rows = [[_cell(column, row[column]) for column in listing.columns] for row in listing.rows]
    grid = [list(listing.columns), *rows]
    widths = [max(len(line[i]) for line in grid) for i in range(len(listing.columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in grid
    )


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if column == "score" else str(value)


def _list_tasks() -> Listing:
    from spafit_bench.tasks import TASKS

    rows = [
        {
            "task": task.name,
            "title": task.title,
            "metrics": "+".join(task.metrics),
            "outputs": task.num_labels,
            "train": task.rows["train"],
            "dev": "+".join(str(task.rows[split]) for split in task.dev_splits),
            "text": ", ".join(task.text_columns),
        }
        for task in TASKS.values()
    ]
    return Listing(tuple(rows[0]), rows)


def _list_methods() -> Listing:
    from spafit_bench.methods import get_method, method_names

    rows = []
    for name in method_names():
        method = get_method(name)
        rows.append({"method": name, "strata": method.spec, "description": method.description})
    return Listing(("method", "strata"), rows)


def _list_models() -> Listing:
    from spafit_bench.architectures import ARCHITECTURES
    from spafit_bench.checkpoint import SHIPPED_MODELS

    rows = [{"model": name, "where": "inside the package"} for name in SHIPPED_MODELS]
    rows += [
        {"model": f"any {kind}", "where": "hub name or folder (model_type in config.json)"}
        for kind in sorted(ARCHITECTURES)
    ]
    return Listing(("model", "where"), rows)


def _list_runs(results: Path) -> Listing:
    rows = [record.model_dump(mode="json") for record in Store(results).records()]
    columns = ("run_id", "status", "task", "method", "model", "seed", "score", "trainable_percent")
    return Listing(columns, rows)


def show(run_id: str, results: Path, *, as_json: bool) -> str:
    """Show one run, named by any unambiguous beginning."""
    found = find_run(run_id, Store(results))
    if as_json:
        return _json(found.record.model_dump(mode="json"))
    from spafit_bench.run_view import run_text

    return run_text(found.record, found.folder)

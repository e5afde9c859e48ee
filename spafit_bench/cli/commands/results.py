"""What the commands that read results do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_bench.base.durable import replacing
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.cli.commands.output import Listing, columns, rendered, to_json
from spafit_bench.results.lookup import find_run
from spafit_bench.results.store import Store

if TYPE_CHECKING:
    from spafit_bench.analysis.submit import SubmitRequest
    from spafit_bench.analysis.tables import ResultTable
    from spafit_bench.analysis.tables.settings import Group


log = logging.getLogger(__name__)


def table(
    results: Path,
    format_: str,
    out: Path | None,
    reference: Path | None = None,
    *,
    unlike: bool = False,
    baseline: str | None = None,
) -> str:
    """Build the tables; without `out`, also renew `DIR/tables`."""
    from spafit_bench.analysis.references import read_references
    from spafit_bench.analysis.tables import build_tables
    from spafit_bench.analysis.tables.render import FORMATS, render

    if format_ not in FORMATS:
        raise UserError(f"--format {format_}: {nearest(format_, FORMATS)}")
    references = None if reference is None else read_references(reference)
    records = Store(results).records()
    if not records:
        raise UserError(
            f"--results {results}: no runs here; make one with `spafit-bench run --task mrpc "
            "--method spafit --preset smoke`"
        )
    tables = build_tables(records, references, unlike=unlike, baseline=baseline)
    if out is None:
        _keep_current(results, tables)
        return rendered(tables, format_)
    try:
        with replacing(out) as temporary:
            temporary.write_text(render(tables, format_, None), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    return ""


def _keep_current(results: Path, tables: Sequence[ResultTable]) -> None:
    """Renew what is derived from the records; only warn where nothing can be written."""
    from spafit_bench.analysis.tables.render import is_table_file, write_tables

    try:
        Store(results).rebuild_csv()
        folder = results / "tables"
        folder.mkdir(exist_ok=True)
        files = write_tables(tables)
        for stale in folder.iterdir():
            if is_table_file(stale.name) and stale.name not in files:
                stale.unlink()
        for name, content in files.items():
            with replacing(folder / name) as temporary:
                temporary.write_text(content, encoding="utf-8")
    except (OSError, UserError) as error:
        log.warning("%s: tables and results.csv are not renewed (%s)", results, error)


def submit(results: Path, request: SubmitRequest, out: Path, *, as_json: bool) -> str:
    """Write the GLUE server's zip; say which run each file is of."""
    from spafit_bench.analysis.submit import SEED_RULE, build_submission

    submission = build_submission(Store(results), request)
    submission.write(out)
    for warning in submission.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    files = [file.as_dict() for file in submission.files]
    rule = f"{request.seed} for all" if request.seed is not None else SEED_RULE
    head = {"out": str(out), "method": submission.label, "model": submission.model}
    if as_json:
        more = {"data": submission.data, "seed_rule": rule, "warnings": submission.warnings}
        return to_json(head | more | {"files": files})
    rows = [
        file
        | {"run": file["run_id"] or f"{file['filled_with']} everywhere: {file['filled_because']}"}
        | {"dev": None if file["dev_score"] is None else f"{100 * file['dev_score']:.2f}"}
        for file in files
    ]
    listing = columns(Listing(("file", "rows", "seed", "dev", "run"), rows))
    title = f"{submission.label} ({submission.model}, {submission.data}); seed: {rule}"
    return f"{title}\n\n{listing}\n\n{out}: {len(files)} files, every row checked"


def compare(names: Sequence[str], results: Path, *, as_json: bool) -> str:
    """Say whether one method is better than another, and on what grounds."""
    from spafit_bench.analysis.compare import compare
    from spafit_bench.cli.views.compare import comparison_json, comparison_text

    found = compare(Store(results), names)
    return comparison_json(found) if as_json else comparison_text(found)


def plot(results: Path, out: Path, baseline: str | None, *, as_json: bool) -> str:
    """Write every figure that there is data for; say why others are missing."""
    from spafit_bench.analysis.plots import Skipped, build_galleries, figure_files

    store = Store(results)
    galleries = build_galleries(store, _groups(store), baseline)
    figures = [figure for gallery in galleries for figure in gallery.figures]
    rows = []
    for figure in figures:
        if isinstance(figure, Skipped):
            rows.append({"figure": figure.name, "files": [], "skipped": figure.why})
            continue
        files = figure_files(figure)
        _write_all(out, files)
        paths = [str(out / name) for name in files]
        rows.append({"figure": figure.name, "files": paths, "caption": figure.caption})
    if as_json:
        return to_json({"plots": rows})
    return "\n".join(
        f"skipped {row['figure']}: {row['skipped']}" if "skipped" in row else " ".join(row["files"])
        for row in rows
    )


def report(
    results: Path, out: Path, options: tuple[str | None, Path | None], *, as_json: bool
) -> str:
    """Write the page of all results; `options` are the baseline and the published scores."""
    from spafit_bench.analysis.references import read_references
    from spafit_bench.analysis.report import build_report

    baseline, reference = options
    references = None if reference is None else read_references(reference)
    store = Store(results)
    page = build_report(store, _groups(store), baseline, references)
    content = page.encode(errors="backslashreplace")  # a path may hold undecodable bytes
    _write_all(out.parent, {out.name: content})
    if as_json:
        return to_json({"out": str(out), "bytes": len(content)})
    return f"{out}: {len(content) / 1e6:.2f} MB"


def _groups(store: Store) -> tuple[Group, ...]:
    """Part finished runs into tables; none is a user's mistake."""
    from spafit_bench.analysis.tables.settings import group_runs

    groups = group_runs(store.records())
    if not groups:
        raise UserError(
            f"--results {store.root}: no finished runs here; make one with `spafit-bench run "
            "--task mrpc --method spafit --preset smoke`"
        )
    return groups


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, each whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from None


def list_things(what: str, results: Path, *, as_json: bool) -> str:
    """List tasks, methods, models, sweeps or runs."""
    kinds: dict[str, Callable[[], Listing]] = {
        "tasks": _list_tasks,
        "methods": _list_methods,
        "models": _list_models,
        "sweeps": _list_sweeps,
        "runs": partial(_list_runs, results),
    }
    if what not in kinds:
        raise UserError(f"cannot list {what!r}: {nearest(what, kinds)}")
    listing = kinds[what]()
    if as_json:
        return to_json({what: listing.rows})
    return columns(listing)


def _list_tasks() -> Listing:
    from spafit_bench.data.custom_tasks import find_task, shipped_tasks
    from spafit_bench.data.tasks import TASKS

    rows = [
        {
            "task": task.name,
            "title": task.title,
            "metrics": "+".join(task.metrics),
            "outputs": task.num_labels,
            "train": task.rows["train"],
            "dev": "+".join(str(task.rows[split]) for split in task.dev_splits),
            "text": ", ".join(task.inputs),
        }
        for task in (*TASKS.values(), *(find_task(name).task for name in shipped_tasks()))
    ]
    return Listing(tuple(rows[0]), rows)


def _list_methods() -> Listing:
    from spafit_bench.methods.method import ablation_names, get_method, method_names

    rows = []
    for name in (*method_names(), *ablation_names()):
        method = get_method(name)
        rows.append({"method": name, "strata": method.spec, "description": method.description})
    return Listing(("method", "strata"), rows)


def _list_models() -> Listing:
    from spafit_bench.methods.architectures import ARCHITECTURES
    from spafit_bench.models.checkpoint import SHIPPED_MODELS

    rows = [{"model": name, "where": "inside the package"} for name in SHIPPED_MODELS]
    rows += [
        {"model": f"any {kind}", "where": "hub name or folder (model_type in config.json)"}
        for kind in sorted(ARCHITECTURES)
    ]
    return Listing(("model", "where"), rows)


def _list_sweeps() -> Listing:
    from spafit_bench.base.shipped import read_yaml
    from spafit_bench.config.sweep import sweep_names, sweep_path

    rows = [
        {"sweep": name, "description": read_yaml(sweep_path(name))["description"]}
        for name in sweep_names()
    ]
    return Listing(("sweep", "description"), rows)


def _list_runs(results: Path) -> Listing:
    rows = [record.model_dump(mode="json") for record in Store(results).records()]
    columns = ("run_id", "status", "task", "method", "model", "seed", "score", "trainable_percent")
    return Listing(columns, rows)


def show(run_id: str, results: Path, *, as_json: bool) -> str:
    """Show one run, named by any unambiguous beginning."""
    found = find_run(run_id, Store(results))
    if as_json:
        return to_json(found.record.model_dump(mode="json"))
    from spafit_bench.cli.views.run import run_text

    return run_text(found.record, found.folder)

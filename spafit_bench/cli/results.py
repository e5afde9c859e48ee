"""Commands that read results: table, compare, plot, report and submit."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spafit_bench.base.durable import replacing
from spafit_bench.base.errors import UserError, nearest
from spafit_bench.cli.app import app
from spafit_bench.cli.options import (
    Json,
    OnlyMethods,
    OnlyModels,
    OnlyTasks,
    Results,
    Where,
    complete_methods,
    joined,
    selection_of,
)
from spafit_bench.cli.output import columns, print_json, print_note, print_text
from spafit_bench.results.store import Store

if TYPE_CHECKING:
    from spafit_bench.analysis.references import References
    from spafit_bench.analysis.selection import Selection
    from spafit_bench.analysis.tables import ResultTable
    from spafit_bench.analysis.tables.settings import RunGroup

log = logging.getLogger(__name__)

TRY = "make one with `spafit-bench run --task mrpc --method spafit --preset smoke`"
Reference = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of published scores to show below ours, or a shipped one: bert-large.",
        metavar="FILE",
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="Row to compare the others with, as the tables name it. \\[full]",
        autocompletion=complete_methods,
        metavar="METHOD",
    ),
]


@app.command(epilog="Example: `spafit-bench table --format latex --out scores.tex`")
def table(
    results: Results = Path("results"),
    format_: Annotated[
        str, typer.Option("--format", help="Format.", metavar="terminal|md|csv|latex|html|json")
    ] = "terminal",
    out: Annotated[
        Path | None, typer.Option(help="Write to FILE instead of printing.", metavar="FILE")
    ] = None,
    reference: Reference = None,
    unlike: Annotated[
        bool,
        typer.Option(
            "--unlike",
            help="Also show published scores of another model, split or data, with a mark.",
        ),
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Row to test all others against. Separable differences get the marks ↑ and ↓.",
            autocompletion=complete_methods,
            metavar="METHOD",
        ),
    ] = None,
    task: OnlyTasks = None,
    method: OnlyMethods = None,
    model: OnlyModels = None,
    where: Where = None,
    as_json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Print tables of scores, parameters and cost; keep DIR/tables up to date."""
    from spafit_bench.analysis.references import read_references
    from spafit_bench.analysis.tables.render import FORMATS, render

    form = "json" if as_json else {"markdown": "md", "tex": "latex"}.get(format_, format_)
    if form not in FORMATS:
        raise UserError(f"--format {form}: {nearest(form, FORMATS)}")
    references = None if reference is None else read_references(reference)
    chosen = selection_of(task=task, method=method, model=model, where=where)
    tables = _tables(results, chosen, references, unlike=unlike, baseline=baseline)
    if out is None:
        if not any((task, method, model, where)):  # DIR/tables is of all runs
            _keep_current(results, tables)
        print_text(rendered(tables, form), styled=sys.stdout.isatty())
    else:
        _write({out: render(tables, form, None).encode()}, f"{out}")


def tables_text(results: Path) -> str:
    """Return all tables of a results folder for the terminal, and keep DIR/tables up to date."""
    tables = _tables(results, selection_of())
    _keep_current(results, tables)
    return rendered(tables, "terminal")


def rendered(tables: Sequence[ResultTable], form: str) -> str:
    """Render tables for stdout, in colour on a terminal."""
    from spafit_bench.analysis.tables.render import render

    width = max(80, shutil.get_terminal_size((80, 24)).columns)
    return render(tables, form, width, color=sys.stdout.isatty())


def _tables(
    results: Path,
    chosen: Selection,
    references: References | None = None,
    *,
    unlike: bool = False,
    baseline: str | None = None,
) -> Sequence[ResultTable]:
    from spafit_bench.analysis.selection import read_runs
    from spafit_bench.analysis.tables import build_tables

    records = read_runs(Store(results), chosen)
    if not records:
        raise UserError(f"--results {results}: no runs here; {TRY}")
    return build_tables(records, references, unlike=unlike, baseline=baseline)


def _keep_current(results: Path, tables: Sequence[ResultTable]) -> None:
    """Write `results.csv` and `tables/` again; only warn if nothing can be written."""
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
        log.warning("%s: tables and results.csv could not be updated (%s)", results, error)


@app.command(epilog="Example: `spafit-bench submit --method spafit --out spafit.zip`")
def submit(
    method: Annotated[
        str, typer.Option(help="Method that predicts.", autocompletion=complete_methods)
    ],
    out: Annotated[Path, typer.Option(help="Zip file to write.", metavar="FILE.zip")],
    results: Results = Path("results"),
    seed: Annotated[int | None, typer.Option(help="Seed. \\[each task's best dev score]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, if there are runs of several models.")
    ] = None,
    setting: Annotated[
        str | None,
        typer.Option(
            help="Row or data to submit, if there are several: a part of its name, such as "
            "'lr 1e-3'.",
            metavar="TEXT",
        ),
    ] = None,
    fill_majority: Annotated[
        bool,
        typer.Option(
            "--fill-majority", help="Fill missing files with the official dev set's majority class."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the GLUE server's zip of eleven files from test predictions; check every row."""
    from spafit_bench.analysis.submit import SEED_RULE, SubmitRequest, build_submission

    request = SubmitRequest(
        method=method, seed=seed, model=model, setting=setting, fill_majority=fill_majority
    )
    submission = build_submission(Store(results), request)
    submission.write(out)
    for warning in submission.warnings:
        print_note(warning, "warning", "yellow")
    files = [file.as_dict() for file in submission.files]
    rule = SEED_RULE if seed is None else f"{seed} for all"
    if as_json:
        head = {"out": str(out), "method": submission.label, "model": submission.model}
        more = {"data": submission.data, "seed_rule": rule, "warnings": submission.warnings}
        print_json(head | more | {"files": files})
        return
    rows = [
        file
        | {"run": file["run_id"] or f"{file['filled_with']} everywhere: {file['filled_because']}"}
        | {"dev": None if file["dev_score"] is None else f"{100 * file['dev_score']:.2f}"}
        for file in files
    ]
    title = f"{submission.label} ({submission.model}, {submission.data}); seed: {rule}"
    listing = columns(("file", "rows", "seed", "dev", "run"), rows)
    print_text(f"{title}\n\n{listing}\n\n{out}: {len(files)} files, every row checked")


@app.command(epilog="Example: `spafit-bench compare spafit lora bitfit --results results`")
def compare(
    methods: Annotated[
        list[str] | None,
        typer.Argument(help="Two or more methods, as the tables name them.", metavar="A B [C...]"),
    ] = None,
    results: Results = Path("results"),
    task: OnlyTasks = None,
    method: OnlyMethods = None,
    model: OnlyModels = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Test whether A is better than B, on each task and on average."""
    from spafit_bench.analysis.compare import compare
    from spafit_bench.cli.views.compare import comparison_json, comparison_text

    chosen = selection_of(task=task, method=method, model=model, where=where)
    found = compare(Store(results), methods or (), chosen)
    width = max(80, shutil.get_terminal_size((80, 24)).columns)
    print_text(comparison_json(found) if as_json else comparison_text(found, width))


@app.command(epilog="Example: `spafit-bench plot --results results --out figures`")
def plot(
    results: Results = Path("results"),
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. \\[DIR/plots]", metavar="DIR")
    ] = None,
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help="Formats of the files. \\[svg,png]", metavar="svg|png|pdf[,...]"
        ),
    ] = None,
    no_title: Annotated[
        bool, typer.Option("--no-title", help="Leave out title and caption, as for a paper.")
    ] = False,
    baseline: Baseline = None,
    task: OnlyTasks = None,
    method: OnlyMethods = None,
    model: OnlyModels = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Draw figures: score against size, curves, differences, ranks, layers."""
    from spafit_bench.analysis.plots import FORMATS, Skipped, build_galleries, figure_files

    formats = (joined(format_) or "svg,png").split(",")
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format {name}: {nearest(name, FORMATS)}")
    folder = out or results / "plots"
    store = Store(results)
    rows, lines = [], []
    chosen = selection_of(task=task, method=method, model=model, where=where)
    for gallery in build_galleries(store, _groups(store, chosen), baseline):
        for figure in gallery.figures:
            if isinstance(figure, Skipped):
                rows.append({"figure": figure.name, "files": [], "skipped": figure.why})
                lines.append(f"skipped {figure.name}: {figure.why}")
                continue
            files = figure_files(figure, formats, title=not no_title)
            _make_folder(folder)
            _write({folder / name: content for name, content in files.items()}, f"--out {folder}")
            paths = [str(folder / name) for name in files]
            rows.append({"figure": figure.name, "files": paths, "caption": figure.caption})
            lines.append(" ".join(paths))
    if as_json:
        print_json({"plots": rows})
    else:
        print_text("\n".join(lines))


@app.command(epilog="Example: `spafit-bench report --results results --out report.html`")
def report(
    results: Results = Path("results"),
    out: Annotated[
        Path | None, typer.Option(help="File to write. \\[DIR/report.html]", metavar="FILE.html")
    ] = None,
    baseline: Baseline = None,
    reference: Reference = None,
    task: OnlyTasks = None,
    method: OnlyMethods = None,
    model: OnlyModels = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page with every table, figure and run."""
    from spafit_bench.analysis.references import read_references
    from spafit_bench.analysis.report import build_report

    path = out or results / "report.html"
    references = None if reference is None else read_references(reference)
    store = Store(results)
    chosen = selection_of(task=task, method=method, model=model, where=where)
    page = build_report(store, _groups(store, chosen), baseline, references, chosen)
    content = page.encode()
    _make_folder(path.parent)
    _write({path: content}, f"--out {path.parent}")
    if as_json:
        print_json({"out": str(path), "bytes": len(content)})
    else:
        print_text(f"{path}: {len(content) / 1e6:.2f} MB")


def _groups(store: Store, chosen: Selection) -> tuple[RunGroup, ...]:
    """Divide finished runs into tables.

    Raises:
        UserError: there is no finished run.
    """
    from spafit_bench.analysis.selection import read_runs
    from spafit_bench.analysis.tables.settings import group_runs

    groups = group_runs(read_runs(store, chosen))
    if not groups:
        raise UserError(f"--results {store.root}: no finished runs here; {TRY}")
    return groups


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from None


def _write(files: Mapping[Path, bytes], place: str) -> None:
    """Write files, each completely or not at all; `place` is what an error names."""
    try:
        for path, content in files.items():
            with replacing(path) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror})") from None

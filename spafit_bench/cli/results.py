"""Commands that read results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spafit_bench.cli.app import app
from spafit_bench.cli.options import Json, Results, complete_methods, print_text


@app.command(epilog="Example: `spafit-bench table --format latex --out scores.tex`")
def table(
    results: Results = Path("results"),
    format_: Annotated[
        str, typer.Option("--format", help="Form.", metavar="terminal|md|csv|latex|html|json")
    ] = "terminal",
    out: Annotated[
        Path | None,
        typer.Option(help="Write to FILE instead of printing.", metavar="FILE"),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="YAML of published scores to set below ours, or a shipped one: bert-large.",
            metavar="FILE",
        ),
    ] = None,
    unlike: Annotated[
        bool,
        typer.Option(
            "--unlike", help="Show those of other models, splits or data as well, marked."
        ),
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Row whose scores all others are tested against; differences are marked ↑ and ↓.",
            autocompletion=complete_methods,
            metavar="METHOD",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Print tables of scores, parameters and cost; keep DIR/tables current."""
    from spafit_bench.cli.commands import results as commands

    form = "json" if as_json else format_
    text = commands.table(results, form, out, reference, unlike=unlike, baseline=baseline)
    if text:
        print_text(text)


@app.command(epilog="Example: `spafit-bench submit --method spafit --out spafit.zip`")
def submit(
    method: Annotated[
        str, typer.Option(help="Whose predictions.", autocompletion=complete_methods)
    ],
    out: Annotated[Path, typer.Option(help="The zip to write.", metavar="FILE.zip")],
    results: Results = Path("results"),
    seed: Annotated[int | None, typer.Option(help="Seed. \\[each task's best dev score]")] = None,
    model: Annotated[
        str | None, typer.Option(help="Which model's runs, where there are several.")
    ] = None,
    setting: Annotated[
        str | None,
        typer.Option(
            help="Which settings' or data's runs, where there are several: part of their text, "
            "such as 'lr 1e-3'.",
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
    """Write the GLUE server's zip of eleven files from test predictions, and check every row."""
    from spafit_bench.analysis.submit import SubmitRequest
    from spafit_bench.cli.commands import results as commands

    request = SubmitRequest(
        method=method, seed=seed, model=model, setting=setting, fill_majority=fill_majority
    )
    print_text(commands.submit(results, request, out, as_json=as_json))


@app.command(epilog="Example: `spafit-bench compare spafit lora bitfit --results results`")
def compare(
    methods: Annotated[
        list[str] | None,
        typer.Argument(help="Two or more methods, as the tables name them.", metavar="A B [C...]"),
    ] = None,
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Say whether A is better than B: paired tests per task and overall."""
    from spafit_bench.cli.commands import results as commands

    print_text(commands.compare(methods or (), results, as_json=as_json))


Baseline = Annotated[
    str | None,
    typer.Option(
        help="Row that the others are compared with, as the tables name it. \\[full]",
        autocompletion=complete_methods,
        metavar="METHOD",
    ),
]


@app.command(epilog="Example: `spafit-bench plot --results results --out figures`")
def plot(
    results: Results = Path("results"),
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. \\[DIR/plots]", metavar="DIR")
    ] = None,
    baseline: Baseline = None,
    as_json: Json = False,
) -> None:
    """Draw figures as SVG and PNG: score over size, curves, differences, ranks, layers."""
    from spafit_bench.cli.commands import results as commands

    print_text(commands.plot(results, out or results / "plots", baseline, as_json=as_json))


@app.command(epilog="Example: `spafit-bench report --results results --out report.html`")
def report(
    results: Results = Path("results"),
    out: Annotated[
        Path | None, typer.Option(help="File to write. \\[DIR/report.html]", metavar="FILE.html")
    ] = None,
    baseline: Baseline = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="YAML of published scores to set below ours, or a shipped one: bert-large.",
            metavar="FILE",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page: every table, figure and run."""
    from spafit_bench.cli.commands import results as commands

    page = out or results / "report.html"
    print_text(commands.report(results, page, (baseline, reference), as_json=as_json))


@app.command(name="list", epilog="Example: `spafit-bench list runs --json`")
def list_(
    what: Annotated[
        str, typer.Argument(help="tasks, methods, models, sweeps or runs.", metavar="WHAT")
    ],
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """List tasks, methods, models, sweeps or runs."""
    from spafit_bench.cli.commands import results as commands

    print_text(commands.list_things(what, results, as_json=as_json))


@app.command(epilog="Example: `spafit-bench show mrpc-spafit` (any unambiguous beginning)")
def show(
    run_id: Annotated[
        str, typer.Argument(help="A run, or the beginning of its name.", metavar="RUN")
    ],
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Show one run in full."""
    from spafit_bench.cli.commands import results as commands

    print_text(commands.show(run_id, results, as_json=as_json))

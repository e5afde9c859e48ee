"""The command line: reads flags, calls the core, prints what it returns.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spafit_bench import __version__, cli_models
from spafit_bench.errors import UserError

if TYPE_CHECKING:
    from spafit_bench.record import RunRecord

WHAT = "What to run"
HOW = "How to train"
WHERE = "Where and how it computes"
KEEP = "What is kept"

app = typer.Typer(
    name="spafit-bench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which way of fine-tuning this encoder is best on GLUE, what does it cost, and is the "
    "difference real?",
    epilog="Start anywhere, offline: `spafit-bench run --task mrpc --method spafit --preset smoke`",
)


def _complete_tasks(incomplete: str) -> list[str]:
    from spafit_bench.tasks import TASKS

    return [name for name in (*TASKS, "all") if name.startswith(incomplete)]


def _complete_methods(incomplete: str) -> list[str]:
    from spafit_bench.methods import method_names

    return [name for name in (*method_names(), "all") if name.startswith(incomplete)]


def _complete_presets(incomplete: str) -> list[str]:
    from spafit_bench.config import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"spafit-bench {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    if debug:
        import logging

        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("spafit_bench").setLevel(logging.DEBUG)


Results = Annotated[
    Path, typer.Option("--results", help="Results folder.", rich_help_panel=KEEP, metavar="DIR")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="Hub name, checkpoint folder (safetensors), or tiny-bert. \\[bert-large-cased]",
        rich_help_panel=WHAT,
        metavar="NAME|PATH",
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub model.", rich_help_panel=WHAT)
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never ask the hub.", rich_help_panel=WHERE)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any setting, e.g. method.rank=8, head.pooler=full. Repeatable.",
        rich_help_panel=HOW,
        metavar="KEY=VALUE",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file of settings.", rich_help_panel=HOW, metavar="FILE"),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="smoke: tiny BERT on mini-GLUE, offline, in seconds.",
        autocompletion=_complete_presets,
        rich_help_panel=HOW,
    ),
]


@app.command(
    epilog="Example: `spafit-bench run --task mrpc,rte --method spafit,lora --seed 0,1,2` "
    "(a finished run is not repeated)"
)
def run(
    task: Annotated[
        str | None,
        typer.Option(
            help="Task, comma list, or all.",
            autocompletion=_complete_tasks,
            rich_help_panel=WHAT,
            metavar="T[,T]|all",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Method, comma list, all, a YAML file, or one line such as "
            "'0-4:frozen;5-9:bias;10-23:lora(query+value,r=8,alpha=16)'.",
            autocompletion=_complete_methods,
            rich_help_panel=WHAT,
            metavar="M[,M]|all",
        ),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="hub, mini, or a folder: hub parquet, GLUE TSV, CSV/JSONL. \\[hub]",
            rich_help_panel=WHAT,
            metavar="hub|mini|PATH",
        ),
    ] = None,
    seed: Annotated[
        str | None, typer.Option(help="Seed or comma list. \\[0]", rich_help_panel=WHAT)
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Train on the first N examples; dev stays whole.", rich_help_panel=WHAT),
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    assignments: Set = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate.", rich_help_panel=HOW)
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs.", rich_help_panel=HOW)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples per optimizer step.", rich_help_panel=HOW)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens per example at most.", rich_help_panel=HOW)
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(help="Fraction of steps if below 1, else steps.", rich_help_panel=HOW),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Decoupled weight decay.", rich_help_panel=HOW)
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            help="Report the last evaluation or the best (optimistic).",
            rich_help_panel=HOW,
            metavar="last|best",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="auto: bf16 where the hardware has it.",
            rich_help_panel=WHERE,
            metavar="auto|fp32|bf16|fp16",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device.", rich_help_panel=WHERE, metavar="auto|cpu|cuda:i"),
    ] = None,
    offline: Offline = False,
    results: Results = Path("results"),
    predict_test: Annotated[
        bool | None,
        typer.Option(
            "--predict-test/--no-predict-test",
            help="Predict the test sets at the end.",
            rich_help_panel=KEEP,
        ),
    ] = None,
    save_weights: Annotated[
        str | None,
        typer.Option(
            help="Trained tensors to keep: of all evaluations, the reported one, or none.",
            rich_help_panel=KEEP,
            metavar="all|best|none",
        ),
    ] = None,
    measure_forgetting: Annotated[
        bool,
        typer.Option(
            "--measure-forgetting",
            help="Record how far each layer moved from the pretrained one.",
            rich_help_panel=KEEP,
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Repeat finished runs.", rich_help_panel=KEEP)
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Repeat failed and diverged runs.", rich_help_panel=KEEP
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, with estimates; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train and evaluate one or more methods on one or more tasks."""
    from spafit_bench import commands

    train = {
        "learning_rate": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "max_length": max_length,
        "warmup": warmup,
        "weight_decay": weight_decay,
    }
    flags = {
        "model": model,
        "revision": revision,
        "data": data,
        "offline": offline or None,
        "limit": limit,
        "select": select,
        "precision": precision,
        "device": device,
        "predict_test": predict_test,
        "save_weights": save_weights,
        "measure_forgetting": measure_forgetting or None,
        "train": _given(train) or None,
    }
    request = commands.RunRequest(
        task=task,
        method=method,
        seed=seed,
        preset=preset,
        config=config,
        assignments=tuple(assignments or ()),
        flags=_given(flags),
    )
    runs = commands.prepare_runs(request)
    if dry_run:
        _print(commands.dry_run(runs, results, as_json=as_json))
        return
    records, text = commands.run(
        runs, results, force=force, retry_failed=retry_failed, as_json=as_json
    )
    _print(text)
    _exit_if_any_failed(records)


def _exit_if_any_failed(records: Sequence[RunRecord]) -> None:
    if any(record.status != "done" for record in records):
        raise typer.Exit(1)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flags.items() if value is not None}


def _print(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


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
    as_json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Print tables of scores, parameters and cost; keep DIR/tables current."""
    from spafit_bench import commands

    text = commands.table(results, "json" if as_json else format_, out, reference, unlike=unlike)
    if text:
        _print(text)


@app.command(epilog="Example: `spafit-bench submit --method spafit --out spafit.zip`")
def submit(
    method: Annotated[
        str, typer.Option(help="Whose predictions.", autocompletion=_complete_methods)
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
    from spafit_bench import commands
    from spafit_bench.submit import SubmitRequest

    request = SubmitRequest(
        method=method, seed=seed, model=model, setting=setting, fill_majority=fill_majority
    )
    _print(commands.submit(results, request, out, as_json=as_json))


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
    from spafit_bench import commands

    _print(commands.compare(methods or (), results, as_json=as_json))


PlanMethod = Annotated[
    str,
    typer.Option(
        help="Method, a YAML file, or the one-line form.", autocompletion=_complete_methods
    ),
]
PlanTask = Annotated[
    str | None,
    typer.Option(
        help="Count with this task's outputs; two labels otherwise.", autocompletion=_complete_tasks
    ),
]


@app.command(epilog="Example: `spafit-bench plan --method spafit-4-9-ii --model bert-large-cased`")
def plan(
    method: PlanMethod = "spafit",
    model: Model = None,
    task: PlanTask = None,
    revision: Revision = None,
    offline: Offline = False,
    assignments: Set = None,
    as_json: Json = False,
) -> None:
    """Show, layer by layer, what a method trains, without loading weights."""
    from spafit_bench import commands

    flags = _given({"model": model, "revision": revision, "offline": offline or None})
    request = commands.RunRequest(
        task=task, method=method, flags=flags, assignments=tuple(assignments or ())
    )
    _print(commands.plan(request, as_json=as_json))


app.command(name="params", help="Alias of plan.", hidden=True)(plan)


@app.command(epilog="Offline, on two CPU cores, in minutes; finished runs are not repeated.")
def demo(results: Results = Path("results/demo"), as_json: Json = False) -> None:
    """Show it all: nine tasks x four methods on a tiny BERT and mini-GLUE."""
    from spafit_bench import commands

    records, text = commands.demo(results, as_json=as_json)
    _print(text)
    _exit_if_any_failed(records)


@app.command(name="list", epilog="Example: `spafit-bench list runs --json`")
def list_(
    what: Annotated[str, typer.Argument(help="tasks, methods, models or runs.")],
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """List tasks, methods, models or runs."""
    from spafit_bench import commands

    _print(commands.list_things(what, results, as_json=as_json))


@app.command(epilog="Example: `spafit-bench show mrpc-spafit` (any unambiguous beginning)")
def show(
    run_id: Annotated[str, typer.Argument(help="A run, or the beginning of its name.")],
    results: Results = Path("results"),
    as_json: Json = False,
) -> None:
    """Show one run in full."""
    from spafit_bench import commands

    _print(commands.show(run_id, results, as_json=as_json))


cli_models.add_to(app)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # paths and symbols that it has no code for
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="spafit-bench")
    except UserError as error:
        if debug:
            traceback.print_exc()
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("interrupted", fg="red", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader (head, less) has gone
        sys.stderr.close()
        sys.exit(141)

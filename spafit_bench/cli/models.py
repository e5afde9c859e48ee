"""Commands that use a trained model: export and predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spafit_bench.base.units import human_bytes
from spafit_bench.cli.app import app
from spafit_bench.cli.loading import load_libraries
from spafit_bench.cli.options import Json, Offline, Results
from spafit_bench.cli.output import print_json, print_note, print_text

if TYPE_CHECKING:
    from spafit_bench.results.lookup import FoundRun

Run = Annotated[
    str,
    typer.Argument(
        help="A run, the beginning of its name, or a folder that export wrote (merged or delta).",
        metavar="RUN",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the run, if several share the name. \\[the best on dev]"),
]
BaseModel = Annotated[
    str | None,
    typer.Option("--model", help="Base model, if it has moved.", metavar="NAME|PATH"),
]
OtherWeights = Annotated[
    bool,
    typer.Option("--other-weights", help="Accept a base model with other weights (warns)."),
]


def _find(run: str, results: Path, seed: int | None) -> FoundRun:
    """Find the run of a model before the slow imports; say which of several seeds it is."""
    from spafit_bench.results.lookup import find_model
    from spafit_bench.results.store import Store

    found = find_model(run, Store(results), seed)
    if found.note:
        print_note(found.note, "note")
    return found


@app.command(
    epilog="Example: `spafit-bench export mrpc-spafit --to my-model` (then "
    "`AutoModelForSequenceClassification.from_pretrained('my-model')`)"
)
def export(
    run: Run,
    to: Annotated[Path, typer.Option(help="Folder to write (new or empty).", metavar="DIR")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="merged: a plain checkpoint for from_pretrained. peft: an adapter for PeftModel. "
            "delta: only the trained weights.",
            metavar="merged|peft|delta",
        ),
    ] = "merged",
    seed: Seed = None,
    results: Results = Path("results"),
    model: BaseModel = None,
    other_weights: OtherWeights = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Write a run as a model: weights, tokenizer, label names and a model card."""
    found = _find(run, results, seed)
    load_libraries([(model, None, offline)] if model else [])
    from spafit_bench.export.export import export_run
    from spafit_bench.export.restore import Base

    base = Base(model=model, offline=offline, other_weights=other_weights)
    made = export_run(found, to, format_, base)
    if as_json:
        print_json(
            {
                "folder": str(made.folder),
                "format": made.format,
                "files": made.file_bytes,
                "total_bytes": made.total_bytes,
                "stored_bytes": made.trained_bytes,
                "notes": list(made.notes),
            }
        )
        return
    trained = made.trained_bytes
    lines = [
        f"{made.folder}: {made.format}, {human_bytes(made.total_bytes)}",
        *(f"  {name:<26} {human_bytes(size)}" for name, size in made.file_bytes.items()),
        f"trained weights: {human_bytes(trained)} in fp32 ({human_bytes(trained // 2)} in bf16)",
        *(f"note: {note}" for note in made.notes),
    ]
    print_text("\n".join(lines))


@app.command(
    epilog="Examples: `spafit-bench predict mrpc-spafit --text 'It rains.' --text-pair 'Rain.'`"
    " and `cat sentences.txt | spafit-bench predict cola-lora`"
)
def predict(
    run: Run,
    text: Annotated[
        list[str] | None, typer.Option(help="A text. Repeatable.", metavar="TEXT")
    ] = None,
    text_pair: Annotated[
        list[str] | None,
        typer.Option(help="The second text of a pair. Repeatable.", metavar="TEXT"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="CSV, TSV or JSON lines with the task's columns (or sentence1, sentence2; "
            "sentence; text, text_pair), or txt with one example per line. Without it, standard "
            "input is read as txt; a tab separates the texts of a pair.",
            metavar="FILE",
        ),
    ] = None,
    input_format: Annotated[
        str | None,
        typer.Option(
            help="Format of the file. \\[from the file's ending]", metavar="csv|tsv|jsonl|txt"
        ),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="tsv: label, probability (or score) and texts. jsonl: an object per example, "
            "with every class's probability. json: one object with all predictions.",
            metavar="tsv|jsonl|json",
        ),
    ] = "tsv",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write all columns of --file with the predictions to a file that ends in csv, "
            "tsv, jsonl or parquet. If --file has labels, print their scores.",
            metavar="FILE",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples per forward pass. \\[as in the run]")
    ] = None,
    seed: Seed = None,
    results: Results = Path("results"),
    model: BaseModel = None,
    other_weights: OtherWeights = False,
    offline: Offline = False,
    device: Annotated[str, typer.Option(help="Device.", metavar="auto|cpu|cuda:i")] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="Precision. \\[as in the run]", metavar="auto|fp32|bf16|fp16"),
    ] = None,
) -> None:
    """Label texts with a trained model."""
    found = _find(run, results, seed)
    load_libraries([(model, None, offline)] if model else [], [device])
    from spafit_bench.cli.views.run import confusion_text
    from spafit_bench.data.text_input import TextSource
    from spafit_bench.export.predict import predict_file, predict_run
    from spafit_bench.export.restore import Base

    source = TextSource(
        texts=tuple(text or ()), pairs=tuple(text_pair or ()), file=file, kind=input_format
    )
    base = Base(
        model=model,
        offline=offline,
        device=device,
        precision=precision,
        other_weights=other_weights,
    )
    if out is not None:
        count, scores = predict_file(found, source, base, out, batch_size)
        lines = [f"{out}: {count:,} rows"]
        if scores is not None:
            lines += [f"{name} {100 * value:.2f}" for name, value in scores.metrics.items()]
            if scores.confusion is not None:
                lines += confusion_text({str(source.name): scores.confusion})
        print_text("\n".join(lines))
        return
    form = "json" if as_json else format_
    for piece in predict_run(found, source, base, form, batch_size):
        sys.stdout.write(piece)
        sys.stdout.flush()

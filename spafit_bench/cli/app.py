"""The application that the commands register with."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from spafit_bench import __version__

_TRAINER_FLAGS = {
    "bf16": "--precision bf16",
    "fp16": "--precision fp16",
    "gradient_accumulation_steps": "--batch-size (of the whole step)",
    "learning_rate": "--lr",
    "max_seq_length": "--max-length",
    "max_train_samples": "--limit",
    "metric_for_best_model": "--select",
    "model_name_or_path": "--model",
    "model_revision": "--revision",
    "num_epochs": "--epochs",
    "num_train_epochs": "--epochs",
    "output_dir": "--results",
    "overwrite_output_dir": "--force",
    "per_device_train_batch_size": "--batch-size",
    "task_name": "--task",
    "tokenizer_name": "--model",
    "train_batch_size": "--batch-size",
    "train_file": "--data",
    "warmup_proportion": "--warmup",
    "warmup_ratio": "--warmup",
    "warmup_steps": "--warmup",
}
"""Flags of run_glue.py and of transformers' Trainer -> ours."""
_VALUES = {"bool": "", "int": "N", "int range": "N", "float": "X", "float range": "X"}
"""Types -> what stands for a value in help."""


class Commands(TyperGroup):
    """Commands whose help names values plainly, and that answer the flags of transformers."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the group's own flags."""
        return _named(super().get_params(ctx), ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _named(command.get_params(ctx), ctx)
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run a command; name our flag where transformers' was given."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            flag = getattr(error, "option_name", "").lstrip("-").replace("-", "_")
            ours = _TRAINER_FLAGS.get(flag)
            if ours and hasattr(error, "possibilities"):
                error.possibilities = None
                error.message = f"{error.message}. Here it is {ours}."  # type: ignore[attr-defined]
            raise


def _named(parameters: list[Any], ctx: Any) -> list[Any]:
    """Name the values of parameters plainly; older releases of typer do so by themselves."""
    for parameter in parameters:
        if not hasattr(parameter, "display_type"):
            continue
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None  # noqa: ARG005 (its name says it)
        elif parameter.metavar is None:
            kind = parameter.display_type(ctx).strip("<>")
            parameter.metavar = _VALUES.get(kind, "TEXT")
    return parameters


app = typer.Typer(
    cls=Commands,
    name="spafit-bench",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Which way of fine-tuning this encoder is best on GLUE, what does it cost, and is the "
    "difference real?",
    epilog="Start anywhere, offline: `spafit-bench run --task mrpc --method spafit --preset smoke`",
)


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

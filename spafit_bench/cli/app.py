"""The application that the commands register with."""

from __future__ import annotations

from typing import Annotated

import typer

from spafit_bench import __version__

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

"""Writes docs/commands.md and docs/configuration.md: `python scripts/make_reference.py`.

They come from the command line and from the types of settings. The tests fail where a file is not
what this writes.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from spafit_bench.cli import app
from spafit_bench.config.reference import Key, configuration_keys, sweep_keys

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = """# Commands

Written by `scripts/make_reference.py` from the command line itself; `spafit-bench COMMAND --help`
shows the same.

Exit codes of every command: 0 done; 1 a run failed or diverged (in a sweep with `choose:` one that
is reported, or every trial of a cell); 2 bad input or environment; 130 interrupted
(Ctrl-C, SIGTERM, or SIGHUP of a closed terminal). Results go to standard output, progress and
warnings to standard error.

A default in square brackets is not the flag's own: it comes from the shipped defaults, a preset or
a configuration file. `spafit-bench show RUN` prints every setting that a run had. Precedence:
flags, then `--set`, then `--config`, then `--preset`, then `configs/defaults.yaml` (by method and
task).

`--install-completion` sets up the completion of commands, flags, and names of tasks, methods and
presets in the shell that it is called from (bash, zsh, fish, PowerShell); `--show-completion`
prints what it would add.

"""


def commands(group: Any, path: tuple[str, ...] = ("spafit-bench",)) -> Iterator[tuple[str, Any]]:
    """Yield every command with its whole name, in the order of `--help`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif not command.hidden:
            yield " ".join((*path, name)), command


def flags(parameter: Any, types: Mapping[str, Any]) -> str:
    """Return what a user types: the flag's names and its value, or the argument."""
    names = [*parameter.opts, *parameter.secondary_opts]
    value = parameter.metavar or value_of(types.get(parameter.name))
    if parameter.param_type_name == "argument":
        return f"`{value}`"
    return ", ".join(f"`{name}`" if parameter.is_flag else f"`{name} {value}`" for name in names)


def value_of(annotation: Any) -> str:
    """Return what stands for a value that has no name of its own."""
    kinds = {annotation, *typing.get_args(annotation)}
    return "N" if int in kinds else "X" if float in kinds else "TEXT"


def default_of(parameter: Any) -> str:
    """Return the default, if the flag has one by itself; `[...]` in the text says others."""
    if parameter.param_type_name == "argument":
        return "required" if parameter.required else ""
    if parameter.required:
        return "required"
    value = parameter.default
    is_said = value is None or value is False or callable(value) or not str(value)
    return "" if is_said or parameter.name == "jobs" else f"`{value}`"


def cell(text: str) -> str:
    """Return text that stands in one cell of a table."""
    return re.sub(r"\s+", " ", text.replace("\\[", "[")).strip().replace("|", "\\|")


def section(name: str, command: Any) -> Iterator[str]:
    """Yield the lines about one command."""
    yield f"## {name.removeprefix('spafit-bench ')}"
    yield ""
    yield cell(command.help or "")
    yield ""
    if command.epilog:
        yield command.epilog
        yield ""
    yield "| flag or argument | meaning | default |"
    yield "| --- | --- | --- |"
    yield from rows(command)
    yield ""


def rows(command: Any) -> Iterator[str]:
    """Yield the rows of a command's flags and arguments."""
    types = typing.get_type_hints(inspect.unwrap(command.callback))
    for parameter in command.params:
        if parameter.name != "help":
            names, text = cell(flags(parameter, types)), cell(parameter.help or "")
            yield f"| {names} | {text} | {default_of(parameter)} |"


def reference() -> str:
    """Return the whole page."""
    root = typer.main.get_command(app)
    every = list(commands(root))
    lines = [f"- [{name}](#{name.partition(' ')[2].replace(' ', '-')})" for name, _ in every]
    lines += [
        "",
        "## spafit-bench",
        "",
        "| flag or argument | meaning | default |",
        "| --- | --- | --- |",
        *rows(root),
        "",
    ]
    for name, command in every:
        lines += section(name, command)
    return HEAD + "\n".join(lines).rstrip() + "\n"


CONFIGURATION = """# Configuration

Written by `scripts/make_reference.py` from the types that check the settings; `spafit-bench config
schema` prints the same, `config schema --json` a JSON schema for editors. `spafit-bench config show
--task mrpc --method lora` prints the settings that a run would have.

## Settings of a run

For `--set KEY=VALUE`, and nested in YAML for `--config` and a sweep's `settings`. A file may have
`tasks:` and `methods:` sections with settings for some of them. Where no default is given, none is
set, or `configs/defaults.yaml` decides by method and task.

| key | values | default | meaning |
| --- | --- | --- | --- |
"""
SWEEP = """
## Keys of a sweep

Values are a list, a range (`0-4`, `{ from: 8, to: 64, step: 8 }`, `{ from: 1.0e-5, to: 1.0e-3, num:
5, spacing: log }`), or a mapping from cells to either. Cells are named by task, method or
`task/method`, the rest by `all`.

| key | meaning |
| --- | --- |
"""


def configuration() -> str:
    """Return the page of settings."""

    def row(key: Key) -> str:
        default = f"`{key.default}`" if key.default else ""
        return f"| `{key.name}` | {key.values} | {default} | {cell(key.meaning)} |\n"

    settings = "".join(map(row, configuration_keys()))
    sweeps = "".join(f"| `{key.name}` | {cell(key.meaning)} |\n" for key in sweep_keys())
    return CONFIGURATION + settings + SWEEP + sweeps


if __name__ == "__main__":
    (DOCS / "commands.md").write_text(reference(), encoding="utf-8")
    (DOCS / "configuration.md").write_text(configuration(), encoding="utf-8")

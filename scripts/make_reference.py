"""Writes docs/commands.md from the command line itself: `python scripts/make_reference.py`.

The tests fail where the file is not what this writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from spafit_bench.cli import app

TARGET = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
HEAD = """# Commands

Written by `scripts/make_reference.py` from the command line itself; `spafit-bench COMMAND --help`
shows the same.

Exit codes of every command: 0 done; 1 a run failed or diverged; 2 bad input or environment; 130
interrupted. Results go to standard output, progress and warnings to standard error.

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


def flags(parameter: Any) -> str:
    """Return what a user types: the flag's names and its value, or the argument."""
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        return f"`{value_of(parameter)}`"
    value = "" if parameter.is_flag else f" {value_of(parameter)}"
    return ", ".join(f"`{name}{value}`" for name in names)


def value_of(parameter: Any) -> str:
    """Return what stands for the value in `--help`."""
    kinds = {"integer": "N", "float": "X", "integer range": "N", "float range": "X"}
    return str(parameter.metavar or kinds.get(parameter.type.name, parameter.type.name.upper()))


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
    yield "| | | default |"
    yield "| --- | --- | --- |"
    for parameter in command.params:
        if parameter.name not in ("help", "install_completion", "show_completion"):
            row = flags(parameter).replace("|", "\\|"), cell(parameter.help or "")
            yield f"| {row[0]} | {row[1]} | {default_of(parameter)} |"
    yield ""


def reference() -> str:
    """Return the whole page."""
    root = typer.main.get_command(app)
    every = list(commands(root))
    lines = [f"- [{name}](#{name.partition(' ')[2].replace(' ', '-')})" for name, _ in every]
    lines += [
        "",
        "## spafit-bench",
        "",
        "| | | default |",
        "| --- | --- | --- |",
        *(
            f"| {flags(p)} | {cell(getattr(p, 'help', '') or '')} | |"
            for p in root.params
            if p.name != "help"
        ),
        "",
    ]
    for name, command in every:
        lines += section(name, command)
    return HEAD + "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")

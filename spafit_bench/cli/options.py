"""Options that several commands share, and the completion of their values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from spafit_bench.analysis.selection import Selection

what = partial(typer.Option, rich_help_panel="What to run")
how = partial(typer.Option, rich_help_panel="How to train")
where = partial(typer.Option, rich_help_panel="Where and how it computes")
keep = partial(typer.Option, rich_help_panel="Results")
only = partial(typer.Option, rich_help_panel="Which runs")


def complete_list(incomplete: str, names: Sequence[str]) -> list[str]:
    """Complete the last name of a comma list, without names that are already in it."""
    before, comma, last = incomplete.rpartition(",")
    there = before.split(",")
    found = [name for name in names if name.startswith(last) and name not in there]
    return [f"{before}{comma}{name}" for name in found]


def complete_tasks(incomplete: str) -> list[str]:
    """Complete a task's name, also in a comma list."""
    from spafit_bench.data.custom_tasks import shipped_tasks
    from spafit_bench.data.tasks import TASKS

    return complete_list(incomplete, (*TASKS, *shipped_tasks(), "all"))


def complete_methods(incomplete: str) -> list[str]:
    """Complete a method's name, also in a comma list."""
    from spafit_bench.methods.method import ablation_names, method_names

    return complete_list(incomplete, (*method_names(), *ablation_names(), "all"))


def complete_sweeps(incomplete: str) -> list[str]:
    """Complete the name of a shipped sweep."""
    from spafit_bench.config.sweep import sweep_names

    return [name for name in sweep_names() if name.startswith(incomplete)]


def complete_presets(incomplete: str) -> list[str]:
    """Complete a preset's name."""
    from spafit_bench.config.run_config import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


Results = Annotated[Path, keep("--results", help="Results folder.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would run, with estimates; run nothing.")
]
Tasks = Annotated[
    list[str] | None,
    what(
        "--task",
        help="Tasks: names, all, or a YAML file that describes your own task.",
        autocompletion=complete_tasks,
        metavar="T[,T]|all",
    ),
]
Methods = Annotated[
    list[str] | None,
    what(
        "--method",
        help="Methods: names, all, a YAML file, or one line such as "
        "'0-4:frozen;5-9:bias;10-23:full'.",
        autocompletion=complete_methods,
        metavar="M[,M]|all",
    ),
]
Seeds = Annotated[list[str] | None, what("--seed", help="Seeds: 0, 0,2 or 0-4. \\[0]")]
SweepTasks = Annotated[
    list[str] | None,
    what(
        "--task",
        help="Run only these tasks of the sweep.",
        autocompletion=complete_tasks,
        metavar="T[,T]",
    ),
]
SweepMethods = Annotated[
    list[str] | None,
    what(
        "--method",
        help="Run only these methods of the sweep.",
        autocompletion=complete_methods,
        metavar="M[,M]",
    ),
]
SweepSeeds = Annotated[
    list[str] | None, what("--seed", help="Run these seeds instead of the sweep's: 0, 0,2 or 0-4.")
]
Model = Annotated[
    str | None,
    what(
        help="Hub name, checkpoint folder (safetensors), or tiny-bert. \\[bert-large-cased]",
        metavar="NAME|PATH",
    ),
]
Revision = Annotated[str | None, what(help="Branch, tag or commit of a hub model.")]
Data = Annotated[
    str | None,
    what(
        help="hub, mini, or a folder: hub parquet, GLUE TSV, CSV/JSONL. \\[hub]",
        metavar="hub|mini|PATH",
    ),
]
Preset = Annotated[
    str | None,
    how(
        help="smoke: tiny BERT on mini-GLUE, offline, in seconds.", autocompletion=complete_presets
    ),
]
ConfigFile = Annotated[Path | None, how("--config", help="YAML file of settings.", metavar="FILE")]
Set = Annotated[
    list[str] | None,
    how(
        "--set",
        help="Change any setting, such as method.rank=8 or head.pooler=full. Repeatable.",
        metavar="KEY=VALUE",
    ),
]
AllowEmpty = Annotated[
    bool,
    how(
        "--allow-empty",
        help="Allow a method that trains nothing in the layers (BitFit on a model without biases).",
    ),
]
Offline = Annotated[bool, where("--offline", help="Never ask the hub.")]
Device = Annotated[str | None, where(help="Device.", metavar="auto|cpu|cuda:i")]
Jobs = Annotated[
    int,
    where(
        min=1,
        help="Number of runs at a time. Each has a worker process with a GPU, or with a share of "
        "the CPU threads.",
    ),
]
Force = Annotated[bool, keep("--force", help="Repeat finished runs.")]
RetryFailed = Annotated[bool, keep("--retry-failed", help="Repeat failed and diverged runs.")]
Log = Annotated[
    str | None,
    keep(
        "--log",
        help="Write curves to DIR/tensorboard during training (needs the extra tensorboard).",
        autocompletion=lambda incomplete: [n for n in ("tensorboard",) if n.startswith(incomplete)],
        metavar="tensorboard",
    ),
]


OnlyTasks = Annotated[
    list[str] | None,
    only("--task", help="Only these tasks.", autocompletion=complete_tasks, metavar="T[,T]"),
]
OnlyMethods = Annotated[
    list[str] | None,
    only(
        "--method",
        help="Only these methods, or rows as the tables name them: 'full · lr 1e-3', 'full [2]'.",
        autocompletion=complete_methods,
        metavar="M[,M]",
    ),
]
OnlyModels = Annotated[
    list[str] | None, only("--model", help="Only these models.", metavar="NAME[,NAME]")
]
Where = Annotated[
    list[str] | None,
    only(
        "--where",
        help="Only runs with this setting, e.g. train.learning_rate=1e-3. Repeatable.",
        metavar="KEY=VALUE",
    ),
]


def selection_of(**flags: list[str] | None) -> Selection:
    """Return the filters that were given."""
    from spafit_bench.analysis.selection import Selection

    return Selection(**{key: tuple(values) for key, values in given(flags).items()})


def exit_unless(whole: bool) -> None:
    """Exit with code 1 if a run did not finish."""
    if not whole:
        raise typer.Exit(1)


def joined(values: list[str] | None) -> str | None:
    """Join the values of a repeatable option into one comma list; None if it was not given."""
    return None if values is None else ",".join(values)


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were given."""
    return {key: value for key, value in flags.items() if value is not None}

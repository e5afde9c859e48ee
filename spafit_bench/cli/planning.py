"""Commands that show what a method trains, and what settings there are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from spafit_bench.base.errors import UserError
from spafit_bench.base.escaping import printable
from spafit_bench.cli.app import app
from spafit_bench.cli.loading import load_libraries
from spafit_bench.cli.options import (
    AllowEmpty,
    ConfigFile,
    Json,
    Methods,
    Model,
    Offline,
    Preset,
    Revision,
    Set,
    Tasks,
    complete_methods,
    complete_tasks,
    given,
    joined,
)
from spafit_bench.cli.output import columns, print_json, print_text


@app.command(epilog="Example: `spafit-bench plan --method spafit-4-9-ii --model bert-large-cased`")
def plan(
    method: Annotated[
        str,
        typer.Option(
            help="Method, a YAML file, or the one-line form.", autocompletion=complete_methods
        ),
    ] = "spafit",
    model: Model = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Task that sets the number of outputs. \\[two labels]",
            autocompletion=complete_tasks,
        ),
    ] = None,
    revision: Revision = None,
    offline: Offline = False,
    assignments: Set = None,
    allow_empty: AllowEmpty = False,
    as_json: Json = False,
) -> None:
    """Show layer by layer what a method trains, without loading weights."""
    from spafit_bench.config.selection import RunRequest, run_configs

    flags = given(
        {
            "model": model,
            "revision": revision,
            "offline": offline or None,
            "allow_empty": allow_empty or None,
        }
    )
    request = RunRequest(
        task=task or "mrpc", method=method, flags=flags, assignments=tuple(assignments or ())
    )
    configs = run_configs(request)
    if len(configs) > 1:
        raise UserError("plan shows one method and one task at a time; name one of each")
    [config] = configs
    load_libraries([(config.model, config.revision, config.offline)], weights=False)

    from spafit_bench.cli.views.plan import plan_json, plan_picture
    from spafit_bench.data.custom_tasks import find_task
    from spafit_bench.methods.plan import check_layers_train
    from spafit_bench.models.checkpoint import find_checkpoint
    from spafit_bench.training.prepare import model_shapes, plan_method

    found = find_task(config.task).task
    checkpoint = find_checkpoint(
        config.model, revision=config.revision, offline=config.offline, weights=False
    )
    shapes = model_shapes(checkpoint, found)
    made, warnings = plan_method(config.resolved_method(), checkpoint, shapes, head=config.head)
    if not config.allow_empty:
        check_layers_train(made)
    if as_json:
        body = plan_json(made, checkpoint, found.num_labels) | {"warnings": list(warnings)}
        print_json(body if task is None else body | {"task": found.name})
    else:
        notes = "".join(f"warning: {warning}\n" for warning in warnings)
        picture = plan_picture(made, checkpoint, found.num_labels)
        print_text(picture + printable(notes), styled=True)


app.command(name="params", help="Alias of plan.", hidden=True)(plan)


config_app = typer.Typer(no_args_is_help=True, help="Show the settings that there are.")
app.add_typer(config_app, name="config")


@config_app.command(epilog="Example: `spafit-bench config schema --json > schema.json`")
def schema(as_json: Json = False) -> None:
    """Show every setting of a run; with --json as a JSON schema for editors."""
    from spafit_bench.config.reference import configuration_keys
    from spafit_bench.config.run_config import RunConfig

    if as_json:
        print_json(RunConfig.model_json_schema())
        return
    rows = [asdict(key) for key in configuration_keys()]
    print_text(columns(("name", "values", "default", "meaning"), rows))


@config_app.command(
    epilog="Example: `spafit-bench config show --task mrpc --method lora > mine.yaml`"
)
def show(
    task: Tasks = None,
    method: Methods = None,
    preset: Preset = None,
    config: ConfigFile = None,
    assignments: Set = None,
    as_json: Json = False,
) -> None:
    """Show the settings that `run` would use, as YAML for --config."""
    import yaml

    from spafit_bench.config.selection import RunRequest, run_configs

    request = RunRequest(
        task=joined(task) or "mrpc",
        method=joined(method) or "spafit",
        preset=preset,
        config=config,
        assignments=tuple(assignments or ()),
    )
    configs = run_configs(request)
    if len(configs) > 1:
        raise UserError("config show shows one method and one task at a time; name one of each")
    body = configs[0].model_dump(mode="json")
    if as_json:
        print_json(body)
    else:
        print_text(yaml.safe_dump(body, sort_keys=False).rstrip())

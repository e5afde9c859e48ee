"""What `plan` does."""

from __future__ import annotations

from dataclasses import replace

from spafit_bench.base.errors import UserError
from spafit_bench.cli.commands.output import to_json
from spafit_bench.config.selection import RunRequest, run_configs


def plan(request: RunRequest, *, as_json: bool) -> str:
    """Show what a method trains in a model."""
    from spafit_bench.data.custom_tasks import find_task

    two_labels = request.task is None
    request = replace(request, task=request.task or "mrpc")
    configs = run_configs(request)
    if len(configs) > 1:
        raise UserError("plan shows one method (and task) at a time; name one, not several")
    config = configs[0]
    from spafit_bench.cli.views.plan import plan_json, plan_picture
    from spafit_bench.models.checkpoint import find_checkpoint
    from spafit_bench.training.prepare import model_shapes, plan_method

    task = find_task(config.task).task
    checkpoint = find_checkpoint(
        config.model, revision=config.revision, offline=config.offline, weights=False
    )
    made, warnings = plan_method(
        config.resolved_method(),
        checkpoint,
        model_shapes(checkpoint, task),
        head=config.head,
    )
    if as_json:
        body = plan_json(made, checkpoint, task.num_labels) | {"warnings": list(warnings)}
        return to_json(body if two_labels else body | {"task": task.name})
    text = plan_picture(made, checkpoint, task.num_labels)
    return text + "".join(f"warning: {warning}\n" for warning in warnings)

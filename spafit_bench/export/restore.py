"""Rebuilds the trained model of a finished run: the base model plus what the run trained.

    restored = load_run(Store(Path("results")), "mrpc-spafit")
    logits = restored.adapted.model(**inputs).logits

The data that the run was trained on need not be there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from pydantic import ValidationError
from torch import Tensor

from spafit_bench.base.checksums import check_file
from spafit_bench.base.errors import UserError
from spafit_bench.base.frozen import first_problem
from spafit_bench.config.run_config import RunConfig
from spafit_bench.data.load import TaskData
from spafit_bench.data.tasks import Task
from spafit_bench.methods.method import get_method, parse_method
from spafit_bench.methods.plan import Plan, make_plan
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.checkpoint import (
    Checkpoint,
    find_checkpoint,
    fingerprint,
    parameter_shapes,
    stored_tensors,
)
from spafit_bench.models.numerics import choose_numerics
from spafit_bench.results.lookup import FoundRun, find_run
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_record
from spafit_bench.results.store import Store
from spafit_bench.training.prepare import PreparedRun, plan_method
from spafit_bench.training.run import build_model


@dataclass(frozen=True, kw_only=True)
class Base:
    """Where the base model is, and how the restored one computes."""

    model: str | None = None
    """Checkpoint folder or hub name, where it is not the one that the record names."""
    offline: bool = False
    device: str = "cpu"
    precision: str | None = "fp32"
    """None: the precision that the run was evaluated in."""
    other_weights: bool = False
    """Accept weights that are not the ones that the run was trained on."""


@dataclass(frozen=True)
class RestoredRun:
    """A trained model, as it was when its run ended."""

    record: RunRecord
    config: RunConfig
    task: Task
    checkpoint: Checkpoint
    """Of the base model; also where the tokenizer is."""
    adapted: AdaptedModel
    """In evaluation mode."""
    warnings: tuple[str, ...]
    """Whatever makes this model less than certain to be the one that was evaluated."""


def load_run(store: Store, run: str, base: Base | None = None) -> RestoredRun:
    """Rebuild the model of a run, on the CPU in fp32 unless `base` says otherwise.

    Args:
        store: where the run is.
        run: its name, an unambiguous beginning of it, or a folder that `export` wrote as `merged`
            or `delta`.
        base: where the base model is.

    Raises:
        UserError: no such run, one without a result or without trained tensors, or a base model
            that is missing or not the one that the run was trained on.
    """
    return restore(find_run(run, store), base or Base())


def load_delta(folder: Path, base: Base | None = None) -> RestoredRun:
    """Rebuild a model from a folder that `export --format delta` wrote; see `load_run`."""
    return restore(FoundRun(read_record(folder / "record.json"), folder), base or Base())


def restore(found: FoundRun, base: Base) -> RestoredRun:
    """Rebuild the model of a run that has been found; see `load_run`."""
    record = found.record
    if record.status != "done":
        raise UserError(
            f"{record.run_id} is {record.status} ({record.reason}), so there is no model of it; "
            "repeat it with `spafit-bench run --retry-failed`"
        )
    task, merged = record.task_facts, is_merged(found)
    warnings: tuple[str, ...] = ()
    state = {} if merged else _read_state(found)
    config = recorded_config(record)
    if merged:
        if base.model:
            raise UserError(f"--model {base.model}: {found.folder} is a whole model; omit --model")
        checkpoint = find_checkpoint(str(found.folder))
        shapes = parameter_shapes(checkpoint, task)
        # Every tensor is read from the export, as if full fine-tuning had trained it.
        plan, _ = plan_method(get_method("full"), checkpoint, shapes, head=config.head)
        state = dict(stored_tensors(checkpoint, list(shapes)))
    else:
        checkpoint = _find_base(record, config, base)
        warnings = _check_base(record, checkpoint, other_weights=base.other_weights)
        plan = recorded_plan(record, checkpoint, task)
    _check_state(found, plan, state)
    weights_sha256, files_sha256 = fingerprint(checkpoint)
    prepared = PreparedRun(
        config=config,
        task=task,
        data=_no_data(record, task),
        checkpoint=checkpoint,
        weights_sha256=weights_sha256,
        files_sha256=files_sha256,
        plan=plan,
        numerics=choose_numerics(base.device, base.precision or record.environment.precision),
        engine=record.environment.engine,
        kernels=record.environment.kernels,
        warnings=record.warnings,
        run_id=record.run_id,
    )
    adapted = build_model(prepared)
    adapted.restore(state)
    adapted.model.eval()
    return RestoredRun(record, config, task, checkpoint, adapted, warnings)


def is_merged(found: FoundRun) -> bool:
    """Tell whether a run was found in a folder that `export --format merged` wrote."""
    names = ("adapter.safetensors", "config.json")
    return [(found.folder / name).is_file() for name in names] == [False, True]


def recorded_config(record: RunRecord) -> RunConfig:
    """Return the configuration that a run had.

    Raises:
        UserError: the record's configuration has keys or values that this version does not know.
    """
    settings = copy.deepcopy(record.config)
    settings.get("method", {}).pop("spec", None)
    try:
        return RunConfig.model_validate(settings)
    except ValidationError as error:
        key, problem = first_problem(error)
        raise UserError(
            f"{record.run_id}: the recorded setting {key} is not one of this version "
            f"({problem}); use the spafit-bench that wrote it, "
            f"{record.environment.packages.get('spafit-bench', 'version unknown')}"
        ) from None


def recorded_plan(record: RunRecord, checkpoint: Checkpoint, task: Task) -> Plan:
    """Plan anew what a run trained, from the one-line method of its record.

    Raises:
        UserError: the plan does not fit the checkpoint, or does not train what the run did.
    """
    method = parse_method(record.config["method"]["spec"])
    # A preset's bias pattern may match nothing in an encoder without biases: it did so then.
    method = replace(method, name=record.method, is_preset=True)
    plan = make_plan(
        method,
        checkpoint.architecture,
        parameter_shapes(checkpoint, task),
        fresh=record.weights.fresh_tensors,
    )
    if plan.trainable_parameters != record.trainable_parameters:
        raise UserError(
            f"{record.run_id} trained {record.trainable_parameters:,} parameters, but "
            f"{method.spec} trains {plan.trainable_parameters:,} in {checkpoint.path}: "
            "if this is another base model, give the right one with --model"
        )
    return plan


def _find_base(record: RunRecord, config: RunConfig, base: Base) -> Checkpoint:
    name = base.model or config.model
    revision = None if base.model or Path(name).is_dir() else record.weights.revision
    try:
        return find_checkpoint(name, revision=revision, offline=base.offline)
    except UserError as error:
        if base.model:
            raise
        raise UserError(
            f"the base model of {record.run_id} was {name!r}, which cannot be used now ({error}); "
            "give its place with --model"
        ) from None


def _check_base(
    record: RunRecord, checkpoint: Checkpoint, *, other_weights: bool
) -> tuple[str, ...]:
    """Compare hashes with the record's; return warnings."""
    warnings = []
    weights, files = fingerprint(checkpoint)
    if weights != record.weights.weights_sha256:
        problem = (
            f"the weights in {checkpoint.path} (hash {weights[:12]}) are not those that "
            f"{record.run_id} was trained on (hash {record.weights.weights_sha256[:12]})"
        )
        if not other_weights:
            raise UserError(
                f"{problem}; give the right folder with --model, or --other-weights if these are "
                "the same tensors in another file"
            )
        warnings.append(problem)
    if files != record.weights.files_sha256:
        warnings.append(
            f"configuration or tokenizer files in {checkpoint.path} have changed since "
            f"{record.run_id}: its texts may be cut into other tokens now"
        )
    return tuple(warnings)


def _read_state(found: FoundRun) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, run_id = found.folder / "adapter.safetensors", found.record.run_id
    repeat = "repeat the run with --force to have it again"
    if not path.is_file():
        if found.record.config.get("save_weights") == "none":
            raise UserError(
                f"{run_id} ran with --save-weights none, so nothing that it trained was kept; "
                "repeat it with --force --save-weights best"
            )
        raise UserError(f"{path} is missing: there is nothing to restore; {repeat}")
    check_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); {repeat}") from None


def _check_state(found: FoundRun, plan: Plan, state: dict[str, Tensor]) -> None:
    """Make sure that the stored tensors are exactly those that the plan trains."""
    wanted = trained_shapes(plan)
    stored = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if stored == wanted:
        return
    name = sorted({n for n in stored.keys() | wanted.keys() if stored.get(n) != wanted.get(n)})[0]
    file = "model.safetensors" if is_merged(found) else "adapter.safetensors"
    raise UserError(
        f"{found.folder / file}: tensor {name!r} has shape {stored.get(name)}, "
        f"but the run's method and base model need {wanted.get(name)}: the file is not this run's; "
        "repeat the run with --force to have it again"
    )


def trained_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that a plan trains, adapters included."""
    shapes: dict[str, tuple[int, ...]] = {}
    for tensor in plan.tensors:
        if tensor.trains:
            shapes[tensor.name] = tensor.shape
        if tensor.lora is not None:
            path = tensor.name.removesuffix(".weight")
            out_features, in_features = tensor.shape
            shapes[f"{path}.lora_A"] = (tensor.lora.rank, in_features)
            shapes[f"{path}.lora_B"] = (out_features, tensor.lora.rank)
            if tensor.lora.dora:
                shapes[f"{path}.lora_magnitude"] = (out_features,)
    return shapes


def _no_data(record: RunRecord, task: Task) -> TaskData:
    """Stand in for the data: a restored model is not trained."""
    return TaskData(
        task=task,
        source=record.data.source,
        splits=MappingProxyType({}),
        fingerprint=record.data.fingerprint,
        official_split=record.official_split,
        official_basis=record.data.official_basis,
    )


@torch.no_grad()
def merge_adapters(restored: RestoredRun) -> None:
    """Fold every adapter into its matrix, in place: the model is a plain one afterwards."""
    from spafit_bench.models.adapters import LoraLinear

    model = restored.adapted.model
    for path, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            has_bias = module.bias is not None
            linear = torch.nn.Linear(
                module.in_features, module.out_features, bias=has_bias, device="meta"
            )
            linear.weight = torch.nn.Parameter(module.merged_weight())
            linear.bias = module.bias
            model.set_submodule(path, linear)

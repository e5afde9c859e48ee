"""Everything about a run that is known before its weights are loaded: what it is, and its name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from spafit_bench.base import distributed
from spafit_bench.base.errors import UserError
from spafit_bench.config.run_config import HeadSettings, RunConfig
from spafit_bench.data.custom_tasks import TaskDefinition, find_task
from spafit_bench.data.load import TaskData, hold_out, limited, load_task_data
from spafit_bench.data.tasks import Task
from spafit_bench.methods.budget import match_budget
from spafit_bench.methods.method import Method
from spafit_bench.methods.plan import Plan, check_layers_train, make_plan
from spafit_bench.models.checkpoint import (
    Checkpoint,
    find_checkpoint,
    fingerprint,
    fresh_parameters,
    identities,
    parameter_shapes,
    unreadable_weights,
    untrained_pooler,
    weight_files,
)
from spafit_bench.models.encoding import (
    load_tokenizer,
    segment_warning,
    tokenizer_problem,
)
from spafit_bench.models.engines import check_graphs, check_prefix, engine_name
from spafit_bench.models.fused import kernels_name
from spafit_bench.models.numerics import Numerics, choose_numerics

TRIED_ROWS = 200
"""Training rows that a tokenizer is tried on."""
_AS_THE_METHOD_SAYS = HeadSettings()


class InputChanged(Exception):  # noqa: N818 (the run fails; it is no error of ours)
    """A file of the checkpoint changed after the run was prepared."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start: every input has been found and checked."""

    config: RunConfig
    task: Task
    data: TaskData
    checkpoint: Checkpoint
    weights_sha256: str
    files_sha256: str
    plan: Plan
    numerics: Numerics
    engine: str
    """`fast` or `plain`."""
    kernels: str | None
    """Of the fast engine: `native` or `torch`."""
    warnings: tuple[str, ...]
    definition: TaskDefinition | None = None
    """Of a task beyond GLUE."""
    run_id: str = ""
    """Computed once, by `Preparer.prepare`: threads and processes are those of that moment."""

    @property
    def method(self) -> str:
        """The method's name; a file of a method has it inside, whatever the file is called."""
        return self.plan.method.name

    @property
    def model(self) -> str:
        """The model's name without the folder it was in."""
        return self.checkpoint.short_name

    @property
    def prefix_layers(self) -> int:
        """Layers whose output is kept, and in which nothing is dropped then."""
        return self.plan.frozen_layers if self.config.cache_prefix else 0

    def check_inputs(self) -> None:
        """Make sure that the checkpoint's files still are those that gave the run its name.

        Data needs no such check: it was hashed as it was read, and is not read again.

        Raises:
            InputChanged: they are not, or cannot be read.
        """
        what = "changed after this run was prepared; give the run files that nobody changes"
        try:
            weights, files = fingerprint(self.checkpoint)
        except (OSError, UserError) as error:
            raise InputChanged(f"{self.checkpoint.path}: the files {what} ({error})") from None
        if weights != self.weights_sha256:
            raise InputChanged(f"{self.checkpoint.path}: the weights {what}")
        if files != self.files_sha256:
            raise InputChanged(f"{self.checkpoint.path}: configuration or tokenizer {what}")

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Check the inputs before and after the block, which reads them.

        Raises:
            InputChanged: a file is not as it was, or changed while it was read.
        """
        self.check_inputs()
        before = identities(self.checkpoint)
        yield
        self.check_inputs()
        if identities(self.checkpoint) != before:
            raise InputChanged(f"{self.checkpoint.path}: a file changed while it was read")


def _name(run: PreparedRun) -> str:
    """Return a readable name that ends in a hash of everything that changes the result."""
    on_cpu = run.numerics.device.type == "cpu"
    identity = run.config.settings_in_name() | {
        "task": run.task.name,
        "method": run.plan.method.spec,
        "weights": run.weights_sha256,
        "files": run.files_sha256,
        "data": run.data.fingerprint,
        "precision": run.numerics.precision,
        "engine": run.engine,
        "device": run.numerics.device.type,
        "threads": torch.get_num_threads() if on_cpu else None,
    }
    if run.kernels == "native":
        identity["kernels"] = run.kernels  # which drop other elements
    if distributed.size() > 1:
        identity["processes"] = distributed.size()
    canonical = json.dumps(identity, sort_keys=True).encode()
    digest = hashlib.sha256(canonical).hexdigest()[:10]
    parts = (run.task.name, _slug(run.method), _slug(run.model.rpartition("/")[2]))
    return f"{'-'.join(parts)}-s{run.config.seed}-{digest}"


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    return slug[:40].strip("-.") or "x"


@dataclass
class Preparer:
    """Prepares runs, finding each data set and checkpoint once."""

    data: dict[tuple[object, ...], TaskData] = field(default_factory=dict)
    """Task, source, split, limit and held-out share -> rows."""
    checkpoints: dict[tuple[str, str | None], Checkpoint] = field(default_factory=dict)
    hashes: dict[Path, tuple[str, str]] = field(default_factory=dict)
    """Checkpoint folder -> `fingerprint` when the checkpoint was found."""
    tokenizers: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    """Checkpoint folder -> warnings about its tokenizer."""
    tried: dict[tuple[Path, str], tuple[str, ...]] = field(default_factory=dict)
    """Checkpoint folder and data -> warnings about what the tokenizer does to the texts."""
    shapes: dict[tuple[Path, int], dict[str, tuple[int, ...]]] = field(default_factory=dict)
    heads: dict[tuple[Path, int], tuple[str, ...]] = field(default_factory=dict)
    """As `shapes`: warnings about a stored classifier."""
    numerics: Callable[[str, str], Numerics] = choose_numerics
    """Device and precision -> numerics; another's where another machine will compute."""
    kernels: Callable[[Numerics], str] = kernels_name
    """Numerics -> kernels of the fast engine; likewise."""

    def prepare(self, config: RunConfig) -> PreparedRun:
        """Find and check everything that a run needs.

        Raises:
            UserError: anything that would keep the run from starting.
        """
        found = find_task(config.task)
        task = found.task
        method = config.resolved_method()
        numerics = self.numerics(config.device, config.precision)
        checkpoint = self._checkpoint(config)
        _check_length(config, checkpoint)
        plan, warnings = self._plan(config, task, method, checkpoint)
        if not config.allow_empty:
            check_layers_train(plan)
        if config.cache_prefix:
            check_prefix(config.engine, checkpoint.config, plan)
        if config.cuda_graphs:
            check_graphs(config.engine, checkpoint.config, plan, numerics)
        rows = self._whole(config, task).splits["train"].num_rows
        if config.limit is not None and config.limit >= rows:
            config = config.model_copy(update={"limit": None})  # nothing is cut
        data = self._data(config, task)
        weights_sha256, files_sha256 = self.hashes[checkpoint.path]
        engine = engine_name(config.engine, checkpoint.config, plan)
        run = PreparedRun(
            config=config,
            task=data.task,
            data=data,
            checkpoint=checkpoint,
            weights_sha256=weights_sha256,
            files_sha256=files_sha256,
            plan=plan,
            numerics=numerics,
            engine=engine,
            kernels=self.kernels(numerics) if engine == "fast" else None,
            warnings=(*data.notes, *self._tokenizer_warnings(checkpoint, data), *warnings),
            definition=found.definition,
        )
        return replace(run, run_id=_name(run))

    def _tokenizer_warnings(self, checkpoint: Checkpoint, data: TaskData) -> tuple[str, ...]:
        """Try the tokenizer on the first training texts.

        Raises:
            UserError: it does not understand them.
        """
        key = (checkpoint.path, data.fingerprint)
        if key not in self.tried:
            columns = data.splits["train"].texts
            texts = [text for column in columns for text in column[:TRIED_ROWS]]
            problem, warning = tokenizer_problem(load_tokenizer(checkpoint), checkpoint, texts)
            if problem:
                raise UserError(problem)
            self.tried[key] = (warning,) if warning else ()
        return (*self.tokenizers[checkpoint.path], *self.tried[key])

    def _checkpoint(self, config: RunConfig) -> Checkpoint:
        key = (config.model, config.revision)
        if key not in self.checkpoints:
            found = find_checkpoint(config.model, revision=config.revision, offline=config.offline)
            self.hashes[found.path] = fingerprint(found)
            self.tokenizers[found.path] = _check_tokenizer(found)
            self.checkpoints[key] = found
        return self.checkpoints[key]

    def _whole(self, config: RunConfig, task: Task) -> TaskData:
        key = (config.task, config.data, config.split, None, None)
        if key not in self.data:
            self.data[key] = load_task_data(
                task, config.data, offline=config.offline, split=config.split
            )
        return self.data[key]

    def _data(self, config: RunConfig, task: Task) -> TaskData:
        key = (config.task, config.data, config.split, config.limit, config.holdout)
        if key not in self.data:  # trials of a choice share one slice
            data = limited(self._whole(config, task), config.limit)
            self.data[key] = data if config.holdout is None else hold_out(data, config.holdout)
        return self.data[key]

    def _plan(
        self, config: RunConfig, task: Task, method: Method, checkpoint: Checkpoint
    ) -> tuple[Plan, tuple[str, ...]]:
        key = (checkpoint.path, task.num_labels)
        if key not in self.shapes:
            self.shapes[key] = model_shapes(checkpoint, task)
            self.heads[key] = _check_stored(checkpoint, self.shapes[key])
        plan, warnings = plan_method(method, checkpoint, self.shapes[key], head=config.head)
        return plan, (*self.heads[key], *warnings)


def plan_method(
    method: Method,
    checkpoint: Checkpoint,
    shapes: dict[str, tuple[int, ...]],
    *,
    head: HeadSettings = _AS_THE_METHOD_SAYS,
) -> tuple[Plan, tuple[str, ...]]:
    """Plan a method on a checkpoint, and say what a user should know about its head.

    Args:
        method: not yet resolved for the depth.
        checkpoint: with or without weights.
        shapes: every parameter of the model with a task's head.
        head: of the run; a pooler that will be drawn anew counts as fresh.

    Returns:
        The plan and warnings.
    """
    architecture, fresh_pooler = checkpoint.architecture, head.pooler_init == "fresh"
    fresh = set(fresh_parameters(checkpoint, list(shapes)))
    pooler = [n for n in shapes if n.startswith(tuple(f"{p}." for p in architecture.pooler))]
    if fresh_pooler:
        fresh |= set(pooler)
    in_order = [name for name in shapes if name in fresh]

    def planned(method: Method) -> Plan:
        return make_plan(method, architecture, shapes, fresh=in_order)

    notes = []
    if method.matches is not None:
        method, note = match_budget(method, planned)
        notes.append(note)
    plan = planned(method)
    warnings = [*notes, *plan.warnings]
    if not pooler and head != HeadSettings() and not any(w.startswith("pooler:") for w in warnings):
        warnings.append(f"settings of head.pooler change nothing: {checkpoint.name} has no pooler")
    if fresh & set(pooler) and not fresh_pooler:
        warnings.append(
            f"{checkpoint.name} has no pooler: it starts from the seed and trains in full, "
            "as --set head.pooler=full states"
        )
    elif pooler and plan.treatment_of("pooler") != "full" and untrained_pooler(checkpoint):
        warnings.append(
            f"the pooler of {checkpoint.name} was never trained (its bias is exactly 0), and "
            f"{method.name} keeps its matrix frozen, which makes models predict one class; "
            "use --set head.pooler=full"
        )
    return plan, tuple(warnings)


def model_shapes(checkpoint: Checkpoint, task: Task) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of the model with a task's head.

    Raises:
        UserError: no model can be built from the checkpoint's configuration.
    """
    try:
        return parameter_shapes(checkpoint, task)
    except UserError:
        raise
    except Exception as error:  # what it raises depends on the architecture
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{checkpoint.path / 'config.json'}: no model can be built from it ({reason:.200})"
        ) from error


def _check_tokenizer(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Refuse a tokenizer that does not fit the encoder; return warnings."""
    tokenizer = load_tokenizer(checkpoint)
    try:
        segments = segment_warning(tokenizer, checkpoint)
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"{checkpoint.path}: the tokenizer is damaged ({error})") from None
    rows = checkpoint.config.get("vocab_size")
    if isinstance(rows, int) and len(tokenizer) > rows:
        raise UserError(
            f"{checkpoint.path}: the tokenizer has {len(tokenizer)} tokens, but the encoder has "
            f"{rows} (vocab_size in config.json); they are not of one checkpoint"
        )
    warnings = [segments] if segments else []
    if isinstance(rows, int) and len(tokenizer) < 0.9 * rows:
        warnings.append(
            f"the tokenizer of {checkpoint.name} has {len(tokenizer)} tokens, but the encoder has "
            f"{rows}; is the vocabulary cut short?"
        )
    return tuple(warnings)


def _check_stored(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Refuse weights that do not fit the configuration; warn about a head of another task."""
    warnings: list[str] = []
    root, _, rest = checkpoint.architecture.layers.partition(".")
    in_layer = re.compile(rf"(?:{root}\.)?{re.escape(rest)}\.(\d+)\.")
    bare = {name.partition(".")[2]: shape for name, shape in shapes.items()}
    for file in weight_files(checkpoint.path):
        for key, shape in _stored_shapes(file).items():
            wanted = shapes.get(key, bare.get(key))
            problem = f"has shape {shape}, but the model asks for {wanted}"
            layer = in_layer.match(key)
            if layer and int(layer[1]) >= checkpoint.num_layers:
                problem = f"is of layer {layer[1]}, but there are {checkpoint.num_layers} layers"
            elif wanted is None or wanted == shape:
                continue
            elif key.startswith(checkpoint.architecture.classifier):
                if shape[0] != wanted[0] and not warnings:
                    warnings.append(
                        f"the classifier of {checkpoint.name} has {shape[0]} outputs, so a new one "
                        f"with {wanted[0]} replaces it"
                    )
                continue
            raise UserError(f"{file}: {key} {problem}; compare the checkpoint with its config.json")
    return tuple(warnings)


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            names = list(tensors.keys())
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise unreadable_weights(file, error) from None


def _check_length(config: RunConfig, checkpoint: Checkpoint) -> None:
    most = checkpoint.most_tokens
    if most is not None and config.train.max_length > most:
        raise UserError(
            f"--max-length {config.train.max_length}: {checkpoint.name} has only {most} positions"
        )

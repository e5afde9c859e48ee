"""The record of one run: its configuration, metrics, costs and where its inputs came from.

Tables, statistics and plots know runs only through this module. Metrics are in native scale here
(accuracy 0.84, not 84) and times 100 only in tables.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from spafit_bench.base.checksums import SUMS
from spafit_bench.base.errors import DamagedError, UserError
from spafit_bench.base.frozen import Frozen, first_problem
from spafit_bench.data.custom_tasks import TaskDefinition
from spafit_bench.data.tasks import Task, get_task

SCHEMA_VERSION = 2
RUN_ID = r"^[^./\x00][^/\x00]{0,250}$"
"""Pattern of run ids: a run id is also the name of a folder, so it must be a plain file name."""

Status = Literal["done", "diverged", "failed", "interrupted"]
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that may be NaN, which is null in JSON."""
SplitMetrics = dict[str, dict[str, Number]]
"""Split -> metric -> value in native scale."""


def checked_run_id(run_id: str) -> str:
    """Return the run id; raise a UserError if it is not a plain file name."""
    if not re.match(RUN_ID, run_id):
        raise UserError(f"not a run id: {run_id!r:.300}")
    return run_id


class Evaluation(Frozen):
    """Every dev metric at one point of training."""

    step: int
    epoch: float
    train_loss: float | None
    """Mean training loss since the evaluation before, per example."""
    metrics: SplitMetrics


class StratumCount(Frozen):
    """Parameters of one stratum: a group of layers, the embeddings or a part of the head."""

    stratum: str
    treatment: str
    parameters: int
    """Of the base model, without adapters."""
    trainable: int
    """With adapters."""


class DataProvenance(Frozen):
    """The texts and labels that a run was trained and scored on."""

    source: str
    fingerprint: str
    """SHA-256 over texts and labels of every split, without test labels and `idx`."""
    official_basis: str
    """Why `official_split` is true or false: `fingerprint`, `row count`, or what differs."""
    rows: dict[str, int]
    """Rows of each split that were used (train after `--limit`)."""


class ModelProvenance(Frozen):
    """The pretrained weights that a run started from."""

    revision: str | None
    weights_sha256: str
    files_sha256: str
    """SHA-256 of the configuration and tokenizer files together."""
    architecture: str
    num_layers: int
    fresh_tensors: tuple[str, ...]
    """Tensors that the checkpoint lacks, so that the seed initialised them."""


class Environment(Frozen):
    """Machine and versions; `run_id` depends on device, precision, engine, threads, processes."""

    host: str
    device: str
    device_name: str
    precision: str
    engine: str = "plain"
    """`fast` or `plain`: how logits were computed."""
    kernels: str | None = None
    """`native` (compiled) or `torch`; None in older records and for the plain engine."""
    num_threads: int
    """Threads of each process."""
    world_size: int = 1
    """Processes that shared every batch; peak memory is that of the first."""
    python: str
    packages: dict[str, str]
    git_commit: str | None
    command: str


class LayerDrift(Frozen):
    """How far training moved the hidden states behind one layer; see `forgetting.py`."""

    cka: Number
    """Linear CKA with the pretrained encoder's: 1 is unchanged (up to rotation and scale)."""
    relative_distance: Number
    """Frobenius distance over the norm of the pretrained encoder's: 0 is unchanged."""


class Movement(Frozen):
    """How far training moved a group of parameters; see `movement.py`."""

    change: Number
    """Frobenius norm of what training changed, adapters included: 0 where frozen."""
    pretrained: Number
    """Frobenius norm of the same parameters before."""

    @property
    def relative(self) -> float | None:
        """The change divided by `pretrained`; None if that is 0."""
        return self.change / self.pretrained if self.pretrained else None


class ClassScores(Frozen):
    """How well one class is found; 0 where the formula gives 0 / 0."""

    precision: float
    """Share of the examples predicted as this class that are of it."""
    recall: float
    """Share of the examples of this class that are predicted as it."""
    f1: float


class Confusion(Frozen):
    """The examples of one split by true and predicted class."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """One row per true class, one number per predicted class."""
    scores: dict[str, ClassScores]

    @classmethod
    def of(cls, classes: tuple[str, ...], counts: tuple[tuple[int, ...], ...]) -> Confusion:
        """Return counts with the precision, recall and F1 of each class."""
        scores = {}
        for number, name in enumerate(classes):
            hits, true = counts[number][number], sum(counts[number])
            predicted = sum(row[number] for row in counts)
            scores[name] = ClassScores(
                precision=hits / max(predicted, 1),
                recall=hits / max(true, 1),
                f1=2 * hits / max(true + predicted, 1),
            )
        return cls(classes=classes, counts=counts, scores=scores)


class RunRecord(Frozen):
    """One run. Keys at the top level are a contract that other tools rely on."""

    schema_version: int = SCHEMA_VERSION
    run_id: str = Field(pattern=RUN_ID)
    status: Status
    reason: str | None = None
    """Why a run is not `done`."""
    retry: bool = False
    """Whether a run failed for a cause outside itself (permissions, disk, memory, network, a
    process that was killed), so that the same command tries it again."""
    task: str
    task_definition: TaskDefinition | None = None
    """The content of the task's file, for tasks beyond GLUE."""
    method: str
    model: str
    seed: int
    official_split: bool
    train_limit: int | None
    holdout: float | None = None
    """Share of train used instead of dev; such a run is only a trial for choosing a setting."""
    select: Literal["last", "best"]
    metrics: SplitMetrics = Field(default_factory=dict)
    """The metrics of the evaluation that `select` chose."""
    score: float | None = None
    """The mean over dev splits of the mean of the task's metrics, native scale."""
    last: Evaluation | None = None
    best: Evaluation | None = None
    evaluations: tuple[Evaluation, ...] = ()
    majority: SplitMetrics = Field(default_factory=dict)
    """The same metrics for predicting train's most frequent class (or mean) everywhere."""
    confusion: dict[str, Confusion] | None = None
    """Of the chosen evaluation, for each split with labels; None for a regression and in records
    from before it was kept."""
    collapsed: bool = False
    """Whether the chosen evaluation predicts a constant on any dev split."""
    trainable_parameters: int
    base_parameters: int
    trainable_percent: float
    strata: tuple[StratumCount, ...]
    train_time_s: float | None = None
    """Training steps only, without evaluation and set-up."""
    train_tokens: int | None = None
    """Real (unpadded) tokens trained on, the first step included."""
    graph_time_s: float | None = None
    """Part of `train_time_s` that recorded CUDA graphs; None without them."""
    train_tokens_per_s: float | None = None
    micro_batch_size: int | None = None
    """Examples of one forward pass in training; None: a whole batch. Smaller than the configured
    one if the device was out of memory."""
    eval_tokens_per_s: float | None = None
    wall_time_s: float
    peak_memory_bytes: int | None = None
    energy_j: float | None = None
    """Energy of the machine's processors, other programs included, for training and predictions;
    None if the machine has no readable counters."""
    stored_bytes: int | None = None
    """Size of `adapter.safetensors`, which this task adds to the shared base model."""
    forgetting: dict[str, LayerDrift] | None = None
    """`embeddings` and layers from `0` -> how far they moved, on the first 256 examples of the
    first dev split; None if not measured. Times and memory above do not include measuring it."""
    movement: dict[str, dict[str, Movement]] | None = None
    """Layers from `0`, and parts around them -> kind of parameter -> how far it moved; None in
    older records. Times and memory above do not include measuring it."""
    started_at: str
    """UTC, ISO 8601."""
    config: dict[str, Any]
    """The full resolved configuration."""
    data: DataProvenance
    weights: ModelProvenance
    environment: Environment
    warnings: tuple[str, ...] = ()

    @property
    def task_facts(self) -> Task:
        """The task; raises a UserError if it is neither of GLUE nor described in the record."""
        return self.task_definition.task() if self.task_definition else get_task(self.task)

    @model_serializer(mode="wrap", when_used="json")
    def _without_nan(self, handler: SerializerFunctionWrapHandler) -> Any:
        """Write NaN and infinity, which JSON does not have, as null."""
        return _finite(handler(self))

    def to_json(self) -> str:
        """Return the content of a `record.json`: keys in their order, one per line."""
        body = self.model_dump(mode="json")
        return json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_record(text: str, where: str, *, sealed: bool = True) -> RunRecord:
    """Return the record of this text; older schemas have the same fields as today's.

    Args:
        text: content of a `record.json`.
        where: its path, for messages.
        sealed: whether there are checksums, which records have since schema version 2.

    Raises:
        DamagedError: the text is not a record.
        UserError: another version of this package wrote it; the message says which is needed.
    """
    path = Path(where)
    try:
        body = json.loads(text)
        version = body.get("schema_version") if isinstance(body, dict) else None
        if type(version) is not int or version < 1:
            raise ValueError("there is no schema_version")
        if version > SCHEMA_VERSION:
            raise UserError(
                f"{path}: written by spafit-bench {_version_of(body)} (record schema {version}; "
                f"this version reads up to {SCHEMA_VERSION}): upgrade to that version or a later "
                "one"
            )
        if version > 1 and not sealed:
            raise DamagedError(path.parent / SUMS, "is missing")
        return RunRecord.model_validate(body | {"schema_version": SCHEMA_VERSION})
    except ValidationError as error:
        _, problem = first_problem(error)
    except RecursionError:
        problem = "nested too deeply"
    except ValueError as error:
        problem = str(error)
    if sealed:
        raise UserError(
            f"{path} is no record that this version reads ({problem}), but its checksum is right: "
            "another version of spafit-bench wrote it; use that version"
        )
    raise DamagedError(path, f"is not a spafit-bench record ({problem})")


def _version_of(body: dict[str, Any]) -> str:
    """Return which version of this package wrote a record whose schema is not known."""
    found: Any = body
    for key in ("environment", "packages", "spafit-bench"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else "of a later version"

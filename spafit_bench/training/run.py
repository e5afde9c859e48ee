"""Carries out one prepared run: from weights to a record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spafit_bench.base import distributed
from spafit_bench.methods.plan import Plan
from spafit_bench.models.adapt import AdaptedModel, adapt, frozen_matrices
from spafit_bench.models.checkpoint import load_model, read_again
from spafit_bench.models.encoding import EncodedSplit
from spafit_bench.models.numerics import seed_everything
from spafit_bench.results.record import (
    DataProvenance,
    Evaluation,
    ModelProvenance,
    RunRecord,
    SplitMetrics,
    Status,
    StratumCount,
)
from spafit_bench.training import memory
from spafit_bench.training.cuda_graphs import CudaRecorder, Graphs
from spafit_bench.training.energy import EnergyMeter
from spafit_bench.training.environment import describe_environment
from spafit_bench.training.evaluation import (
    Predictions,
    confusion_matrices,
    is_collapsed,
    majority_scores,
    predict,
    score_splits,
)
from spafit_bench.training.forgetting import measure_forgetting
from spafit_bench.training.loop import Diverged, Session, Training, train
from spafit_bench.training.movement import measure_movement
from spafit_bench.training.prefix_cache import with_prefixes
from spafit_bench.training.prepare import PreparedRun
from spafit_bench.training.snapshot import Snapshot
from spafit_bench.training.token_cache import encode_task, test_splits

log = logging.getLogger(__name__)

State = Mapping[str, np.ndarray]
"""Trained tensors by name, as stored."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: its record, and what is stored beside it."""

    record: RunRecord
    predictions: Mapping[str, Predictions]
    """Of every dev and test split that was predicted."""
    labels: Mapping[str, np.ndarray]
    """Of the predicted splits that have labels."""
    states: Mapping[str, State]
    """File name -> trained tensors."""


@dataclass
class _DevEvaluation:
    """Evaluates the dev splits, and remembers the predictions of the evaluation to report."""

    prepared: PreparedRun
    adapted: AdaptedModel
    splits: Mapping[str, EncodedSplit]
    stop: Callable[[], bool]
    predictions: dict[str, Predictions] = field(default_factory=dict)
    """Of the evaluation to report: the best so far, or the last."""
    best: float = -np.inf
    best_state: dict[str, Tensor] | None = None
    """Trained tensors of the best evaluation, if `select` is `best`."""
    every_state: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Number of the evaluation, from 1 -> trained tensors, if `save_weights` is `all`."""
    count: int = 0
    tokens: int = 0
    time_s: float = 0.0

    def predict(self, names: Iterable[str]) -> dict[str, Predictions]:
        size = self.prepared.config.train.eval_batch_size
        return {
            name: predict(self.adapted, self.splits[name], batch_size=size, stop=self.stop)
            for name in names
        }

    def __call__(self) -> SplitMetrics:
        config, task = self.prepared.config, self.prepared.task
        new = self.predict(task.dev_splits)
        self.tokens += sum(p.num_tokens for p in new.values())
        self.time_s += sum(p.time_s for p in new.values())
        if not all(np.isfinite(p.logits).all() for p in new.values()):
            raise Diverged("the model's outputs are not finite; try a lower --lr")
        metrics = score_splits(task, new, self.splits)
        score = task.score(metrics) or 0.0
        self.count += 1
        if config.save_weights == "all":
            self.every_state[self.count] = self.adapted.trained_state()
        if config.select == "last":
            self.predictions = new
        elif score > self.best:
            self.predictions, self.best_state = new, self.adapted.trained_state()
        self.best = max(self.best, score)
        return metrics

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and facts that `restore` needs."""
        tensors = {f"dev/{n}": torch.from_numpy(p.logits) for n, p in self.predictions.items()}
        tensors |= {f"best/{n}": t for n, t in (self.best_state or {}).items()}
        for number, state in self.every_state.items():
            tensors |= {f"every/{number}/{n}": t for n, t in state.items()}
        facts = {
            "best": None if np.isinf(self.best) else self.best,
            "states": [*self.every_state],
            "count": self.count,
            "eval_tokens": self.tokens,
            "eval_time_s": self.time_s,
        }
        return tensors, facts

    def restore(self, snapshot: Snapshot) -> None:
        facts = snapshot.facts
        self.predictions = {
            name: Predictions(logits.numpy(), 0, 0.0)
            for name, logits in snapshot.part("dev").items()
        }
        self.best = -np.inf if facts["best"] is None else facts["best"]
        self.best_state = snapshot.part("best") or None
        self.every_state = {n: snapshot.part(f"every/{n}") for n in facts["states"]}
        self.count = facts["count"]
        self.tokens, self.time_s = facts["eval_tokens"], facts["eval_time_s"]


def execute(prepared: PreparedRun, session: Session) -> Outcome:
    """Train and evaluate one run.

    Args:
        prepared: checked inputs.
        session: hears of progress, and keeps the state of the run.

    Returns:
        A record that is `done` or `diverged`, with predictions and trained tensors.

    Raises:
        UserError: the weights or the tokenizer cannot be loaded.
        InputChanged: a file of the checkpoint is no longer the one that gave the run its name.
        KeyboardInterrupt: `session.stop` returned true; the state has been kept.
    """
    clock, started_at = time.perf_counter(), utc_now()
    device, task = prepared.numerics.device, prepared.task
    encoded = encode_task(prepared)  # before the memory reset: only a task's first run encodes
    can_measure = memory.reset_peak_memory(device)
    memory.keep_freed_memory()
    adapted = build_model(prepared)
    splits = with_prefixes(prepared, adapted, encoded, session.stop)
    meter = EnergyMeter.of(device)
    dev = _DevEvaluation(prepared, adapted, splits, session.stop)
    if session.resume is not None:
        facts = session.resume.facts
        dev.restore(session.resume)
        meter.earlier = facts.get("energy_j")
        clock -= facts["wall_time_s"]
        started_at = facts["started_at"]

    def keep(state: Snapshot) -> None:
        tensors, facts = dev.snapshot()
        run_facts = {
            "energy_j": meter.joules(),
            "wall_time_s": time.perf_counter() - clock,
            "started_at": started_at,
        }
        session.keep(Snapshot(state.tensors | tensors, {**state.facts, **facts, **run_facts}))

    training = train(
        adapted,
        splits["train"],
        prepared.config.train,
        seed=prepared.config.seed,
        evaluate=dev,
        session=replace(session, keep=keep),
        graphs=make_graphs(prepared),
    )
    predictions: dict[str, Predictions] = {}
    states: dict[str, State] = {}
    measured = _training_facts(training)
    if training.diverged is None:
        if dev.best_state is not None:
            adapted.restore(dev.best_state)
        predictions = dev.predictions | dev.predict(test_splits(prepared))
        measured |= _scores(prepared, training.evaluations, predictions, splits)
        states = _stored_states(dev)
    measured |= {
        "eval_tokens_per_s": round(dev.tokens / dev.time_s, 1) if dev.time_s else None,
        "wall_time_s": round(time.perf_counter() - clock, 3),
        "peak_memory_bytes": memory.peak_memory_bytes(device) if can_measure else None,
        "energy_j": meter.joules(),
        "majority": majority_scores(task, splits),
    }
    if training.diverged is None and distributed.rank() == 0:  # only its record is stored
        measured |= _distances(dev)
    prepared.check_inputs()  # weights are mapped, so a file changed in place changes the model
    status: Status = "done" if training.diverged is None else "diverged"
    return Outcome(
        record=blank_record(prepared, started_at, status).model_copy(update=measured),
        predictions=predictions,
        labels={n: splits[n].targets for n in predictions if splits[n].labels is not None},
        states=states,
    )


def make_graphs(prepared: PreparedRun) -> Graphs | None:
    """Return what records and replays CUDA graphs, if the user asked for them."""
    wanted = prepared.config.cuda_graphs
    return Graphs(CudaRecorder(prepared.numerics.device)) if wanted else None


def _training_facts(training: Training) -> dict[str, Any]:
    time_s, graph_time_s = training.train_time_s, training.graph_time_s
    trained = training.adapted.trainable().values()
    return {
        "reason": training.diverged,
        "evaluations": tuple(training.evaluations),
        "train_time_s": round(time_s, 3),
        "train_tokens": training.train_tokens,
        "micro_batch_size": training.micro_batch_size,
        "graph_time_s": None if graph_time_s is None else round(graph_time_s, 3),
        "train_tokens_per_s": round(training.train_tokens / time_s, 1),
        "stored_bytes": sum(t.numel() * t.element_size() for t in trained),
    }


def _scores(
    prepared: PreparedRun,
    evaluations: Sequence[Evaluation],
    predictions: Mapping[str, Predictions],
    splits: Mapping[str, EncodedSplit],
) -> dict[str, Any]:
    """Return the last and the best evaluation, and the scores of the one that `select` names."""
    task = prepared.task

    def score(evaluation: Evaluation) -> float:
        return task.score(evaluation.metrics) or 0.0

    last, best = evaluations[-1], max(evaluations, key=score)
    chosen = best if prepared.config.select == "best" else last
    return {
        "last": last,
        "best": best,
        "metrics": chosen.metrics | score_splits(task, predictions, splits),
        "score": score(chosen),
        "confusion": confusion_matrices(task, predictions, splits),
        "collapsed": is_collapsed(task, predictions, splits),
    }


def _stored_states(dev: _DevEvaluation) -> dict[str, State]:
    """Return what `save_weights` keeps, by file name."""
    save_weights = dev.prepared.config.save_weights
    if save_weights == "none":
        return {}
    states = {"adapter.safetensors": dev.adapted.trained_state()}
    every = dev.every_state if save_weights == "all" else {}  # a snapshot may have brought some
    for number, state in every.items():
        states[f"adapter-evaluation-{number}.safetensors"] = state
    return {
        file: {name: tensor.numpy() for name, tensor in state.items()}
        for file, state in states.items()
    }


def _distances(dev: _DevEvaluation) -> dict[str, Any]:
    """Measure how far training moved the model. A failure here does not fail a finished run."""
    prepared, adapted = dev.prepared, dev.adapted
    found: dict[str, Any] = {"movement": measure_movement(adapted, prepared.checkpoint)}
    if prepared.config.measure_forgetting:
        held_out = dev.splits[prepared.task.dev_splits[0]]
        try:
            found["forgetting"] = measure_forgetting(build_model(prepared), adapted, held_out)
        except torch.OutOfMemoryError:
            log.warning("out of memory with a second model: forgetting is not measured")
    return found


def utc_now() -> str:
    """Return the time as records write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def build_model(prepared: PreparedRun) -> AdaptedModel:
    """Load the weights, apply the plan and seed every random generator."""
    config, numerics = prepared.config, prepared.numerics
    with prepared.opening():
        model, fresh = load_model(
            prepared.checkpoint,
            prepared.task,
            seed=config.seed,
            fresh_pooler=config.head.pooler_init == "fresh",
            attention="sdpa" if numerics.device.type == "cuda" else "eager",
        )
        assert fresh == prepared.plan.fresh, (fresh, prepared.plan.fresh)
        frozen = [name for name in frozen_matrices(model, prepared.plan) if name not in fresh]
        if numerics.dtype != torch.float32:
            read_again(model, prepared.checkpoint, frozen, numerics.dtype)
    adapted = adapt(
        model,
        prepared.plan,
        numerics=numerics,
        seed=config.seed,
        engine=prepared.engine,
        prefix_layers=prepared.prefix_layers,
    )
    seed_everything(config.seed)
    return adapted


def blank_record(
    prepared: PreparedRun, started_at: str, status: Status, reason: str | None = None
) -> RunRecord:
    """Return a record of everything that is known before training."""
    config, plan = prepared.config, prepared.plan
    settings = config.model_dump(mode="json")
    settings["method"]["spec"] = plan.method.spec
    rows = {name: split.num_rows for name, split in prepared.data.splits.items()}
    return RunRecord(
        run_id=prepared.run_id,
        status=status,
        reason=reason,
        task=prepared.task.name,
        task_definition=prepared.definition,
        method=prepared.method,
        model=prepared.model,
        seed=config.seed,
        official_split=prepared.data.official_split,
        train_limit=config.limit,
        holdout=config.holdout,
        select=config.select,
        trainable_parameters=plan.trainable_parameters,
        base_parameters=plan.base_parameters,
        trainable_percent=round(plan.trainable_percent, 4),
        strata=_stratum_counts(plan),
        wall_time_s=0.0,
        started_at=started_at,
        config=settings,
        data=DataProvenance(
            source=prepared.data.source,
            fingerprint=prepared.data.fingerprint,
            official_basis=prepared.data.official_basis,
            rows=rows,
        ),
        weights=ModelProvenance(
            revision=prepared.checkpoint.revision,
            weights_sha256=prepared.weights_sha256,
            files_sha256=prepared.files_sha256,
            architecture=prepared.checkpoint.architecture.model_type,
            num_layers=plan.num_layers,
            fresh_tensors=plan.fresh,
        ),
        environment=describe_environment(prepared.numerics, prepared.engine, prepared.kernels),
        warnings=prepared.warnings,
    )


def _stratum_counts(plan: Plan) -> tuple[StratumCount, ...]:
    """Count each stratum of a plan."""
    counts = []
    for name in plan.stratum_names():
        tensors = [tensor for tensor in plan.tensors if tensor.stratum == name]
        counts.append(
            StratumCount(
                stratum=name,
                treatment=plan.treatment_of(name),
                parameters=sum(tensor.num_parameters for tensor in tensors),
                trainable=sum(tensor.num_trainable for tensor in tensors),
            )
        )
    return tuple(counts)

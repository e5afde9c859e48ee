"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from spafit_bench.base import distributed
from spafit_bench.config.run_config import TrainSettings
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.encoding import EncodedSplit, num_batches, training_batches
from spafit_bench.results.record import Evaluation, SplitMetrics
from spafit_bench.training.cuda_graphs import Graphs
from spafit_bench.training.evaluation import Stopped
from spafit_bench.training.gradients import Gradients
from spafit_bench.training.snapshot import Snapshot

log = logging.getLogger(__name__)

LOOK_EVERY = 20
"""Steps between looks at the loss on a GPU, where each look waits for the device."""


class Diverged(Exception):  # noqa: N818 (a result, not an error)
    """Training cannot go on: the loss or the outputs are no longer finite."""


@dataclass(frozen=True)
class Progress:
    """How far training is."""

    step: int
    total_steps: int
    loss: float
    """Mean over the steps since the last evaluation."""
    last_loss: float
    """Mean over the steps since the last look: one step on a CPU."""
    learning_rate: float
    """Of the last step."""
    tokens_per_s: float


class Observer(Protocol):
    """Hears how a run goes; the command line shows it."""

    def on_step(self, progress: Progress) -> None:
        """Hear of training at a step whose loss is known."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Hear of a finished evaluation."""


@dataclass(frozen=True)
class TrainResult:
    """What training did."""

    diverged: str | None
    """Why training ended early, if it did."""
    evaluations: tuple[Evaluation, ...]
    losses: tuple[float, ...]
    """Mean loss over the examples of every optimizer step."""
    train_time_s: float
    """Optimizer steps only, evaluations left out."""
    train_tokens: int
    """Real tokens, the first step included."""
    micro_batch_size: int | None
    """Examples of one forward pass; None: all of a batch."""
    graph_time_s: float | None
    """Recording of `graphs`, by this process; a part of `train_time_s`."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What training asks and tells while it goes."""

    evaluate: Callable[[], SplitMetrics]
    """Returns dev metrics of the model as it is; may raise `Diverged`, or `Stopped`, after which
    training keeps its state and ends."""
    observer: Observer
    keep: Callable[[Snapshot], None] = lambda _: None
    """Stores the state, before it returns: after every evaluation, every `keep_every_s`, and before
    stopping."""
    keep_every_s: float = math.inf
    stop: Callable[[], bool] = lambda: False
    """Asked after every step; training keeps its state and raises `KeyboardInterrupt`."""


@dataclass
class _Loop:
    """The state of one training."""

    adapted: AdaptedModel
    split: EncodedSplit
    settings: TrainSettings
    seed: int
    hooks: Hooks
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    gradients: Gradients
    evaluations: list[Evaluation] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    unread: list[Tensor] = field(default_factory=list)
    """Losses still on the device."""
    train_tokens: int = 0
    train_time_s: float = 0.0
    kept_at_s: float = field(default_factory=time.monotonic)

    @property
    def steps(self) -> int:
        return len(self.losses) + len(self.unread)

    @property
    def steps_per_epoch(self) -> int:
        tokens = self.settings.batch_tokens
        return num_batches(self.split, self.settings.batch_size, batch_tokens=tokens)

    @property
    def total_steps(self) -> int:
        return math.ceil(self.settings.epochs * self.steps_per_epoch)

    def finish_epoch(self) -> None:
        """Train to the end of the epoch (or of training) and evaluate."""
        epoch, done = divmod(self.steps, self.steps_per_epoch)
        first = self.steps - done
        rng = np.random.default_rng([self.seed, epoch])
        size, tokens = self.settings.batch_size, self.settings.batch_tokens
        order = training_batches(self.split, size, rng, batch_tokens=tokens)
        order = order[done : self.total_steps - first]
        self.adapted.model.train()
        look_every = 1 if self.adapted.numerics.device.type == "cpu" else LOOK_EVERY
        start = time.perf_counter()
        try:
            for number, indices in enumerate(order, start=1):
                self.unread.append(self.step(indices))
                self.train_tokens += int(self.split.lengths[indices].sum())
                if self.steps % look_every == 0 or number == len(order):
                    self.look(first, start)
                if number < len(order) and self._is_time_to_keep():
                    self.look(first, start)
                    self.train_time_s += time.perf_counter() - start
                    self.keep()
                    start = time.perf_counter()
        finally:  # a run that diverges here took its time, too
            self.train_time_s += time.perf_counter() - start
        self._evaluate(float(np.mean(self.losses[first:])))

    def make_up_for(self) -> None:
        """Evaluate where an epoch ended and its evaluation was stopped."""
        is_end = self.steps == self.total_steps or self.steps % self.steps_per_epoch == 0
        if is_end and self.steps > max((e.step for e in self.evaluations), default=0):
            first = (self.steps - 1) // self.steps_per_epoch * self.steps_per_epoch
            self._evaluate(float(np.mean(self.losses[first:])))

    def step(self, indices: np.ndarray) -> Tensor:
        """Take one optimizer step; return the mean loss over its examples, on the device."""
        distributed.seed_step(self.seed, self.steps)
        factor = learning_rate_factor(self.steps, self.total_steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        total = self.gradients.add(indices)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        total = distributed.sum_gradients(parameters, total)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.gradients.clear()
        return total

    def look(self, first: int, start: float) -> None:
        """Bring losses to the host and check them; on a GPU this waits for the device."""
        if not self.unread:
            return
        new = torch.stack(self.unread).tolist()
        self.losses += new
        self.unread.clear()
        if not np.isfinite(new).all():
            step = len(self.losses) - len(new) + int(np.argmin(np.isfinite(new))) + 1
            raise Diverged(
                f"the training loss is not finite at step {step} of {self.total_steps}; "
                "try a lower --lr or a longer --warmup"
            )
        rate = self.train_tokens / (self.train_time_s + time.perf_counter() - start)
        mean = float(np.mean(self.losses[first:]))
        last_rate: float = self.optimizer.param_groups[0]["lr"]
        self.hooks.observer.on_step(
            Progress(self.steps, self.total_steps, mean, float(np.mean(new)), last_rate, rate)
        )

    def _evaluate(self, train_loss: float) -> None:
        try:
            metrics = self.hooks.evaluate()
        except Stopped:
            self.hooks.keep(self.snapshot())
            raise
        evaluation = Evaluation(
            step=self.steps,
            epoch=self.steps / self.steps_per_epoch,
            train_loss=train_loss,
            metrics=metrics,
        )
        self.evaluations.append(evaluation)
        self.hooks.observer.on_evaluation(evaluation)
        self.keep()

    def _is_time_to_keep(self) -> bool:
        since_s = time.monotonic() - self.kept_at_s
        return distributed.any_process(self.hooks.stop() or since_s > self.hooks.keep_every_s)

    def keep(self) -> None:
        """Store the state; stop if that was asked for."""
        if distributed.rank() == 0:
            self.hooks.keep(self.snapshot())
        self.kept_at_s = time.monotonic()
        if distributed.any_process(self.hooks.stop()):
            raise KeyboardInterrupt

    def snapshot(self) -> Snapshot:
        """Return everything that the rest of the training depends on.

        On a CPU these are the tensors that training goes on with, not copies.
        """
        tensors = {}
        for name, parameter in self.adapted.trainable().items():
            tensors[f"model/{name}"] = parameter.detach().cpu()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{key}/{name}"] = value.detach().cpu()
        tensors["random/cpu"] = torch.get_rng_state()
        if self.adapted.numerics.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.adapted.numerics.device)
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        facts = {
            "train_tokens": self.train_tokens,
            "micro_batch_size": self.gradients.micro_batch_size,
            "train_time_s": self.train_time_s,
            "scaler": self.scaler.state_dict(),
            "evaluations": [e.model_dump(mode="json") for e in self.evaluations],
        }
        return Snapshot(tensors, facts)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to the state of a snapshot."""
        self.adapted.restore(snapshot.part("model"))
        keys = ("step", "exp_avg", "exp_avg_sq")
        moments = {key: snapshot.part(f"optimizer/{key}") for key in keys}
        for name, parameter in self.adapted.trainable().items():
            if name in moments["step"]:  # none yet before the first step
                self.optimizer.state[parameter] = {
                    key: moments[key][name].to(parameter.device) for key in keys
                }
        torch.set_rng_state(snapshot.tensors["random/cpu"])
        if self.adapted.numerics.device.type == "cuda":
            torch.cuda.set_rng_state(snapshot.tensors["random/cuda"], self.adapted.numerics.device)
        self.losses = snapshot.tensors["losses"].tolist()
        self.train_tokens = snapshot.facts["train_tokens"]
        self.gradients.micro_batch_size = snapshot.facts["micro_batch_size"]
        self.train_time_s = snapshot.facts["train_time_s"]
        self.scaler.load_state_dict(snapshot.facts["scaler"])
        self.evaluations = [Evaluation.model_validate(e) for e in snapshot.facts["evaluations"]]


def train(
    adapted: AdaptedModel,
    split: EncodedSplit,
    settings: TrainSettings,
    *,
    seed: int,
    hooks: Hooks,
    resume: Snapshot | None = None,
    graphs: Graphs | None = None,
) -> TrainResult:
    """Train what the plan of `adapted` says, evaluating after every epoch.

    AdamW with bias correction (arXiv:1711.05101), linear warm-up, clipping of the gradient's norm,
    no weight decay on biases and normalisations. The data order of an epoch depends on the seed and
    the epoch alone; dropout draws from torch's global generator. Several processes (`distributed`)
    share every batch.

    Args:
        adapted: the model, on its device.
        split: training examples with labels.
        settings: optimisation.
        seed: of the data order.
        hooks: evaluation, progress, and keeping of state.
        resume: where an earlier call was, whose tensors are taken over; on a CPU with the same
            number of threads the result is bit-identical to one that was not interrupted.
        graphs: replays what is the same from step to step; for the fast engine.

    Raises:
        KeyboardInterrupt: `hooks.stop` said so; the state has been kept.
    """
    numerics = adapted.numerics
    optimizer = make_optimizer(adapted, settings)
    scaler = torch.amp.GradScaler(numerics.device.type, enabled=numerics.precision == "fp16")
    size = settings.micro_batch_size
    gradients = Gradients(adapted, split, optimizer, scaler, size, graphs)
    loop = _Loop(
        adapted=adapted,
        split=split,
        settings=settings,
        seed=seed,
        hooks=hooks,
        optimizer=optimizer,
        scaler=scaler,
        gradients=gradients,
    )
    if resume is not None:
        loop.restore(resume)
        resume.release()
    elif warmup_steps(loop.total_steps, settings) >= loop.total_steps:
        log.warning(
            "warm-up is at least as long as training, %d steps: the learning rate never reaches %g",
            loop.total_steps,
            settings.learning_rate,
        )
    diverged = None
    try:
        loop.make_up_for()
        while loop.steps < loop.total_steps:
            loop.finish_epoch()
    except Diverged as reason:
        diverged = str(reason)
    finally:
        if graphs:
            graphs.end()  # predictions may want their memory
    return TrainResult(
        diverged=diverged,
        evaluations=tuple(loop.evaluations),
        losses=tuple(loop.losses),
        train_time_s=loop.train_time_s,
        train_tokens=loop.train_tokens,
        micro_batch_size=gradients.micro_batch_size,
        graph_time_s=graphs.time_s if graphs else None,
    )


def make_optimizer(adapted: AdaptedModel, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW over exactly what trains.

    Vectors (biases, normalisations, DoRA magnitudes) are not decayed.
    """
    parameters = list(adapted.trainable().values())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_eps,
        fused=True,
    )


def learning_rate_factor(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Return the schedule's factor for a step counted from 0.

    Rises linearly from 0 during warm-up, then falls linearly to 0 at `total_steps` (or stays 1), as
    in transformers' `get_linear_schedule_with_warmup`.
    """
    rising = warmup_steps(total_steps, settings)
    if step < rising:
        return step / rising
    if settings.schedule == "constant":
        return 1.0
    return (total_steps - step) / max(1, total_steps - rising)


def warmup_steps(total_steps: int, settings: TrainSettings) -> int:
    """Return how long the learning rate rises."""
    warmup = settings.warmup
    return math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)

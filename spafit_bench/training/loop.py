"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
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
"""Steps between two reads of the loss on a GPU, because each read waits for the device."""


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
    """Mean over the steps since the loss was last read: one step on a CPU."""
    learning_rate: float
    """Of the last step."""
    tokens_per_s: float


class Observer(Protocol):
    """Receives the progress of a run; the command line shows it."""

    def on_step(self, progress: Progress) -> None:
        """Receive the progress at a step whose loss is known."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Receive a finished evaluation."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """How a run is watched, stopped, saved and resumed."""

    observer: Observer
    resume: Snapshot | None = None
    """The state of an earlier session. Its tensors are taken over. On a CPU with the same number of
    threads, the result is bit-identical to that of a run that was not interrupted."""
    keep: Callable[[Snapshot], None] = lambda _: None
    """Stores the state before it returns. Called after every evaluation, every `keep_every_s`, and
    before stopping."""
    keep_every_s: float = 300.0
    stop: Callable[[], bool] = lambda: False
    """Asked after every step. If true, training keeps its state and raises `KeyboardInterrupt`."""


class Training:
    """The state of one training: what `train` returns at its end."""

    def __init__(
        self,
        adapted: AdaptedModel,
        split: EncodedSplit,
        settings: TrainSettings,
        *,
        seed: int,
        evaluate: Callable[[], SplitMetrics],
        session: Session,
        graphs: Graphs | None,
    ) -> None:
        self.adapted, self.split, self.settings, self.seed = adapted, split, settings, seed
        self.evaluate, self.session, self.graphs = evaluate, session, graphs
        self.optimizer = make_optimizer(adapted, settings)
        numerics = adapted.numerics
        self.scaler = torch.amp.GradScaler(
            numerics.device.type, enabled=numerics.precision == "fp16"
        )
        self.gradients = Gradients(
            adapted, split, self.optimizer, self.scaler, settings.micro_batch_size, graphs
        )
        self.evaluations: list[Evaluation] = []
        self.losses: list[float] = []
        """Mean loss over the examples of every optimizer step."""
        self.unread: list[Tensor] = []
        """Losses still on the device."""
        self.train_tokens = 0
        """Real tokens, the first step included."""
        self.train_time_s = 0.0
        """Optimizer steps only, without evaluations."""
        self.kept_at_s = time.monotonic()
        self.diverged: str | None = None
        """Why training ended early, if it did."""

    @property
    def micro_batch_size(self) -> int | None:
        """Examples of one forward pass; None for a whole batch."""
        return self.gradients.micro_batch_size

    @property
    def graph_time_s(self) -> float | None:
        """The part of `train_time_s` that recorded CUDA graphs in this process."""
        return self.graphs.time_s if self.graphs else None

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
        finally:  # also if the run diverges here
            self.train_time_s += time.perf_counter() - start
        self._evaluate(float(np.mean(self.losses[first:])))

    def evaluate_if_due(self) -> None:
        """Evaluate if the snapshot was taken between an epoch's end and its evaluation."""
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
        self.session.observer.on_step(
            Progress(self.steps, self.total_steps, mean, float(np.mean(new)), last_rate, rate)
        )

    def _evaluate(self, train_loss: float) -> None:
        try:
            metrics = self.evaluate()
        except Stopped:
            self.session.keep(self.snapshot())
            raise
        evaluation = Evaluation(
            step=self.steps,
            epoch=self.steps / self.steps_per_epoch,
            train_loss=train_loss,
            metrics=metrics,
        )
        self.evaluations.append(evaluation)
        self.session.observer.on_evaluation(evaluation)
        self.keep()

    def _is_time_to_keep(self) -> bool:
        since_s = time.monotonic() - self.kept_at_s
        return distributed.any_process(self.session.stop() or since_s > self.session.keep_every_s)

    def keep(self) -> None:
        """Store the state; stop if that was asked for."""
        if distributed.rank() == 0:
            self.session.keep(self.snapshot())
        self.kept_at_s = time.monotonic()
        if distributed.any_process(self.session.stop()):
            raise KeyboardInterrupt

    def snapshot(self) -> Snapshot:
        """Return everything that the rest of the training depends on.

        On a CPU these are the tensors of the training itself, not copies.
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
    session: Session,
    evaluate: Callable[[], SplitMetrics] = dict,
    graphs: Graphs | None = None,
) -> Training:
    """Train what the plan of `adapted` says, evaluating after every epoch.

    AdamW with bias correction (arXiv:1711.05101), linear warm-up, clipping of the gradient's norm,
    no weight decay on biases and normalisations. The data order of an epoch depends only on the
    seed and the epoch; dropout draws from torch's global generator. Several processes
    (`distributed`) share every batch.

    Args:
        adapted: the model, on its device.
        split: training examples with labels.
        settings: optimisation.
        seed: of the data order.
        session: hears of progress, keeps the state, and says when to stop.
        evaluate: returns dev metrics of the model as it is. May raise `Diverged`, or `Stopped`,
            after which training keeps its state and ends.
        graphs: replays what is the same from step to step; for the fast engine.

    Raises:
        KeyboardInterrupt: `session.stop` returned true; the state has been kept.
    """
    training = Training(
        adapted, split, settings, seed=seed, evaluate=evaluate, session=session, graphs=graphs
    )
    if session.resume is not None:
        training.restore(session.resume)
        session.resume.release()
    elif warmup_steps(training.total_steps, settings) >= training.total_steps:
        log.warning(
            "warm-up is at least as long as training, %d steps: the learning rate never reaches %g",
            training.total_steps,
            settings.learning_rate,
        )
    try:
        training.evaluate_if_due()
        while training.steps < training.total_steps:
            training.finish_epoch()
    except Diverged as reason:
        training.diverged = str(reason)
    finally:
        if graphs:
            graphs.end()  # predictions may want their memory
    return training


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

"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own custom)

from spafit_bench.adapt import AdaptedModel
from spafit_bench.config import TrainSettings
from spafit_bench.encoding import Batch, EncodedSplit, collate, training_batches
from spafit_bench.record import Evaluation, SplitMetrics

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


@dataclass
class _Loop:
    """The state of one training."""

    adapted: AdaptedModel
    settings: TrainSettings
    total_steps: int
    observer: Observer
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    losses: list[float] = field(default_factory=list)
    unread: list[Tensor] = field(default_factory=list)
    """Losses still on the device."""
    train_tokens: int = 0
    train_time_s: float = 0.0

    @property
    def steps(self) -> int:
        return len(self.losses) + len(self.unread)

    def epoch(self, batches: Iterator[list[Batch]]) -> float:
        """Train on batches, each a list of micro-batches; return the mean loss."""
        first = self.steps
        look_every = 1 if self.adapted.numerics.device.type == "cpu" else LOOK_EVERY
        start = time.perf_counter()
        try:
            for micro_batches in batches:
                self.unread.append(self.step(micro_batches))
                self.train_tokens += sum(batch.num_tokens for batch in micro_batches)
                if self.steps % look_every == 0:
                    self.look(first, start)
            self.look(first, start)
        finally:  # a run that diverges here took its time, too
            self.train_time_s += time.perf_counter() - start
        return float(np.mean(self.losses[first:]))

    def step(self, micro_batches: list[Batch]) -> Tensor:
        """Take one optimizer step; return the mean loss over its examples, on the device."""
        factor = learning_rate_factor(self.steps, self.total_steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        num_examples = sum(batch.size for batch in micro_batches)
        total = torch.zeros((), device=self.adapted.numerics.device)
        for batch in micro_batches:
            with self.adapted.numerics.autocast():
                logits = self.adapted.model(**batch.inputs).logits
            loss = loss_sum(logits.float(), batch) / num_examples
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
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
        self.observer.on_step(Progress(self.steps, self.total_steps, mean, rate))


def train(
    adapted: AdaptedModel,
    split: EncodedSplit,
    settings: TrainSettings,
    *,
    seed: int,
    evaluate: Callable[[], SplitMetrics],
    observer: Observer,
) -> TrainResult:
    """Train what the plan of `adapted` says, evaluating after every epoch.

    AdamW with bias correction (arXiv:1711.05101), linear warm-up, clipping of the gradient's norm,
    no weight decay on biases and normalisations.

    Args:
        adapted: on the device of `numerics`.
        split: training examples with labels.
        settings: optimisation.
        seed: of the data order; dropout draws from torch's global generator.
        evaluate: returns dev metrics of the model as it is; may raise `Diverged`.
        observer: hears of progress.
    """
    numerics = adapted.numerics
    steps_per_epoch = math.ceil(len(split) / settings.batch_size)
    loop = _Loop(
        adapted=adapted,
        settings=settings,
        total_steps=math.ceil(settings.epochs * steps_per_epoch),
        observer=observer,
        optimizer=make_optimizer(adapted, settings),
        scaler=torch.amp.GradScaler(numerics.device.type, enabled=numerics.precision == "fp16"),
    )
    rng = np.random.default_rng(seed)
    evaluations: list[Evaluation] = []
    diverged = None
    try:
        while loop.steps < loop.total_steps:
            order = training_batches(split, settings.batch_size, rng)
            order = order[: loop.total_steps - loop.steps]
            adapted.model.train()
            loss = loop.epoch(_micro_batches(split, order, settings, numerics.device))
            epoch = loop.steps / steps_per_epoch
            evaluations.append(
                Evaluation(step=loop.steps, epoch=epoch, train_loss=loss, metrics=evaluate())
            )
            observer.on_evaluation(evaluations[-1])
    except Diverged as reason:
        diverged = str(reason)
    return TrainResult(
        diverged, tuple(evaluations), tuple(loop.losses), loop.train_time_s, loop.train_tokens
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
    warmup = settings.warmup
    warmup_steps = math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)
    if step < warmup_steps:
        return step / warmup_steps
    if settings.schedule == "constant":
        return 1.0
    return (total_steps - step) / max(1, total_steps - warmup_steps)


def loss_sum(logits: Tensor, batch: Batch) -> Tensor:
    """Sum the loss over the examples: cross-entropy, or squared error for a regression.

    Args:
        logits: (batch, num_outputs) float32.
        batch: with labels.
    """
    assert batch.labels is not None
    if batch.labels.is_floating_point():
        return F.mse_loss(logits.squeeze(-1), batch.labels, reduction="sum")
    return F.cross_entropy(logits, batch.labels, reduction="sum")


def _micro_batches(
    split: EncodedSplit, order: list[np.ndarray], settings: TrainSettings, device: torch.device
) -> Iterator[list[Batch]]:
    """Collate each batch in pieces that fit one forward pass."""
    size = settings.micro_batch_size or settings.batch_size
    for indices in order:
        pieces = [indices[at : at + size] for at in range(0, len(indices), size)]
        yield [collate(split, piece, device) for piece in pieces]

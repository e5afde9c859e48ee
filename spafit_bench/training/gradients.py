"""The gradients of one batch, in pieces that fit the device's memory, as CUDA graphs if asked."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own custom)

from spafit_bench.base import distributed
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.encoding import Batch, EncodedSplit, collate
from spafit_bench.training.cuda_graphs import Graphs

log = logging.getLogger(__name__)


@dataclass
class Gradients:
    """Adds the gradients of examples to the `grad` of every trained parameter."""

    adapted: AdaptedModel
    split: EncodedSplit
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    micro_batch_size: int | None
    """Examples of one forward pass; smaller than configured after the device ran out of memory."""
    graphs: Graphs | None = None

    def add(self, indices: np.ndarray) -> Tensor:
        """Add this process's share of a batch; return its share of the mean loss, on the device."""
        while True:
            micro_batches = self._collate(indices)
            with suppress(torch.OutOfMemoryError):
                return self._backward(micro_batches, len(indices))
            size = max(batch.size for batch in micro_batches)
            del micro_batches
            self._make_room(size)

    def clear(self) -> None:
        """Set gradients to zero; CUDA graphs need them at the same address."""
        self.optimizer.zero_grad(set_to_none=self.graphs is None)

    def _make_room(self, size: int) -> None:
        """Drop the graphs, which hold memory; without graphs, halve the forward passes."""
        where = f"{self.adapted.numerics.device} is out of memory"
        if self.graphs is not None and self.graphs.end():
            log.warning("%s: training continues without CUDA graphs", where)
        elif size == 1:
            raise torch.OutOfMemoryError(
                f"{where} with a single example; use a shorter --max-length, or fewer --jobs"
            )
        else:
            self.micro_batch_size = (size + 1) // 2
            passes = f"forward passes of {self.micro_batch_size}"
            log.warning("%s: each batch is computed in %s", where, passes)
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()

    def _collate(self, indices: np.ndarray) -> list[Batch]:
        """Collate this process's share of a batch in pieces that fit one forward pass."""
        indices = indices[distributed.my_share()]
        size = self.micro_batch_size or max(1, len(indices))
        device = self.adapted.numerics.device
        pieces = [indices[at : at + size] for at in range(0, len(indices), size)]
        return [collate(self.split, piece, device) for piece in pieces]

    def _backward(self, micro_batches: list[Batch], num_examples: int) -> Tensor:
        total = torch.zeros((), device=self.adapted.numerics.device)
        self.scaler.scale(total)  # creates the scale, also if this process has no example
        for number, batch in enumerate(micro_batches):
            compute = partial(self._of_part, number, num_examples)
            if self.graphs:
                name = f"part {min(number, 1)} of {num_examples} examples"
                total += self.graphs.run(name, compute, batch)
            else:
                total += compute(batch)
        return total

    def _of_part(self, number: int, num_examples: int, batch: Batch) -> Tensor:
        """Add the gradients of a part of the mean loss over all examples; return the part."""
        if number == 0:  # the optimizer changed the weights
            self.adapted.engine.refresh()
        loss = loss_sum(self.adapted.engine.logits(batch), batch) / num_examples
        self.scaler.scale(loss).backward()
        return loss.detach()


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

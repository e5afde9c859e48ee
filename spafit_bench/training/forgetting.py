"""How far fine-tuning moved an encoder from the pretrained one, layer by layer.

Two measures of the hidden states of held-out text, pretrained X and adapted Y, both (num_tokens,
hidden), padding left out:

- linear CKA (Kornblith et al. 2019, arXiv:1905.00414, section 3): 1 where one is a rotation,
  scaling and shift of the other, 0 where they share nothing;
- relative distance ||Y - X|| / ||X|| (Frobenius), 0 where nothing moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.encoding import EncodedSplit, collate
from spafit_bench.results.record import LayerDrift

MAX_EXAMPLES = 256
"""The first examples of a dev split that are looked at."""
BATCH_SIZE = 16


@dataclass
class _Moments:
    """Sums over the tokens of one layer, float64: enough for both measures, whatever their number.

    While X and Y have been equal, one matrix of products stands for all three.
    """

    num_tokens: int = 0
    sum_x: Tensor | float = 0.0
    sum_y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    yy: Tensor | float = 0.0
    xy: Tensor | float = 0.0
    square_x: float = 0.0
    square_distance: float = 0.0
    equal: bool = True

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add tokens: x and y (num_tokens, hidden)."""
        if self.equal and not torch.equal(x, y):
            self.equal, self.sum_y = False, _copied(self.sum_x)
            self.yy, self.xy = _copied(self.xx), _copied(self.xx)
        x = x.double()
        self.num_tokens += len(x)
        self.sum_x = self.sum_x + x.sum(0)
        self.xx = self.xx + x.T @ x
        self.square_x += float(x.square().sum())
        if self.equal:
            return
        y = y.double()
        self.sum_y = self.sum_y + y.sum(0)
        self.yy = self.yy + y.T @ y
        self.xy = self.xy + x.T @ y
        self.square_distance += float((y - x).square().sum())

    def drift(self) -> LayerDrift:
        """Return both measures over all tokens added."""
        if self.equal:
            return LayerDrift(cka=1.0, relative_distance=0.0)
        xx, yy, xy = (
            float(torch.linalg.norm(products - torch.outer(one, other) / self.num_tokens))
            for products, one, other in (
                (_tensor(self.xx), _tensor(self.sum_x), _tensor(self.sum_x)),
                (_tensor(self.yy), _tensor(self.sum_y), _tensor(self.sum_y)),
                (_tensor(self.xy), _tensor(self.sum_x), _tensor(self.sum_y)),
            )
        )
        distance = float(np.sqrt(self.square_distance / self.square_x)) if self.square_x else 1.0
        return LayerDrift(cka=xy**2 / (xx * yy) if xx * yy else 0.0, relative_distance=distance)


def _copied(value: Tensor | float) -> Tensor | float:
    return value.clone() if isinstance(value, Tensor) else value


def _tensor(value: Tensor | float) -> Tensor:
    assert isinstance(value, Tensor)
    return value


@torch.no_grad()
def measure_forgetting(
    pretrained: AdaptedModel, adapted: AdaptedModel, split: EncodedSplit
) -> dict[str, LayerDrift]:
    """Compare two encoders on the first `MAX_EXAMPLES` examples of a split.

    Both run over each batch, so that rounding is the same and nothing is stored but sums: three
    (hidden, hidden) matrices per layer.

    Args:
        pretrained: as it was before training.
        adapted: the same model after training, with the same numerics.
        split: held-out text; labels are not looked at.

    Returns:
        `embeddings`, then each layer from `0`, of what it hands to the next.
    """
    models = (pretrained.model.eval().base_model, adapted.model.eval().base_model)
    numerics = adapted.numerics
    order = np.argsort(-split.lengths[:MAX_EXAMPLES], kind="stable")
    names = ("embeddings", *(str(layer) for layer in range(adapted.plan.num_layers)))
    moments = [_Moments() for _ in names]
    for start in range(0, len(order), BATCH_SIZE):
        batch = collate(split, order[start : start + BATCH_SIZE], numerics.device)
        inputs = batch.padded()
        real = inputs["attention_mask"].bool()
        with numerics.autocast():
            before, after = (
                model(**inputs, output_hidden_states=True).hidden_states for model in models
            )
        assert len(before) == len(after) == len(names), (len(before), len(names))
        for sums, x, y in zip(moments, before, after, strict=True):
            sums.add(x[real], y[real])
    return {name: sums.drift() for name, sums in zip(names, moments, strict=True)}

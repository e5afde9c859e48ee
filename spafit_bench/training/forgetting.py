"""How far fine-tuning moved an encoder from the pretrained one, layer by layer.

Two measures of the hidden states of held-out text, pretrained X and adapted Y, both (num_tokens,
hidden), padding left out:

- linear CKA (Kornblith et al. 2019, arXiv:1905.00414, section 3): 1 where one is a rotation,
  scaling and shift of the other, 0 where they share nothing;
- relative distance ||Y - X|| / ||X|| (Frobenius), 0 where nothing moved.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.encoding import EncodedSplit, collate
from spafit_bench.results.record import LayerDrift

MAX_EXAMPLES = 256
"""Examples compared: the first of a dev split."""
BATCH_SIZE = 16


class _Sums:
    """Sums over the tokens of one layer, in float64: enough for both measures."""

    def __init__(self, hidden: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.num_tokens = 0
        self.x, self.y = zeros(hidden), zeros(hidden)
        self.xx, self.yy, self.xy = (zeros(hidden, hidden) for _ in range(3))
        self.square_x, self.square_distance = 0.0, 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add tokens: x and y (num_tokens, hidden)."""
        x, y = x.double(), y.double()
        self.num_tokens += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.yy += y.T @ y
        self.xy += x.T @ y
        self.square_x += float(x.square().sum())
        self.square_distance += float((y - x).square().sum())

    def drift(self) -> LayerDrift:
        if self.square_distance == 0:
            return LayerDrift(cka=1.0, relative_distance=0.0)

        def norm(products: Tensor, one: Tensor, other: Tensor) -> float:
            return float(torch.linalg.norm(products - torch.outer(one, other) / self.num_tokens))

        xx, yy = norm(self.xx, self.x, self.x), norm(self.yy, self.y, self.y)
        xy = norm(self.xy, self.x, self.y)
        distance = float(np.sqrt(self.square_distance / self.square_x)) if self.square_x else 1.0
        return LayerDrift(cka=xy**2 / (xx * yy) if xx * yy else 0.0, relative_distance=distance)


@torch.no_grad()
def measure_forgetting(
    pretrained: AdaptedModel, adapted: AdaptedModel, split: EncodedSplit
) -> dict[str, LayerDrift]:
    """Compare two encoders on the first `MAX_EXAMPLES` examples of a split.

    Both run over each batch, so that rounding is the same and only sums are stored: three
    (hidden, hidden) matrices per layer.

    Args:
        pretrained: as it was before training.
        adapted: the same model after training, with the same numerics.
        split: held-out text; labels are not read.

    Returns:
        `embeddings` and each layer from `0` -> drift of its output.
    """
    models = (pretrained.model.eval().base_model, adapted.model.eval().base_model)
    numerics = adapted.numerics
    order = np.argsort(-split.lengths[:MAX_EXAMPLES], kind="stable")
    names = ("embeddings", *(str(layer) for layer in range(adapted.plan.num_layers)))
    hidden = adapted.model.config.hidden_size
    sums = [_Sums(hidden, numerics.device) for _ in names]
    for start in range(0, len(order), BATCH_SIZE):
        batch = collate(split, order[start : start + BATCH_SIZE], numerics.device)
        inputs = batch.padded()
        real = inputs["attention_mask"].bool()
        with numerics.autocast():
            before, after = (
                model(**inputs, output_hidden_states=True).hidden_states for model in models
            )
        assert len(before) == len(after) == len(names), (len(before), len(names))
        for layer, x, y in zip(sums, before, after, strict=True):
            layer.add(x[real], y[real])
    return {name: layer.drift() for name, layer in zip(names, sums, strict=True)}

"""Measure the time of the matrix products alone, right after the steps they belong to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from spafit_bench.models.encoding import EncodedSplit, collate
from spafit_bench.models.fused import FusedEncoder
from spafit_bench.models.fused.block import Block
from spafit_bench.models.ragged import Ragged


@dataclass
class FloorClock:
    """Times each step and, right after it, its products: other work slows both."""

    encoder: FusedEncoder
    """Says which products there are; its own weights are used."""
    split: EncodedSplit
    batches: list[np.ndarray]
    """Examples of each step."""
    spans: list[tuple[int, int, float, float]] = field(default_factory=list)
    """Steps done before and after, seconds of these steps, seconds of their products."""
    last: tuple[int, float] | None = None

    def on_step(self, progress: Any) -> None:
        """Record the time since the last call, then time the products."""
        now = time.perf_counter()
        if self.last is not None:
            first, begin = self.last
            products_s = sum(map(self.products_s, self.batches[first : progress.step]))
            self.spans.append((first, progress.step, now - begin, products_s))
        self.last = progress.step, time.perf_counter()

    def on_evaluation(self, _: Any) -> None:
        """Do nothing: evaluations are not timed here."""

    def products_s(self, indices: np.ndarray) -> float:
        """Time the products of one step on these examples."""
        numerics = self.encoder.numerics
        layout = collate(self.split, indices, numerics.device).layout
        numerics.synchronize()
        start = time.perf_counter()
        with torch.no_grad():
            _products(self.encoder.blocks, layout)
        numerics.synchronize()
        return time.perf_counter() - start

    def after(self, warm_up: int, tokens: list[int]) -> dict[str, list[Any]]:
        """Return, past the warm-up: times of products, times of steps, tokens of the steps."""
        spans = [span for span in self.spans if span[0] >= warm_up]
        return {
            "times_s": [products_s for *_, products_s in spans],
            "step_times_s": [steps_s for _, _, steps_s, _ in spans],
            "tokens": [sum(tokens[first:last]) for first, last, _, _ in spans],
        }


def _products(blocks: list[Block], layout: Ragged) -> None:
    flows = False
    for block in blocks:
        trains = bool(block.parameters)
        _block(block, layout, backward=flows or trains, to_input=flows)
        flows = flows or trains


def _block(block: Block, layout: Ragged, *, backward: bool, to_input: bool) -> None:
    few = layout.size if block.first_token_only else layout.num_rows
    for fused in block.maps:
        spans: tuple[tuple[int, int, int | None], ...] = ((few, 0, None),)
        if block.first_token_only and fused is block.qkv:
            spans = ((layout.size, 0, 1), (layout.num_rows, 1, None))
        for rows, first, last in spans:
            x = fused.weight.new_ones(rows, fused.weight.shape[1])
            y, _ = fused.product(x, first, last)
            if backward and (to_input or fused is not block.qkv):
                fused.input_gradient(y, first, last)
            if backward and fused.needs_input:
                fused.parameter_gradients(x, y, y[0], first, last)
    _attention(block, layout, backward=backward)


def _attention(block: Block, layout: Ragged, *, backward: bool) -> None:
    asking = 1 if block.first_token_only else layout.length
    heads = layout.size * block.num_heads
    queries = block.qkv.weight.new_ones(heads, asking, block.head_size)
    keys = block.qkv.weight.new_ones(heads, layout.length, block.head_size)
    scores = torch.bmm(queries, keys.transpose(1, 2))
    context = torch.bmm(scores, keys)
    if backward:
        torch.bmm(scores.transpose(1, 2), context)
        torch.bmm(context, keys.transpose(1, 2))
        torch.bmm(scores, keys)
        torch.bmm(scores.transpose(1, 2), queries)

"""The time of a training step's matrix products alone, on the same shapes and the same machine."""

from __future__ import annotations

import time

import torch

from spafit_bench.encoding import EncodedSplit, collate, training_batches
from spafit_bench.fused import FusedEncoder
from spafit_bench.fused.block import Block
from spafit_bench.ragged import Ragged


def step_times(
    encoder: FusedEncoder, split: EncodedSplit, batch_size: int, seed: int
) -> list[float]:
    """Time the products of one epoch's steps, in seconds.

    Args:
        encoder: says which products there are; its own weights are used.
        split: decides the numbers of tokens.
        batch_size: examples of a step.
        seed: of the order.
    """
    import numpy as np

    device = encoder.numerics.device
    times = []
    for indices in training_batches(split, batch_size, np.random.default_rng([seed, 0])):
        layout = collate(split, indices, device).layout
        start = time.perf_counter()
        with torch.no_grad():
            _products(encoder.blocks, layout)
        encoder.numerics.synchronize()
        times.append(time.perf_counter() - start)
    return times


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
            y = fused.product(x, first, last)
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

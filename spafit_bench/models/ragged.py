"""Where the tokens of a batch lie when they stand end to end, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LENGTH_MULTIPLE = 16
"""Shapes are rounded up, lengths to this and rows to a sixteenth of the next power of two. A
library of matrix products prepares a kernel for each shape that it meets: on a CPU that takes a
third of the product's time, and 0.6 MB that it keeps. Sixteen rows fit a vector register or a
tensor core."""


@dataclass(frozen=True)
class Ragged:
    """The layout of sequences end to end, followed by a few rows of no sequence.

    Only attention needs sequences apart: `spread` pads them to one length, `gather` undoes it.
    """

    size: int
    """Number of sequences."""
    num_tokens: int
    """Tokens of all sequences."""
    num_rows: int
    """Tokens, rounded up."""
    longest: int
    """Tokens of the longest sequence."""
    length: int
    """Tokens of a sequence when they are apart: of the longest, rounded up."""
    starts: Tensor
    """Row of each sequence's first token, (size,) int64."""
    lengths: Tensor
    """Tokens of each sequence, (size,) int64."""
    key_mask: Tensor | None
    """What is added to attention scores, (size, 1, 1, length) fp32; None where nothing is padded,
    so that end to end and apart are the same."""
    places: Tensor | None
    """Where each row is when sequences are apart, (num_rows,) int64; of no sequence: at the end of
    a shorter one. None with `key_mask`."""
    sources: Tensor | None
    """Row at each place, (size * length,) int64; where there is none, the sequence's last. None
    with `key_mask`."""

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device) -> Ragged:
        """Lay out sequences of these lengths, (size,) int64."""
        size, num_tokens, longest = len(lengths), int(lengths.sum()), int(lengths.max())
        length = _round_up(longest, LENGTH_MULTIPLE)
        starts = _starts(lengths)
        is_padding = np.arange(length) >= lengths[:, None]
        own = to_device(starts, device), to_device(lengths, device)
        if not is_padding.any():
            return cls(size, num_tokens, num_tokens, longest, length, *own, None, None, None)
        next_power = 1 << (num_tokens - 1).bit_length()
        num_rows = _round_up(num_tokens, max(next_power // 16, 8))
        places = np.full(num_rows, is_padding.argmax(), dtype=np.int64)
        places[:num_tokens] = np.repeat(np.arange(size) * length, lengths) + positions(lengths)
        sources = np.minimum(np.arange(length), lengths[:, None] - 1) + starts[:, None]
        mask = np.where(is_padding, np.float32(-np.inf), np.float32(0))[:, None, None]
        host = (mask, places, sources.ravel())
        rest = (to_device(values, device) for values in host)
        return cls(size, num_tokens, num_rows, longest, length, *own, *rest)

    def spread(self, x: Tensor, *, zeros: bool) -> Tensor:
        """Set sequences apart: (num_rows, width) -> (size * length, width).

        Args:
            x: one row a token; with `zeros`, zero in the rows of no sequence, as gradients are.
            zeros: fill with zeros; else with any of the values, which is cheaper.
        """
        if self.places is None or self.sources is None:
            return x
        if not zeros:
            return x.index_select(0, self.sources)
        apart = x.new_zeros(self.size * self.length, x.shape[1])
        return apart.index_copy_(0, self.places, x)

    def gather(self, x: Tensor) -> Tensor:
        """Put sequences end to end: (size * length, width) -> (num_rows, width).

        Rows of no sequence get what stands at a place of padding: zero where that is.
        """
        return x if self.places is None else x.index_select(0, self.places)

    def pad(self, x: Tensor, value: int) -> Tensor:
        """Pad one number a token, up to the longest: (num_rows,) -> (size, longest)."""
        if self.places is None:
            return x.view(self.size, self.length)
        padded = x.new_full((self.size * self.length,), value)
        padded.index_copy_(0, self.places[: self.num_tokens], x[: self.num_tokens])
        return padded.view(self.size, self.length)[:, : self.longest]


def positions(lengths: np.ndarray) -> np.ndarray:
    """Return the position of each token in its sequence, (num_tokens,) int64."""
    return np.arange(lengths.sum()) - np.repeat(_starts(lengths), lengths)


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device without waiting for it."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":  # from other memory the copy would wait for what the GPU has to do
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

"""The layout of a batch whose sequences lie end to end, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LENGTH_MULTIPLE = 16
"""Lengths are rounded up to a multiple of this, rows to a sixteenth of the next power of two. The
matrix library prepares a kernel for each new shape: on a CPU this takes a third of the product's
time and 0.6 MB for good. Sixteen rows fit a vector register or a tensor core."""


@dataclass(frozen=True)
class Ragged:
    """The layout of sequences end to end, followed by a few padding rows.

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
    """What is added to attention scores, (size, 1, 1, length) fp32. This and the next two are None
    if no sequence is padded, because then both layouts are the same."""
    places: Tensor | None
    """Place of each row when sequences are apart, (num_rows,) int64. The place of a padding row is
    the first padding place."""
    sources: Tensor | None
    """Row at each place, (size * length,) int64; for padding, the sequence's last row."""

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device) -> Ragged:
        """Return the layout of sequences of these lengths, (size,) int64."""
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
        rest = (to_device(values, device) for values in (mask, places, sources.ravel()))
        return cls(size, num_tokens, num_rows, longest, length, *own, *rest)

    def spread(self, x: Tensor, *, zeros: bool) -> Tensor:
        """Set sequences apart: (num_rows, width) -> (size * length, width).

        With `zeros`, padding is filled with zeros, and the padding rows of `x` must be zero, as in
        gradients. Otherwise it gets any of the values, which is cheaper.
        """
        if self.places is None or self.sources is None:
            return x
        if not zeros:
            return x.index_select(0, self.sources)
        apart = x.new_zeros(self.size * self.length, x.shape[1])
        return apart.index_copy_(0, self.places, x)

    def gather(self, x: Tensor) -> Tensor:
        """Put sequences end to end: (size * length, width) -> (num_rows, width).

        Padding rows get the value of a padding place: zero if padding is zero.
        """
        return x if self.places is None else x.index_select(0, self.places)

    def pad(self, x: Tensor, value: int) -> Tensor:
        """Pad one number for each token to the longest sequence: (num_rows,) -> (size, longest)."""
        if self.places is None:
            return x.view(self.size, self.length)
        padded = x.new_full((self.size * self.length,), value)
        padded.index_copy_(0, self.places[: self.num_tokens], x[: self.num_tokens])
        return padded.view(self.size, self.length)[:, : self.longest]


def positions(lengths: np.ndarray) -> np.ndarray:
    """Return the position of each token in its sequence, (num_tokens,) int64."""
    return np.arange(lengths.sum()) - np.repeat(_starts(lengths), lengths)


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device without waiting for the copy."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":  # a copy from unpinned memory waits for the GPU's pending work
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

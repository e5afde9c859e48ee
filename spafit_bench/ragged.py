"""Where the tokens of a batch lie when they stand end to end, without padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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

    lengths: np.ndarray
    """(size,) int64, on the host: shapes must be known without waiting for a device."""
    device: torch.device

    @property
    def size(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return int(self.lengths.sum())

    @cached_property
    def num_rows(self) -> int:
        """Tokens, rounded up."""
        if self.is_dense:
            return self.num_tokens
        next_power = 1 << (self.num_tokens - 1).bit_length()
        return _round_up(self.num_tokens, max(next_power // 16, 8))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.lengths.max())

    @cached_property
    def length(self) -> int:
        """Tokens of a sequence when they are apart: of the longest, rounded up."""
        return _round_up(self.longest, LENGTH_MULTIPLE)

    @cached_property
    def is_dense(self) -> bool:
        """Whether end to end and apart are the same."""
        return bool((self.lengths == self.length).all())

    @cached_property
    def starts(self) -> Tensor:
        """Row of each sequence's first token, (size,) int64."""
        return self._on_device(self._host_starts)

    @cached_property
    def key_mask(self) -> Tensor | None:
        """What is added to attention scores, (size, 1, 1, length) fp32; None if nothing is."""
        if self.is_dense:
            return None
        is_padding = np.arange(self.length) >= self.lengths[:, None]
        mask = np.where(is_padding, np.float32(-np.inf), np.float32(0))
        return self._on_device(mask[:, None, None])

    def spread(self, x: Tensor, *, zeros: bool) -> Tensor:
        """Set sequences apart: (num_rows, width) -> (size * length, width).

        Args:
            x: one row a token.
            zeros: fill with zeros; else with any of the values, which is cheaper.
        """
        if self.is_dense:
            return x
        if not zeros:
            return x.index_select(0, self._sources)
        apart = x.new_zeros(self.size * self.length, x.shape[1])
        return apart.index_copy_(0, self._places[: self.num_tokens], x[: self.num_tokens])

    def gather(self, x: Tensor, *, zeros: bool) -> Tensor:
        """Put sequences end to end: (size * length, width) -> (num_rows, width).

        Args:
            x: as `spread` returns it.
            zeros: fill the rows of no sequence with zeros; else with any of the values.
        """
        if self.is_dense:
            return x
        together = x.index_select(0, self._places)
        if zeros:
            together[self.num_tokens :] = 0
        return together

    def pad(self, x: Tensor, value: int) -> Tensor:
        """Pad one number a token, up to the longest: (num_rows,) -> (size, longest)."""
        x = x[: self.num_tokens]
        padded = x.new_full((self.size * self.length,), value)
        padded.index_copy_(0, self._places[: self.num_tokens], x)
        return padded.view(self.size, self.length)[:, : self.longest]

    @cached_property
    def positions(self) -> np.ndarray:
        """Position of each token in its sequence, (num_tokens,), on the host."""
        return np.arange(self.num_tokens) - np.repeat(self._host_starts, self.lengths)

    @cached_property
    def _host_starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def _places(self) -> Tensor:
        """Where each row is when sequences are apart, (num_rows,); anywhere if of no sequence."""
        places = np.zeros(self.num_rows, dtype=np.int64)
        first = np.repeat(np.arange(self.size) * self.length, self.lengths)
        places[: self.num_tokens] = first + self.positions
        return self._on_device(places)

    @cached_property
    def _sources(self) -> Tensor:
        """Row at each place; of the sequence's last token where there is none."""
        within = np.minimum(np.arange(self.length), self.lengths[:, None] - 1)
        return self._on_device((within + self._host_starts[:, None]).ravel())

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

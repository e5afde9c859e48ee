"""Dropout from raw random bits: one 16-bit number an element instead of a float each.

`bernoulli_` takes a quarter of a training step on a CPU. Here 64 random bits decide four elements.
Dropping is a bitwise AND with a mask of all ones or all zeros, which works for any float type. The
probability is rounded to a multiple of 2^-15, and the remaining elements are scaled by its exact
inverse, so that the expectation is unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_STEPS = 1 << 15
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Dropout:
    """Drops elements with a probability and scales the rest."""

    threshold: int
    """An element is kept if its random 15-bit number is below this."""

    @classmethod
    def of(cls, probability: float) -> Dropout:
        """Round a dropout probability to a multiple of 2^-15, never to 1."""
        return cls(max(1, round((1 - probability) * _STEPS)))

    @property
    def is_active(self) -> bool:
        """Whether any element is ever dropped."""
        return self.threshold < _STEPS

    @property
    def scale(self) -> float:
        """Factor of the remaining elements."""
        return _STEPS / self.threshold

    def draw(self, like: Tensor) -> Tensor | None:
        """Draw a mask from torch's global generator of the device: -1 keeps, 0 drops.

        Returns:
            int16 in the shape of `like`, or None if `is_active` is False.
        """
        if not self.is_active:
            return None
        words = _random_words((like.numel() + 3) // 4, like.device)
        bits = words.view(torch.int16)[: like.numel()]
        bits = bits.bitwise_and_(_STEPS - 1).sub_(self.threshold).bitwise_right_shift_(15)
        return bits.view(like.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Drop and scale, as a differentiable operation."""
        mask = self.draw(x)
        return x if mask is None else x * mask.to(x.dtype).mul_(-self.scale)


def _random_words(count: int, device: torch.device) -> Tensor:
    """Draw 64-bit words, (count,) int64.

    On a CPU a fast generator draws them. torch's generator seeds it each time, so the state that a
    snapshot stores determines all of them.
    """
    if device.type != "cpu":
        words = torch.empty(count, dtype=torch.int64, device=device)
        return words.random_(-(2**63), None)
    return torch.from_numpy(np.random.SFC64(draw_seed()).random_raw(count).view(np.int64))


def draw_seed() -> int:
    """Draw 63 bits from torch's global generator of the CPU."""
    return int(torch.empty(1, dtype=torch.int64).random_(0, None).item())


def keep(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set dropped elements to zero, without scaling the others."""
    if mask is None:
        return x
    integers = _INTEGER[x.element_size()]
    return (x.view(integers) & mask.to(integers)).view(x.dtype)


def keep_(x: Tensor, mask: Tensor | None) -> Tensor:
    """`keep` in place."""
    if mask is not None:
        integers = _INTEGER[x.element_size()]
        x.view(integers).bitwise_and_(mask.to(integers))
    return x

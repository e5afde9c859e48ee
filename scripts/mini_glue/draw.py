"""Random choices that are the same on every machine and in every Python version.

`random.Random.random` is the only method whose sequence Python promises to keep, so every choice
is made from it; seeds are hashes of readable names, because `hash` of a string is salted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """A stream of choices that depends on its name alone."""

    def __init__(self, name: str) -> None:
        digest = hashlib.sha256(name.encode("utf-8")).digest()
        self._random = Random(int.from_bytes(digest[:8], "big"))  # noqa: S311  not cryptography

    def chance(self, probability: float) -> bool:
        """Return true with the given probability."""
        return self._random.random() < probability

    def below(self, limit: int) -> int:
        """Return an integer in 0..limit-1, uniformly."""
        return int(self._random.random() * limit)

    def pick(self, options: Sequence[T]) -> T:
        """Return one of `options`, uniformly."""
        return options[self.below(len(options))]

    def other(self, options: Sequence[T], than: T) -> T:
        """Return one of `options` that differs from `than`, uniformly."""
        return self.pick([option for option in options if option != than])

    def weighted(self, options: Sequence[tuple[T, int]]) -> T:
        """Return one of `options`, each with its integer weight."""
        rest = self.below(sum(weight for _, weight in options))
        for option, weight in options:
            if rest < weight:
                return option
            rest -= weight
        raise AssertionError("weights are positive integers")

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """Return `options` in random order."""
        pool = list(options)
        return [pool.pop(self.below(len(pool))) for _ in range(len(pool))]

"""A cache of the output of the frozen first layers, for every epoch and run.

Without dropout, the output of the frozen layers below all training is the same in every step. So it
is computed once, and training and evaluation start at the first layer that trains. These layers
then have no dropout, which changes regularisation. So it is part of a run's name, and tables show
it. If an output cannot be cached, every step computes it again. This changes the shapes of matrix
products, and so at most the rounding.

Entries are memory-mapped. The pages that the system keeps in memory count towards the peak memory
of a process; the system frees them when it needs memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import transformers

from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.encoding import EncodedSplit, Prefix, collate, evaluation_batches
from spafit_bench.models.fused import FusedEncoder
from spafit_bench.training.array_cache import ArrayCache, Arrays, Streamed, user_cache
from spafit_bench.training.evaluation import EVALUATION_TOKENS
from spafit_bench.training.prepare import PreparedRun

log = logging.getLogger(__name__)

FORMAT = 2
"""Raise this when the meaning of an entry changes, so that old entries are not used."""
BATCH_SIZE = 64
"""Examples per forward pass. It is fixed, so that every run makes the same entry."""
_HEADER_BYTES = 1_000
"""An upper bound of what an entry needs beside its values."""
_STORED = {"fp32": np.float32, "bf16": np.int16, "fp16": np.float16}


def with_prefixes(
    prepared: PreparedRun,
    adapted: AdaptedModel,
    splits: dict[str, EncodedSplit],
    stop: Callable[[], bool],
) -> dict[str, EncodedSplit]:
    """Return the splits with the cached output of the first layers, if the run asks for it.

    Raises:
        UserError: SPAFIT_BENCH_CACHE_GB is not a number.
        KeyboardInterrupt: `stop` returned true.
    """
    if not prepared.prefix_layers:
        return splits
    cache = user_cache("prefixes") if prepared.config.cache else None
    hashes = (prepared.weights_sha256, prepared.files_sha256)
    return PrefixCache(adapted, *hashes, cache, stop, prepared.check_inputs).attach(splits)


@dataclass(frozen=True)
class PrefixCache:
    """Makes and reads the entries of one model: one for each split and number of frozen layers."""

    adapted: AdaptedModel
    """It must use the fast engine."""
    weights_sha256: str
    files_sha256: str
    """Of the checkpoint's configuration."""
    cache: ArrayCache | None
    """None caches nothing."""
    stop: Callable[[], bool] = lambda: False
    """Asked before every batch."""
    check: Callable[[], None] = lambda: None
    """Raises if the weights are no longer those of the hash; called before an entry is complete."""

    def attach(self, splits: Mapping[str, EncodedSplit]) -> dict[str, EncodedSplit]:
        """Return the splits with their memory-mapped prefixes; compute those that are missing.

        The splits are handled in order. If the cache has no room left for a split, it gets no
        prefix, and a warning says that the engine computes its first layers in every step.

        Raises:
            KeyboardInterrupt: `stop` returned true.
        """
        room = self.cache.max_bytes if self.cache else 0
        found = dict(splits)
        for name, split in splits.items():
            size = int(np.prod(self._shape(split))) * self.adapted.numerics.dtype.itemsize
            size += _HEADER_BYTES
            kept = self._prefix(split) if size <= room else None
            if kept is None:
                self._warn(name, size, room)
                continue
            room -= size
            found[name] = replace(split, prefix=kept)
        return found

    def _warn(self, name: str, size: int, room: int) -> None:
        reason = f"needs {size / 1e9:.3g} GB, but only {room / 1e9:.3g} GB of the cache are left"
        if self.cache is None:
            reason = "is not cached (--set cache=false)"
        elif size <= room:
            reason = "could not be written to the cache"
        log.warning(
            "cache_prefix: the output of the first layers for %s %s, so every step computes it "
            "again; SPAFIT_BENCH_CACHE_GB sets the size of the cache",
            name,
            reason,
        )

    def _prefix(self, split: EncodedSplit) -> Prefix | None:
        assert self.cache is not None
        key = self._key(split)
        arrays = self.cache.load(key)
        if arrays is None:
            with self.cache.alone(key, self.stop):
                arrays = self.cache.load(key) or self._made(key, split)
        return None if arrays is None else Prefix.of(arrays["values"], split.lengths)

    def _made(self, key: str, split: EncodedSplit) -> Arrays | None:
        assert self.cache is not None
        dtype = np.dtype(_STORED[self.adapted.numerics.precision])
        self.cache.save(key, {"values": Streamed(dtype, self._shape(split), self._chunks(split))})
        return self.cache.load(key)

    def _shape(self, split: EncodedSplit) -> tuple[int, int]:
        return int(split.offsets[-1]), int(self.adapted.model.config.hidden_size)

    def _chunks(self, split: EncodedSplit) -> Iterator[np.ndarray]:
        """Compute the values batch by batch, the longest texts first."""
        engine, numerics = self.adapted.engine, self.adapted.numerics
        assert isinstance(engine, FusedEncoder)
        most = EVALUATION_TOKENS[numerics.device.type]
        waiting = evaluation_batches(split, BATCH_SIZE, max_tokens=most)[::-1]
        while waiting:
            if self.stop():
                raise KeyboardInterrupt
            indices = waiting.pop()
            try:
                batch = collate(split, indices, numerics.device)
                values = engine.prefix(batch)[: batch.num_tokens].cpu()
            except torch.OutOfMemoryError:
                if len(indices) == 1:
                    raise
                waiting += np.array_split(indices, 2)[::-1]
                continue
            is_bf16 = values.dtype == torch.bfloat16  # which NumPy does not know
            yield (values.view(torch.int16) if is_bf16 else values).numpy()
        self.check()

    def _key(self, split: EncodedSplit) -> str:
        """Hash everything that determines the values: tokens, weights, layers, arithmetic."""
        engine, numerics = self.adapted.engine, self.adapted.numerics
        assert isinstance(engine, FusedEncoder)
        on_cpu = numerics.device.type == "cpu"
        facts = {
            "format": FORMAT,
            "weights": self.weights_sha256,
            "files": self.files_sha256,
            "layers": engine.prefix_layers,
            "precision": numerics.precision,
            "kernels": engine.kernels.name,
            "device": numerics.device.type,
            "threads": torch.get_num_threads() if on_cpu else None,
            "libraries": [torch.__version__, transformers.__version__],
            "batches": [BATCH_SIZE, EVALUATION_TOKENS[numerics.device.type]],
            "segments": split.token_type_ids is not None,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for array in (split.offsets, split.input_ids, split.token_type_ids):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

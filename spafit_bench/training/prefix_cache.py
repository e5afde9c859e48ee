"""The output of the frozen first layers, computed once and kept for every epoch and run.

Below everything that trains, a token's activations are the same in every step if nothing is dropped
there (frozen layers need no gradient, either). Evaluation and training then start at the first
layer that trains. Leaving dropout out of those layers is a change of regularisation: it is part of
a run's name, and tables show it. Whether the activations were kept or had to be computed again
(there was no room, say) changes nothing but the shapes of products, so at most rounding.

Entries are mapped, not read: what the system holds of them counts towards a process's peak memory,
and it drops that when it needs room.
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
"""To be raised when an entry comes to mean something else, so that no old one is taken."""
BATCH_SIZE = 64
"""Examples per forward pass; one number, so that an entry is the same whichever run made it."""
_HEADER_BYTES = 1_000
"""More than an entry has beside its values."""
_STORED = {"fp32": np.float32, "bf16": np.int16, "fp16": np.float16}


def with_prefixes(
    prepared: PreparedRun,
    adapted: AdaptedModel,
    splits: dict[str, EncodedSplit],
    stop: Callable[[], bool],
) -> dict[str, EncodedSplit]:
    """Return the splits with what a run wants kept of its first layers: nothing, if not asked.

    Raises:
        UserError: the user's bound is no number.
        KeyboardInterrupt: `stop` said so.
    """
    if not prepared.prefix_layers:
        return splits
    cache = user_cache("prefixes") if prepared.config.cache else None
    hashes = (prepared.weights_sha256, prepared.files_sha256)
    return PrefixCache(adapted, *hashes, cache, stop, prepared.check_inputs).attach(splits)


@dataclass(frozen=True)
class PrefixCache:
    """Fills and reads the entries of one model: one per split and number of frozen layers."""

    adapted: AdaptedModel
    """With the fast engine."""
    weights_sha256: str
    files_sha256: str
    """Of the checkpoint's configuration."""
    cache: ArrayCache | None
    """None keeps nothing."""
    stop: Callable[[], bool] = lambda: False
    """Asked before every batch."""
    check: Callable[[], None] = lambda: None
    """Raises if the weights are no longer those of the hash; called before an entry is complete."""

    def attach(self, splits: Mapping[str, EncodedSplit]) -> dict[str, EncodedSplit]:
        """Return the splits with their prefixes, memory-mapped; what is missing is computed.

        Splits are served in order. One for which the bound leaves no room beside those before it
        stays as it is, with a warning: the engine then computes its first layers in every step.

        Raises:
            KeyboardInterrupt: `stop` said so.
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
        reason = f"needs {size / 1e9:.3g} GB, and {room / 1e9:.3g} GB are left of the cache"
        if self.cache is None:
            reason = "may not be kept"
        elif size <= room:
            reason = "could not be kept"
        log.warning(
            "cache_prefix: the first layers' output for %s %s, so it is computed in every step; "
            "SPAFIT_BENCH_CACHE_GB and --set cache=... decide what is kept",
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
        """Compute batch after batch in the order of `longest_first`."""
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
        """Digest everything that decides the values: tokens, weights, layers, arithmetic."""
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

"""Tokenised splits that are kept for later runs: text is tokenised once on a machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from spafit_bench.data.load import Split, split_fingerprint
from spafit_bench.models.checkpoint import Checkpoint
from spafit_bench.models.encoding import EncodedSplit, encode, load_tokenizer
from spafit_bench.training.array_cache import ArrayCache, user_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spafit_bench.training.prepare import PreparedRun

FORMAT = 2
"""To be raised when `encode` comes to mean something else, so that no old entry is taken."""
_LIBRARIES = ("transformers", "tokenizers")


@dataclass(frozen=True)
class SplitEncoder:
    """Tokenises splits as `encode` does, unless the result is in the cache."""

    checkpoint: Checkpoint
    files_sha256: str
    """Of the checkpoint's configuration and tokenizer."""
    max_length: int
    cache: ArrayCache | None
    """None tokenises every time."""
    opening: Callable[[], AbstractContextManager[None]] = nullcontext
    """Guards the reading of the tokenizer's files; raises if they are not those of the hash."""

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        with self.opening():
            return load_tokenizer(self.checkpoint)

    def encode(self, split: Split) -> EncodedSplit:
        """Return the tokens of a split, memory-mapped if they come from the cache."""
        key = self._key(split)
        kept = self.cache.load(key) if self.cache else None
        if kept is not None:
            return EncodedSplit(
                input_ids=kept["input_ids"],
                token_type_ids=kept.get("token_type_ids"),
                offsets=kept["offsets"],
                labels=split.labels,
                pad_token_id=int(kept["pad_token_id"]),
            )
        encoded = encode(split, self._tokenizer, max_length=self.max_length)
        if self.cache:
            self.cache.save(key, _arrays(encoded))
        return encoded

    def _key(self, split: Split) -> str:
        """Digest everything that decides the tokens: texts in order, tokenizer, code, length."""
        facts = {
            "format": FORMAT,
            "texts": split_fingerprint(replace(split, labels=None)),
            "files": self.files_sha256,
            "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
            "max_length": self.max_length,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _arrays(encoded: EncodedSplit) -> dict[str, np.ndarray]:
    arrays = {
        "offsets": encoded.offsets,
        "input_ids": encoded.input_ids,
        "pad_token_id": np.asarray(encoded.pad_token_id),
    }
    if encoded.token_type_ids is not None:
        arrays["token_type_ids"] = encoded.token_type_ids
    return arrays


_ENCODED: dict[tuple[object, ...], dict[str, EncodedSplit]] = {}
_MOST_ENCODED = 2


def encode_task(prepared: PreparedRun) -> dict[str, EncodedSplit]:
    """Tokenise every split that the run reads; kept for the next runs on the same task."""
    config = prepared.config
    key = (
        prepared.data.fingerprint,
        prepared.files_sha256,
        config.train.max_length,
        config.limit,
        config.holdout,
        config.predict_test,
    )
    if key not in _ENCODED:
        while len(_ENCODED) >= _MOST_ENCODED:
            _ENCODED.pop(next(iter(_ENCODED)))
        encoder = SplitEncoder(
            prepared.checkpoint,
            prepared.files_sha256,
            config.train.max_length,
            user_cache("tokens") if config.cache else None,
            prepared.opening,
        )
        wanted = ["train", *prepared.task.dev_splits, *test_splits(prepared)]
        _ENCODED[key] = {name: encoder.encode(prepared.data.splits[name]) for name in wanted}
    return _ENCODED[key]


def test_splits(prepared: PreparedRun) -> list[str]:
    """Return the test sets that the run predicts: those with labels are always scored."""
    splits = prepared.data.splits
    return [
        test.key
        for test in prepared.task.test_sets
        if test.key in splits
        and (prepared.config.predict_test or splits[test.key].labels is not None)
    ]

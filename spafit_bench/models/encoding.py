"""Text into token ids, once, and token ids into batches without wasted padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spafit_bench.base.errors import UserError
from spafit_bench.data.load import Split
from spafit_bench.models.checkpoint import Checkpoint
from spafit_bench.models.ragged import Ragged, positions, to_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOL_BATCHES = 32
"""In training, examples are sorted by length within this many batches; see `training_batches`."""

SEGMENTS = "token_type_ids"
MOST_UNKNOWN, SOME_UNKNOWN = 0.8, 0.05
"""Shares of unknown tokens: above the first a run stops, above the second it warns."""
MOST_UNMADE = 0.1
"""Share of a byte-pair vocabulary's longer tokens that no merge makes; above it a run stops."""

CHUNK_ROWS = 10_000
"""Rows that are tokenised at once: until they are arrays, a pair takes about 10 kB."""


@dataclass(frozen=True)
class Prefix:
    """The output of the frozen lower layers for every token of a split, kept on disk."""

    values: np.ndarray
    """(num_tokens, hidden) in the compute precision, bf16 as the int16 of its bits; examples in
    the order of `longest_first`."""
    starts: np.ndarray
    """Row of each example's first token, (num_examples,) int64."""

    @classmethod
    def of(cls, values: np.ndarray, lengths: np.ndarray) -> Prefix:
        """Return the prefix of examples with these lengths."""
        order = longest_first(lengths)
        starts = np.empty_like(lengths)
        starts[order] = np.cumsum(lengths[order]) - lengths[order]
        return cls(values, starts)


@dataclass(frozen=True)
class EncodedSplit:
    """A tokenised split: example `i` is `input_ids[offsets[i]:offsets[i + 1]]`."""

    input_ids: np.ndarray
    """(num_tokens,) int32, all examples end to end."""
    token_type_ids: np.ndarray | None
    """(num_tokens,) uint8, or None for an encoder without segments."""
    offsets: np.ndarray
    """(num_examples + 1,) int64."""
    labels: np.ndarray | None
    """(num_examples,) int64 classes or float32; None for a test set."""
    pad_token_id: int
    prefix: Prefix | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def targets(self) -> np.ndarray:
        """The labels of a split that has labels."""
        assert self.labels is not None, "a test set has no labels to learn or score"
        return self.labels

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, (num_examples,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Batch:
    """Examples end to end, without padding."""

    input_ids: Tensor
    """(num_rows,) int64; rows of no example repeat the first token."""
    token_type_ids: Tensor | None
    """(num_rows,) int64, if the encoder has segments."""
    position_ids: Tensor
    """(num_rows,) int64, from 0 in every example."""
    layout: Ragged
    labels: Tensor | None
    """(size,) int64 classes or float32."""
    pad_token_id: int
    prefix: Tensor | None = None
    """(num_rows, hidden) in the compute precision, if the split has it."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens without padding."""
        return self.layout.num_tokens

    @property
    def size(self) -> int:
        """Number of examples."""
        return self.layout.size

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        """What a CUDA graph depends on; batches of one shape differ only in their tensors."""
        layout = self.layout
        return layout.size, layout.num_rows, layout.length, layout.places is None

    def clone(self) -> Batch:
        """Copy every tensor."""
        layout = replace(self.layout, **_clones(self.layout))
        return replace(self, layout=layout, **_clones(self))

    def copy_(self, other: Batch) -> None:
        """Overwrite every tensor with that of a batch of the same `shape`."""
        for part, source in ((self, other), (self.layout, other.layout)):
            for name, tensor in _tensors(part).items():
                tensor.copy_(getattr(source, name))

    def padded(self) -> dict[str, Tensor]:
        """Return the arguments of a transformers model, each (size, longest) int64."""
        inputs = {
            "input_ids": self.layout.pad(self.input_ids, self.pad_token_id),
            "attention_mask": self.layout.pad(torch.ones_like(self.input_ids), 0),
        }
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.layout.pad(self.token_type_ids, 0)
        return inputs


def _tensors(part: Batch | Ragged) -> dict[str, Tensor]:
    return {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}


def _clones(part: Batch | Ragged) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in _tensors(part).items()}


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer, adjusted to the encoder.

    It returns segment ids if the encoder was pretrained with them, and none if the encoder has no
    segments. A special token inside a text, such as a literal `[PAD]`, becomes ordinary tokens.

    Raises:
        UserError: its files are damaged or incomplete.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception on damaged files
        reason = " ".join(str(error).split())
        if "sentencepiece" in reason.lower() or "tiktoken" in reason.lower():
            reason = (
                "it needs the sentencepiece package: pip install sentencepiece, or add the "
                "checkpoint's tokenizer.json to the folder"
            )
        raise UserError(f"{checkpoint.path}: tokenizer cannot be loaded ({reason:.300})") from None
    tokenizer.split_special_tokens = True
    names = list(tokenizer.model_input_names)
    if SEGMENTS in names and not checkpoint.has_segments:
        names.remove(SEGMENTS)
    if SEGMENTS not in names and checkpoint.needs_segments:
        names.insert(1, SEGMENTS)
    tokenizer.model_input_names = names
    return tokenizer


def tokenizer_problem(
    tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint, texts: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return an error and a warning about what a tokenizer does to some training texts, or None.

    Training with a damaged tokenizer raises no error but gives wrong scores.
    """
    files = checkpoint.path
    ids = [i for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for i in row]
    num_characters = sum(len(word) for text in texts for word in text.split())
    if not ids or not num_characters:
        return f"{files}: the tokenizer makes no tokens of the training texts", None
    unknown = sum(i == tokenizer.unk_token_id for i in ids) / len(ids)
    share = f"{100 * unknown:.0f} % of the tokens of the training texts are unknown"
    if unknown > MOST_UNKNOWN:
        return f"{files}: {share}; is the vocabulary complete, and of this language?", None
    vocabulary = tokenizer.get_vocab()
    words = [token for token in vocabulary if token.isalpha() and token.isascii()]
    capitals = [word for word in words if word != word.lower() and len(word) > 1]
    if len(capitals) > 0.05 * len(words) and tokenizer.tokenize("Hello") == tokenizer.tokenize(
        "hello"
    ):
        return (
            f"{files}: the vocabulary has {len(capitals):,} words with capitals, but the tokenizer "
            "lower-cases every text; add a tokenizer_config.json with "
            '{"do_lower_case": false}, as the original checkpoint has it'
        ), None
    if (unmade := _share_without_merges(tokenizer)) > MOST_UNMADE:
        return (
            f"{files}: the tokenizer's merges make only {100 * (1 - unmade):.0f} % of the words in "
            "its vocabulary and split the other words into letters; is merges.txt cut short?"
        ), None
    return None, f"{checkpoint.name}: {share}" if unknown > SOME_UNKNOWN else None


def _share_without_merges(tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the share of a byte-pair vocabulary's longer tokens that no merge makes.

    A complete merges file makes all but a few special ones.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE":
        return 0.0
    model = json.loads(backend.to_str())["model"]
    if model.get("ignore_merges"):
        return 0.0
    made = {"".join(pair) for pair in model["merges"]}
    special = set(tokenizer.all_special_tokens)
    longer = [token for token in model["vocab"] if len(token) > 1 and token not in special]
    return sum(token not in made for token in longer) / len(longer) if longer else 0.0


def segment_warning(tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> str | None:
    """Return a warning if an encoder has segments that its tokenizer does not support."""
    if not checkpoint.needs_segments:
        return None
    if not any(tokenizer("a", "b")[SEGMENTS]):
        return f"{checkpoint.name}: the tokenizer puts both texts of a pair into one segment"
    declared = tokenizer.init_kwargs.get("model_input_names", type(tokenizer).model_input_names)
    if SEGMENTS not in declared:
        return (
            f"{checkpoint.name}: the tokenizer leaves out {SEGMENTS}, but the encoder has "
            "segments; they are used, in training and in an export"
        )
    return None


def encode(split: Split, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> EncodedSplit:
    """Tokenise a split; an example has at most `max_length` tokens, special ones included.

    In a pair the longer text is cut first.
    """
    lengths, input_ids, segments = [0], [], []
    for start in range(0, split.num_rows, CHUNK_ROWS):
        columns = [list(column[start : start + CHUNK_ROWS]) for column in split.texts]
        encoded = tokenizer(*columns, truncation="longest_first", max_length=max_length)
        lengths += [len(ids) for ids in encoded["input_ids"]]
        input_ids.append(np.fromiter(chain.from_iterable(encoded["input_ids"]), np.int32))
        if SEGMENTS in encoded:
            segments.append(np.fromiter(chain.from_iterable(encoded[SEGMENTS]), np.uint8))
    return EncodedSplit(
        input_ids=np.concatenate(input_ids),
        token_type_ids=np.concatenate(segments) if segments else None,
        offsets=np.cumsum(lengths, dtype=np.int64),
        labels=split.labels,
        pad_token_id=int(tokenizer.pad_token_id or 0),
    )


def collate(split: EncodedSplit, indices: np.ndarray, device: torch.device) -> Batch:
    """Return the batch of the examples with these numbers, (batch,), on a device."""
    lengths = split.lengths[indices]
    layout, within = Ragged.of(lengths, device), positions(lengths)
    source = np.repeat(split.offsets[indices], lengths) + within

    def filled(values: np.ndarray) -> np.ndarray:
        found = np.full(layout.num_rows, values[0], dtype=np.int64)
        found[: len(values)] = values
        return found

    kinds, labels, prefix = split.token_type_ids, split.labels, None
    if split.prefix is not None:
        kept = np.repeat(split.prefix.starts[indices], lengths) + within
        prefix = to_device(split.prefix.values[filled(kept)], device)
        prefix = prefix.view(torch.bfloat16) if prefix.dtype == torch.int16 else prefix
    return Batch(
        input_ids=to_device(filled(split.input_ids[source]), device),
        token_type_ids=None if kinds is None else to_device(filled(kinds[source]), device),
        position_ids=to_device(filled(within), device),
        layout=layout,
        labels=None if labels is None else to_device(labels[indices], device),
        pad_token_id=split.pad_token_id,
        prefix=prefix,
    )


def num_batches(split: EncodedSplit, batch_size: int, *, batch_tokens: int | None = None) -> int:
    """Return how many batches `training_batches` makes of a split, the same in every epoch."""
    num, den = _batch_weight(split, batch_size, batch_tokens)
    total = int(split.offsets[-1]) if batch_tokens else len(split)
    return -(-total * den // num)


def training_batches(
    split: EncodedSplit,
    batch_size: int,
    rng: np.random.Generator,
    *,
    batch_tokens: int | None = None,
) -> list[np.ndarray]:
    """Return the batches of one epoch: every example once, in batches of similar length.

    A uniform permutation is cut into pools of `POOL_BATCHES` batches. Each pool is sorted by length
    and cut into batches. Then all batches are shuffled. `rng` alone decides the result.

    The step at which an example is seen is uniform over the epoch, whatever its length. Its pool
    and the order among equal lengths are random too. Only the batch with the remainder is smaller.
    Within a pool, examples of similar length share a batch, so short examples meet long ones less
    often than in uniformly drawn batches. A split of fewer than `POOL_BATCHES` batches is one pool,
    where only equal lengths change places.

    With `batch_tokens`, a batch has about that many tokens, at least those of the longest example,
    instead of `batch_size` examples. Pools and batches are cut at equal shares of the epoch's
    tokens; an example belongs to the share that contains its middle. So the number of batches is
    the same in every epoch.
    """
    num, den = _batch_weight(split, batch_size, batch_tokens)
    weights = split.lengths if batch_tokens else np.ones(len(split), dtype=np.int64)
    order = rng.permutation(len(split))
    pools = _shares(weights[order], num * POOL_BATCHES, den)
    order = order[np.lexsort((-split.lengths[order], pools))]
    cuts = np.flatnonzero(np.diff(_shares(weights[order], num, den))) + 1
    batches = np.split(order, cuts)
    return [batches[index] for index in rng.permutation(len(batches))]


def _batch_weight(
    split: EncodedSplit, batch_size: int, batch_tokens: int | None
) -> tuple[int, int]:
    """Return the weight of a batch, in examples or tokens, as numerator and denominator.

    In tokens it is `batch_tokens` or a little more, at least one example, so no batch is empty.
    """
    if batch_tokens is None:
        return batch_size, 1
    total = int(split.offsets[-1])
    return total, max(1, total // batch_tokens)


def _shares(weights: np.ndarray, num: int, den: int) -> np.ndarray:
    """Return the number of the share, of size `num / den`, that contains each weight's middle."""
    doubled_middles = 2 * np.cumsum(weights) - weights
    return doubled_middles * den // (2 * num)


def evaluation_batches(
    split: EncodedSplit, batch_size: int, *, max_tokens: int
) -> list[np.ndarray]:
    """Return batches of similar length, longest first.

    A batch has at most `batch_size` examples, and at most `max_tokens` tokens, padding included,
    unless it is a single example.
    """
    order = longest_first(split.lengths)
    batches, start = [], 0
    while start < len(order):
        fitting = max_tokens // int(split.lengths[order[start]])
        end = start + max(1, min(batch_size, fitting))
        batches.append(order[start:end])
        start = end
    return batches


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Return the example numbers by falling length; equal lengths stay in the order of the data."""
    return np.argsort(-lengths, kind="stable")

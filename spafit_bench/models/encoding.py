"""Text into token ids, once, and token ids into batches without wasted padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
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
"""Batches among which examples are sorted by length in training; see `training_batches`."""

SEGMENTS = "token_type_ids"
MOST_UNKNOWN, SOME_UNKNOWN = 0.8, 0.05
"""Shares of unknown tokens: above the first a run stops, above the second it warns."""
MOST_UNMADE = 0.1
"""Share of a byte-pair vocabulary's longer tokens that no merge makes; above it a run stops."""

CHUNK_ROWS = 10_000
"""Rows that are tokenised at once: until they are arrays, a pair takes about 10 kB."""


@dataclass(frozen=True)
class Prefix:
    """What the frozen layers below all training say of every token of a split, kept outside RAM."""

    values: np.ndarray
    """(num_tokens, hidden) in the compute precision, bf16 as the int16 of its bits; examples in
    the order of `longest_first`."""
    starts: np.ndarray
    """Row of each example's first token, (num_examples,) int64."""

    @classmethod
    def of(cls, values: np.ndarray, lengths: np.ndarray) -> Prefix:
        """Find the examples among the rows."""
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
        """Labels of a split that has them."""
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
        """Real tokens."""
        return self.layout.num_tokens

    @property
    def size(self) -> int:
        """Number of examples."""
        return self.layout.size

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        """All of a batch that decides what is launched; the rest is in its tensors."""
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
        """Return what a transformers model takes: each (size, longest) int64."""
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
    """Load a checkpoint's tokenizer so that it suits the encoder.

    It returns segment ids if the encoder was pretrained with them, and none if it has none. Special
    tokens that stand inside a text, such as a literal `[PAD]`, are text: they are split into
    ordinary tokens.

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
    """Look at what a tokenizer does to some training texts; return an error and a warning.

    A damaged tokenizer trains without complaint and gives a wrong score, so the likely cause is
    named before the first step.
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

    A complete merges file makes all of them but a few special ones.
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
    """Return a warning if an encoder has segments that its tokenizer does not know of."""
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
    """Tokenise a split.

    Args:
        split: one text column, or two for pairs.
        tokenizer: the checkpoint's.
        max_length: tokens of an example, special ones included; a pair's longer text is cut first.
    """
    lengths, input_ids, segments = [0], [], []
    for start in range(0, split.num_rows, CHUNK_ROWS):
        columns = [list(column[start : start + CHUNK_ROWS]) for column in split.texts]
        encoded = tokenizer(*columns, truncation="longest_first", max_length=max_length)
        lengths += [len(ids) for ids in encoded["input_ids"]]
        input_ids.append(_flat(encoded["input_ids"], np.int32))
        if SEGMENTS in encoded:
            segments.append(_flat(encoded[SEGMENTS], np.uint8))
    return EncodedSplit(
        input_ids=np.concatenate(input_ids),
        token_type_ids=np.concatenate(segments) if segments else None,
        offsets=np.cumsum(lengths, dtype=np.int64),
        labels=split.labels,
        pad_token_id=int(tokenizer.pad_token_id or 0),
    )


def _flat(rows: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
    return np.fromiter((value for row in rows for value in row), dtype=dtype)


def collate(split: EncodedSplit, indices: np.ndarray, device: torch.device) -> Batch:
    """Put the chosen examples end to end.

    Args:
        split: where they are.
        indices: (batch,) example numbers.
        device: where the batch goes.
    """
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
    """Draw one epoch: every example exactly once, in random batches of similar length.

    A uniform permutation is cut into pools of `POOL_BATCHES` batches; each pool is sorted by length
    and cut into batches, and all batches are shuffled.

    Random: the step at which an example is seen (uniform over the epoch, whatever its length; only
    the batch that holds the remainder is smaller), the pool that it falls into, and the order
    among equal lengths. Not random: within a pool, neighbours in length meet in a batch. So which
    examples meet changes from epoch to epoch, but short ones meet long ones less often than in
    batches drawn without regard to length; a split of fewer than `POOL_BATCHES` batches is one
    pool, where only equal lengths change places. Everything follows from `rng` alone.

    With `batch_tokens`, a batch has about that many tokens instead of a number of examples: pools
    and batches are cut at equal shares of the epoch's tokens, an example belonging to the share
    that its middle falls into. The number of batches is thus the same in every epoch.

    Args:
        split: its lengths are all that is looked at.
        batch_size: examples of a batch; the last of a pool may have fewer.
        rng: of the epoch.
        batch_tokens: tokens of a batch, at least those of the longest example; not padding.
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
    """Return the weight of a batch as a fraction: its examples, or its share of all tokens.

    The share is `batch_tokens` or a little more, so that it is at least one example long and no
    batch is empty.
    """
    if batch_tokens is None:
        return batch_size, 1
    total = int(split.offsets[-1])
    return total, max(1, total // batch_tokens)


def _shares(weights: np.ndarray, num: int, den: int) -> np.ndarray:
    """Number the shares of `num / den` that the middles of consecutive weights fall into."""
    doubled_middles = 2 * np.cumsum(weights) - weights
    return doubled_middles * den // (2 * num)


def evaluation_batches(
    split: EncodedSplit, batch_size: int, *, max_tokens: int
) -> list[np.ndarray]:
    """Cut a split into batches of similar length, longest first.

    Args:
        split: what is evaluated.
        batch_size: most examples of a batch.
        max_tokens: most tokens of a batch with more than one example.
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
    """Number the examples by falling length, equal ones in the order of the data."""
    return np.argsort(-lengths, kind="stable")

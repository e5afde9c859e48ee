"""Pretrain tiny BERT, the six-layer cased encoder that the package ships.

On passages of mini-GLUE's grammar that are no task's dev or test rows: masked language modelling;
a sentence-pair objective through the pooler (does the second sentence belong to the first, and how
was it perturbed); and, after the third layer, which words the two sentences share. No task's label
is read.

Run from the repository root: `python -m scripts.pretrain_tiny`. It takes about ten minutes on two
free cores.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForPreTraining, BertTokenizer

from scripts.mini_glue import Passage, pretraining_text
from scripts.mini_glue.corpus import PERTURBATIONS
from scripts.mini_glue.lexicon import CAPITALISED, MEANING, OTHER_FORMS

ASSET = Path(__file__).parent.parent / "spafit_bench" / "assets" / "tiny-bert"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP, MASK = 0, 2, 3, 4
POOL = 64
"""Batches drawn together and sorted by length, so that little is padding."""
MASKED = 0.2

SHORT = 80
"""Characters of a passage that the first half of the training may see."""
MATCHING_LAYER = 3
"""The layer after which words know whether the other sentence has them too."""
RARE = 5
"""A word seen fewer times than this is left to its characters."""


def build_vocabulary(count: int) -> list[str]:
    """Return a WordPiece vocabulary: special tokens, characters, and the words of `count` passages.

    Every printable ASCII character is there, alone and as a continuation, so that no ASCII text
    has an unknown word; and every form that the lexicon gives, however rare.
    """
    words: Counter[str] = Counter()
    for passage in pretraining_text(count, "vocabulary"):
        for text in passage.texts:
            words.update(re.findall(r"\w+", text))
    known = {word for word, times in words.items() if times >= RARE} | set(OTHER_FORMS)
    characters = [chr(code) for code in range(33, 127)]
    pieces = [f"##{character}" for character in characters]
    longer = sorted(
        (word for word in known if len(word) > 1), key=lambda word: (-words[word], word)
    )
    return [*SPECIAL, *characters, *pieces, *longer]


def short_first(passages: Iterator[Passage], count: int) -> Iterator[Passage]:
    """Yield `count` passages, the first half of them short, as BERT's own pretraining did."""
    short = (passage for passage in passages if len(" ".join(passage.texts)) <= SHORT)
    yield from islice(short, count // 2)
    yield from islice(passages, count - count // 2)


def batches(
    stream: Iterator[Passage], tokenizer: BertTokenizer, size: int, shuffler: torch.Generator
) -> Iterator[list[Tensor]]:
    """Yield token ids, segment ids (both batch x length) and perturbations (batch x kind)."""
    while pool := list(islice(stream, size * POOL)):
        firsts = [passage.texts[0] for passage in pool]
        seconds = [passage.texts[1] if len(passage.texts) > 1 else None for passage in pool]
        encoded = [
            (tokens["input_ids"], tokens["token_type_ids"], passage.perturbations)
            for tokens, passage in zip(encode(tokenizer, firsts, seconds), pool, strict=True)
        ]
        encoded.sort(key=lambda row: len(row[0]))
        groups = [encoded[start : start + size] for start in range(0, len(encoded), size)]
        for index in torch.randperm(len(groups), generator=shuffler).tolist():
            group = groups[index]
            length = len(group[-1][0])
            ids, segments = (
                torch.tensor([row[part] + [0] * (length - len(row[part])) for row in group])
                for part in (0, 1)
            )
            kinds = [[float(name in row[2]) for name in PERTURBATIONS] for row in group]
            yield [ids, segments, torch.tensor(kinds)]


def encode(
    tokenizer: BertTokenizer, firsts: list[str], seconds: list[str | None]
) -> list[dict[str, list[int]]]:
    """Encode single sentences and pairs together, as `[CLS] first [SEP] second [SEP]`."""
    inputs = [
        first if second is None else (first, second)
        for first, second in zip(firsts, seconds, strict=True)
    ]
    return [
        {"input_ids": row.ids, "token_type_ids": row.type_ids}
        for row in tokenizer.backend_tokenizer.encode_batch(inputs)
    ]


def mask_tokens(
    tokens: Tensor, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mask tokens as BERT does (80 % `[MASK]`, 10 % another, 10 % kept); return them and where."""
    chosen = torch.rand(tokens.shape, generator=generator) < MASKED
    chosen &= tokens >= len(SPECIAL)
    how = torch.rand(tokens.shape, generator=generator)
    random = torch.randint(len(SPECIAL), vocabulary, tokens.shape, generator=generator)
    masked = torch.where(chosen & (how < 0.8), torch.full_like(tokens, MASK), tokens)
    return torch.where(chosen & (how >= 0.9), random, masked), chosen


def make_model(vocabulary: int) -> BertForPreTraining:
    """Return the model with random weights."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.1,
        initializer_range=0.05,
    )
    model = BertForPreTraining(config)
    with torch.no_grad():
        # Half of the heads begin by looking for words like their own, wherever they are: found by
        # gradient descent alone, that takes longer than all the rest.
        model.bert.embeddings.position_embeddings.weight.mul_(0.5)
        for layer in model.bert.encoder.layer:
            attention: Any = layer.attention
            query, key = attention.self.query.weight, attention.self.key.weight
            alike = len(query) // 2
            query[:alike].normal_(std=model.config.hidden_size**-0.5)
            key[:alike] = query[:alike]
    return model


class Objectives(nn.Module):
    """The model with its heads; those that BERT does not have are dropped afterwards."""

    meanings: Tensor

    def __init__(self, model: BertForPreTraining, meanings: Tensor) -> None:
        super().__init__()
        size = model.config.hidden_size
        self.model = model
        self.how = nn.Linear(size, len(PERTURBATIONS))
        self.shared = nn.Linear(size, 1)
        self.register_buffer("meanings", meanings)

    def forward(self, batch: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return the losses of a batch: half of its rows are masked, the others are compared."""
        tokens, segments, perturbed = batch
        half = torch.arange(len(tokens)) % 2 == 0
        masked, chosen = mask_tokens(tokens, self.model.config.vocab_size, generator)
        chosen &= half[:, None]
        output = self.model.bert(
            input_ids=torch.where(half[:, None], masked, tokens),
            token_type_ids=segments,
            attention_mask=(tokens != PAD).long(),
            output_hidden_states=True,
        )
        words = functional.cross_entropy(
            self.model.cls.predictions(output.last_hidden_state[chosen]), tokens[chosen]
        )
        belongs, how = self._compare(output.pooler_output[~half], perturbed[~half])
        middle = output.hidden_states[MATCHING_LAYER][~half]
        match = self._match(middle, tokens[~half], segments[~half])
        return torch.stack((words, belongs, how, match))

    def _compare(self, pooled: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooler's two losses: whether the second text belongs, and how it differs."""
        belongs = self.model.cls.seq_relationship(pooled)
        how = functional.binary_cross_entropy_with_logits(
            self.how(pooled), perturbed, reduction="none"
        )
        return (
            functional.cross_entropy(belongs, perturbed.any(dim=1).long()),
            how.sum(dim=1).mean(),
        )

    def _match(self, hidden: Tensor, tokens: Tensor, segments: Tensor) -> Tensor:
        """Return the loss of telling which words have their meaning in the other sentence too."""
        meaning = self.meanings[tokens]
        same = meaning[:, :, None] == meaning[:, None, :]
        across = segments[:, :, None] != segments[:, None, :]
        real = tokens >= len(SPECIAL)
        shared = (same & across & real[:, None, :]).any(dim=2)
        pair = real & (segments.sum(dim=1) > 0)[:, None]
        logits = self.shared(hidden).squeeze(-1)
        loss = functional.binary_cross_entropy_with_logits(
            logits[pair], shared[pair].float(), reduction="sum"
        )
        return loss / pair.sum().clamp(min=1)


def meaning_ids(tokenizer: BertTokenizer) -> Tensor:
    """Return, for each token id, an id that words of one meaning share."""
    vocabulary = tokenizer.get_vocab()
    ids = torch.arange(len(vocabulary))
    for word, index in vocabulary.items():
        plain = word if word in CAPITALISED else word.lower()
        ids[index] = vocabulary.get(MEANING.get(plain, plain), index)
    return ids


def pretrain(
    model: BertForPreTraining, tokenizer: BertTokenizer, options: argparse.Namespace
) -> None:
    """Train `model` in place; its sentence-pair head learns whether the second text belongs."""
    generator = torch.Generator().manual_seed(options.seed)
    objectives = Objectives(model, meaning_ids(tokenizer))
    parameters = list(objectives.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, options.steps, pct_start=0.05, anneal_strategy="linear",
        cycle_momentum=False,
    )  # fmt: skip
    count = options.steps * options.batch_size
    passages = short_first(pretraining_text(10 * count, f"train {options.seed}"), count)
    stream = batches(passages, tokenizer, options.batch_size, generator)
    start, sums = time.perf_counter(), torch.zeros(4)
    for step, batch in enumerate(stream, 1):
        parts = objectives(batch, generator)
        parts.sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        sums += parts.detach()
        if step % 200 == 0:
            words, belongs, how, match = (sums / 200).tolist()
            seconds = time.perf_counter() - start
            report = f"words {words:.3f}  belongs {belongs:.3f}  how {how:.3f}  match {match:.3f}"
            sys.stderr.write(f"{step:6d}/{options.steps}  {report}  {seconds:.0f} s\n")
            sums.zero_()


def make_tokenizer(folder: Path) -> BertTokenizer:
    """Build the vocabulary and write the tokenizer to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("\n".join(build_vocabulary(50_000)) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer(str(path), do_lower_case=False, model_max_length=128)
    tokenizer.save_pretrained(folder)
    return tokenizer


def main() -> None:
    """Build the vocabulary, pretrain, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ASSET)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    tokenizer = make_tokenizer(options.out)
    model = make_model(len(tokenizer))
    pretrain(model, tokenizer, options)
    model.save_pretrained(options.out)


if __name__ == "__main__":
    main()

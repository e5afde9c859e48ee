"""Pretrain tiny BERT, the six-layer cased encoder that the package ships.

Two objectives, on passages of mini-GLUE's grammar that are no task's dev or test rows: masked
language modelling, and a sentence-pair objective through the pooler (does the second sentence
belong to the first, and how was it perturbed). No task's label is read.

Run from the repository root: `python scripts/pretrain_tiny.py`; about fifteen minutes on two cores.
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

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForPreTraining, BertTokenizer

from spafit_bench.mini_glue import Passage, pretraining_text
from spafit_bench.mini_glue.corpus import PERTURBATIONS
from spafit_bench.mini_glue.lexicon import OTHER_FORMS

ASSET = Path(__file__).parent.parent / "spafit_bench" / "assets" / "tiny-bert"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP, MASK = 0, 2, 3, 4
POOL = 64
"""Batches drawn together and sorted by length, so that little is padding."""
MASKED = 0.2

SHORT = 80
"""Characters of a passage that the first half of the training may see."""
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
        initializer_range=0.03,
    )
    return BertForPreTraining(config)


def losses(
    model: BertForPreTraining, kinds: nn.Linear, batch: list[Tensor], generator: torch.Generator
) -> Tensor:
    """Return the loss of a batch: half of its rows are masked, the others are compared."""
    tokens, segments, perturbed = batch
    half = torch.arange(len(tokens)) % 2 == 0
    masked, chosen = mask_tokens(tokens, model.config.vocab_size, generator)
    chosen &= half[:, None]
    hidden, pooled = model.bert(
        input_ids=torch.where(half[:, None], masked, tokens),
        token_type_ids=segments,
        attention_mask=(tokens != PAD).long(),
        return_dict=False,
    )
    words = functional.cross_entropy(model.cls.predictions(hidden[chosen]), tokens[chosen])
    pooled, perturbed = pooled[~half], perturbed[~half]
    belongs = functional.cross_entropy(
        model.cls.seq_relationship(pooled), perturbed.any(dim=1).long()
    )
    how = functional.binary_cross_entropy_with_logits(kinds(pooled), perturbed, reduction="none")
    return torch.stack((words, belongs, how.sum(dim=1).mean()))


def pretrain(
    model: BertForPreTraining, tokenizer: BertTokenizer, options: argparse.Namespace
) -> None:
    """Train `model` in place; its sentence-pair head learns whether the second text belongs."""
    generator = torch.Generator().manual_seed(options.seed)
    kinds = nn.Linear(model.config.hidden_size, len(PERTURBATIONS))
    parameters = [*model.parameters(), *kinds.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, options.steps, pct_start=0.05, anneal_strategy="linear",
        cycle_momentum=False,
    )  # fmt: skip
    count = options.steps * options.batch_size
    passages = short_first(pretraining_text(10 * count, f"train {options.seed}"), count)
    stream = batches(passages, tokenizer, options.batch_size, generator)
    start, sums = time.perf_counter(), torch.zeros(3)
    for step, batch in enumerate(stream, 1):
        parts = losses(model, kinds, batch, generator)
        parts.sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        sums += parts.detach()
        if step % 200 == 0:
            words, belongs, how = (sums / 200).tolist()
            seconds = time.perf_counter() - start
            report = f"words {words:.3f}  belongs {belongs:.3f}  how {how:.3f}"
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
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--lr", type=float, default=1e-3)
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

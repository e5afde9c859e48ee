"""The order of training examples: fair, reproducible, in examples or in tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from spafit_bench.models.encoding import POOL_BATCHES, EncodedSplit, num_batches, training_batches
from tests.conftest import Cli, write_checkpoint

BATCHES = [(16, None), (1, None), (7, None), (16, 512), (16, 40), (16, 1_000_000)]
"""Examples and tokens of a batch."""


def split_of(lengths: Sequence[int] | np.ndarray) -> EncodedSplit:
    """Examples of the given lengths, all of one token."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.ones(offsets[-1], dtype=np.int32)
    return EncodedSplit(ids, None, offsets, np.zeros(len(lengths), dtype=np.int64), 0)


def random_lengths(num: int, longest: int = 40) -> np.ndarray:
    """Lengths as ragged as text has them."""
    return np.random.default_rng(0).integers(3, longest + 1, num)


def epoch(split: EncodedSplit, batch_size: int, tokens: int | None, seed: int) -> list[np.ndarray]:
    """Draw the batches of one epoch."""
    return training_batches(split, batch_size, np.random.default_rng(seed), batch_tokens=tokens)


@pytest.mark.parametrize(("batch_size", "tokens"), BATCHES)
@pytest.mark.parametrize("num", [1, 2, 63, 2000])
def test_every_example_once(num: int, batch_size: int, tokens: int | None) -> None:
    """In every epoch, in as many batches as announced, none of them empty."""
    split = split_of(random_lengths(num))
    for seed in range(5):
        batches = epoch(split, batch_size, tokens, seed)
        assert sorted(np.concatenate(batches).tolist()) == list(range(num))
        assert len(batches) == num_batches(split, batch_size, batch_tokens=tokens)
        assert min(map(len, batches)) > 0


@pytest.mark.parametrize("kind", ["equal", "one long", "alternating", "rising"])
@pytest.mark.parametrize("tokens", [40, 41, 57, 80, 399])
def test_no_batch_of_tokens_is_empty(kind: str, tokens: int) -> None:
    """However lengths are spread, as long as the longest example fits a batch."""
    lengths = {
        "equal": [40] * 97,
        "one long": [40, *[1] * 300],
        "alternating": [40, 1] * 50,
        "rising": list(range(1, 41)) * 3,
    }[kind]
    split = split_of(lengths)
    for seed in range(20):
        batches = epoch(split, 16, tokens, seed)
        assert len(batches) == max(1, sum(lengths) // tokens)
        assert min(map(len, batches)) > 0


def test_batches_of_tokens_have_about_that_many() -> None:
    """Each within half an example at either end of its share, which is N or a little more."""
    split = split_of(random_lengths(3000))
    sizes = [split.lengths[batch].sum() for batch in epoch(split, 16, 512, 0)]
    share = split.lengths.sum() / len(sizes)
    assert 512 <= share < 512 * (1 + 1 / len(sizes))
    assert max(abs(size - share) for size in sizes) <= 40
    examples = [len(batch) for batch in epoch(split, 16, 512, 0)]
    assert max(examples) > 2 * min(examples)


@pytest.mark.parametrize(("batch_size", "tokens"), [(16, None), (16, 400)])
def test_the_order_follows_from_the_generator(batch_size: int, tokens: int | None) -> None:
    """The same again for the same seed, another order for another."""
    split = split_of(random_lengths(2000))
    first, again, other = (epoch(split, batch_size, tokens, seed) for seed in (1, 1, 2))
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in other]


def test_batches_of_examples_as_stated() -> None:
    """Pool by pool, as a loop written from the description gives them."""
    split, size = split_of(random_lengths(1500)), 16
    rng = np.random.default_rng(5)
    order = rng.permutation(1500).tolist()
    expected = []
    for start in range(0, 1500, size * POOL_BATCHES):
        pool = order[start : start + size * POOL_BATCHES]
        pool.sort(key=lambda example: -split.lengths[example])
        expected += [pool[at : at + size] for at in range(0, len(pool), size)]
    expected = [expected[number] for number in rng.permutation(len(expected))]
    assert [batch.tolist() for batch in epoch(split, size, None, 5)] == expected


@pytest.mark.parametrize(("batch_size", "tokens"), [(4, None), (4, 80)])
def test_every_example_may_come_at_any_time(batch_size: int, tokens: int | None) -> None:
    """The mean position is the middle for the shortest and the longest example alike.

    Over 1,000 epochs the mean of a uniform position (variance 1/12) has a standard error of 0.0091;
    the largest of 400 deviations is below 4.5 of them but for one time in 300.
    """
    split = split_of(random_lengths(400))
    positions = np.zeros(400)
    for seed in range(1000):
        batches = epoch(split, batch_size, tokens, seed)
        for number, batch in enumerate(batches):
            positions[batch] += (number + 0.5) / len(batches)
    assert np.abs(positions / 1000 - 0.5).max() < 4.5 * math.sqrt(1 / 12 / 1000)


@pytest.mark.parametrize(("batch_size", "tokens"), [(4, None), (4, 40)])
def test_equal_lengths_meet_at_random(batch_size: int, tokens: int | None) -> None:
    """Among examples of one length every pair meets about equally often."""
    split, epochs = split_of([10] * 24), 2000
    meetings: Counter[tuple[int, int]] = Counter()
    for seed in range(epochs):
        for batch in epoch(split, batch_size, tokens, seed):
            ordered = sorted(batch.tolist())
            meetings.update((a, b) for i, a in enumerate(ordered) for b in ordered[i + 1 :])
    expected = epochs * 3 / 23  # the three others of a batch, out of 23
    assert len(meetings) == 24 * 23 // 2
    spread = math.sqrt(expected * (1 - 3 / 23))
    assert max(abs(count - expected) for count in meetings.values()) < 4.5 * spread


def test_who_meets_changes_from_epoch_to_epoch() -> None:
    """In a split of several pools, an example's batch is a different one each time."""
    split = split_of(random_lengths(3000))
    partners = []
    for seed in range(4):
        (batch,) = (batch for batch in epoch(split, 16, None, seed) if 7 in batch)
        partners.append(set(batch.tolist()) - {7})
    repeated = sum(len(a & b) for i, a in enumerate(partners) for b in partners[i + 1 :])
    assert repeated < 30  # of 90 chances


@pytest.mark.parametrize(("batch_size", "tokens"), [(16, None), (16, 400)])
def test_little_padding(batch_size: int, tokens: int | None) -> None:
    """Batches of similar length waste less than 10 % where uniform ones waste over 40 %."""
    split = split_of(random_lengths(3000))

    def waste(batches: Sequence[np.ndarray]) -> float:
        padded = sum(len(batch) * split.lengths[batch].max() for batch in batches)
        return 1 - float(split.lengths.sum() / padded)

    uniform = np.array_split(np.random.default_rng(0).permutation(3000), 188)
    assert waste(epoch(split, batch_size, tokens, 0)) < 0.1
    assert waste(uniform) > 0.4


def test_a_run_with_batches_of_tokens(call: Cli, data: Path, tmp_path: Path) -> None:
    """Steps follow from the tokens of train; gradients accumulated in pieces change nothing."""
    folder = tmp_path / "model"
    write_checkpoint(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    where = ("--model", folder, "--data", data, "--precision", "fp32", "--device", "cpu")
    sizes = ("--epochs", 2, "--max-length", 16, "--batch-tokens", 48)
    flags = ("run", "--task", "cola", "--method", "bitfit", *where, *sizes, "--json")
    whole = call(*flags)
    assert whole.code == 0, whole.err
    steps = [evaluation["step"] for evaluation in whole.json["evaluations"]]
    per_epoch = whole.json["train_tokens"] // 2 // 48
    assert steps == [per_epoch, 2 * per_epoch]
    assert per_epoch > 2
    pieces = call(*flags, "--set", "train.micro_batch_size=2")
    assert pieces.json["run_id"] != whole.json["run_id"]
    losses = [answer.json["evaluations"][-1]["train_loss"] for answer in (whole, pieces)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_batch_holds_the_longest_example(call: Cli, data: Path) -> None:
    """Fewer tokens than an example may have are refused before anything is loaded."""
    flags = ("run", "--task", "cola", "--method", "bitfit", "--data", data)
    answer = call(*flags, "--max-length", 64, "--batch-tokens", 63)
    assert "batch_tokens = 63" in answer.error
    assert "max_length = 64" in answer.error


def test_a_batch_has_one_size(call: Cli) -> None:
    """In examples or in tokens, not both."""
    answer = call("run", "--task", "cola", "--batch-size", 8, "--batch-tokens", 512)
    assert "--batch-tokens" in answer.error

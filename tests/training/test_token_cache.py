"""Tokenised text that is kept: the same as without, and never that of something else."""

from __future__ import annotations

import importlib.metadata
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spafit_bench.data.load import Split, load_task_data
from spafit_bench.data.tasks import get_task
from spafit_bench.models import encoding
from spafit_bench.models.checkpoint import find_checkpoint, fingerprint
from spafit_bench.models.encoding import EncodedSplit, encode, load_tokenizer
from spafit_bench.training import token_cache
from spafit_bench.training.array_cache import ArrayCache
from spafit_bench.training.token_cache import SplitEncoder
from tests.conftest import Cli, write_checkpoint


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    """An empty cache."""
    return ArrayCache(tmp_path / "tokens", max_bytes=1_000_000)


def encoder_of(model: Path, cache: ArrayCache | None, max_length: int = 16) -> SplitEncoder:
    """Return an encoder for a checkpoint folder."""
    checkpoint = find_checkpoint(str(model))
    return SplitEncoder(checkpoint, fingerprint(checkpoint)[1], max_length, cache)


def assert_same(found: EncodedSplit, expected: EncodedSplit) -> None:
    """Compare every field, types included."""
    for field in fields(EncodedSplit):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        assert (left is None) == (right is None), field.name
        if right is not None:
            np.testing.assert_array_equal(left, right, strict=isinstance(right, np.ndarray))


@pytest.mark.parametrize("task", ["mrpc", "cola", "stsb"])
@pytest.mark.parametrize("segments", [1, 2])
def test_the_same_as_without(
    tmp_path: Path, data: Path, cache: ArrayCache, task: str, segments: int
) -> None:
    """Pairs and single texts, classes and scores, encoders with and without segments; cut, too."""
    model = write_checkpoint(tmp_path / "model", type_vocab_size=segments)
    splits = load_task_data(get_task(task), str(data)).splits
    tokenizer = load_tokenizer(find_checkpoint(str(model)))
    for key in ("train", "validation", "test"):
        expected = encode(splits[key], tokenizer, max_length=8)
        assert (expected.token_type_ids is None) == (segments == 1)
        for encoder in (encoder_of(model, cache, 8), encoder_of(model, cache, 8)):
            assert_same(encoder.encode(splits[key]), expected)
    assert len(list(cache.folder.iterdir())) == 3


@pytest.mark.parametrize("segments", [1, 2])
def test_rows_are_tokenised_in_portions(
    tmp_path: Path, data: Path, segments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by a portion, and the result does not depend on its size."""
    model = write_checkpoint(tmp_path / "model", type_vocab_size=segments)
    split = load_task_data(get_task("mrpc"), str(data)).splits["train"]
    tokenizer = load_tokenizer(find_checkpoint(str(model)))
    whole = encode(split, tokenizer, max_length=8)
    portions: list[int] = []

    def tokenise(*columns: list[str], **settings: object) -> object:
        portions.append(len(columns[0]))
        return tokenizer(*columns, **settings)

    tokenise.pad_token_id = tokenizer.pad_token_id  # type: ignore[attr-defined]
    monkeypatch.setattr(encoding, "CHUNK_ROWS", 5)
    assert_same(encode(split, tokenise, max_length=8), whole)  # type: ignore[arg-type]
    assert sum(portions) == len(whole) > 5
    assert max(portions) == 5


def test_text_is_tokenised_once(
    checkpoint: Path, cache: ArrayCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept needs no tokenizer, and labels may be others."""
    split = Split((("a dog", "the cat"),), np.array([0, 1]))
    first = encoder_of(checkpoint, cache).encode(split)
    monkeypatch.setattr(token_cache, "load_tokenizer", lambda _: pytest.fail("tokenised again"))
    relabelled = encoder_of(checkpoint, cache).encode(replace(split, labels=np.array([1, 0])))
    assert_same(relabelled, replace(first, labels=np.array([1, 0])))


def test_what_changes_tokens_changes_the_entry(
    tmp_path: Path, cache: ArrayCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text, its order, its columns' order, the length, the tokenizer, libraries and format."""
    model = write_checkpoint(tmp_path / "model")
    split = Split((("one dog", "red cat"), ("two", "green bird")), None)
    texts = (
        split.texts,
        (split.texts[0], ("two", "blue bird")),
        split.texts[::-1],
        tuple(column[::-1] for column in split.texts),
        tuple(column[:1] for column in split.texts),
        split.texts[:1],
    )
    for given in texts:
        encoder_of(model, cache).encode(Split(given, None))
    encoder_of(model, cache, max_length=9).encode(split)
    shuffled = write_checkpoint(tmp_path / "shuffled")
    words = (shuffled / "vocab.txt").read_text().split()
    (shuffled / "vocab.txt").write_text("\n".join([*words[:5], *words[:4:-1]]))
    encoder_of(shuffled, cache).encode(split)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda _: "99")
        encoder_of(model, cache).encode(split)
    monkeypatch.setattr(token_cache, "FORMAT", token_cache.FORMAT + 1)
    encoder_of(model, cache).encode(split)
    assert len(list(cache.folder.iterdir())) == len(texts) + 4


def predictions(results: Path) -> pd.DataFrame:
    """Read the predictions of the only run."""
    (file,) = results.glob("runs/*/predictions.parquet")
    return pd.read_parquet(file)


def test_runs_share_it(
    call: Cli,
    cli: Cli,
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A later process takes what is sound, makes anew what is not, and predicts the same."""
    folder = tmp_path / "own-cache"
    monkeypatch.setenv("SPAFIT_BENCH_CACHE_DIR", str(folder))
    where = ("--model", checkpoint, "--data", data, "--precision", "fp32", "--device", "cpu")
    flags = ("run", "--task", "mrpc", "--method", "bitfit", *where, "--epochs", 1, "--json")
    off = call(*flags, "--max-length", 22, "--set", "cache=false")
    assert off.code == 0, off.err
    assert not folder.exists()
    first = call(*flags, "--max-length", 23, "--results", "first")
    entries = sorted(folder.glob("tokens/*.arrays"))
    assert len(entries) == 3
    entries[0].write_bytes(entries[0].read_bytes()[:-100])
    again = cli(*flags, "--max-length", 23, "--results", "again", "--set", "cache=true")
    assert again.err.count("set aside") == 1
    assert sorted(folder.glob("tokens/*.arrays")) == entries
    assert again.json["run_id"] == first.json["run_id"]
    left, right = (predictions(tmp_path / name) for name in ("first", "again"))
    pd.testing.assert_frame_equal(left, right)

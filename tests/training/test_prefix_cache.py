"""The frozen first layers' output, kept: the same results, made once, sound and bounded."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from spafit_bench.config.selection import RunRequest, run_configs
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.encoding import Batch, EncodedSplit, collate
from spafit_bench.models.fused import FusedEncoder
from spafit_bench.training.array_cache import ArrayCache
from spafit_bench.training.evaluation import predict
from spafit_bench.training.gradients import loss_sum
from spafit_bench.training.prefix_cache import PrefixCache
from spafit_bench.training.prepare import Preparer
from tests.conftest import Cli
from tests.support.models import SPECIAL, VOCABULARY, build, plan_checkpoint, save_checkpoint

METHOD = "0-1:frozen;2:bias(ffn);3:lora(query+key+value,r=4,alpha=8)"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DISTILBERT_NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}


def split_of(count: int, *, segments: bool = True, seed: int = 0) -> EncodedSplit:
    """Random examples of 2 to 14 tokens with two classes."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, 15, count))])
    ids = rng.integers(len(SPECIAL), VOCABULARY, offsets[-1]).astype(np.int32)
    kinds = rng.integers(0, 2, offsets[-1]).astype(np.uint8)
    labels = rng.integers(0, 2, count)
    return EncodedSplit(ids, kinds if segments else None, offsets, labels, pad_token_id=0)


def checkpoint_of(folder: Path, kind: str = "bert", **changes: object) -> Path:
    """A tiny checkpoint of four layers, without dropout unless `changes` say otherwise."""
    none = DISTILBERT_NO_DROPOUT if kind == "distilbert" else NO_DROPOUT
    return save_checkpoint(folder, kind, form="base", num_layers=4, **(none | changes))


def fast(folder: Path, precision: str = "fp32", *, cache_prefix: bool = True) -> AdaptedModel:
    """Two frozen layers and two that train, with the fast engine."""
    return build(folder, METHOD, precision=precision, engine="fast", cache_prefix=cache_prefix)


def of_model(adapted: AdaptedModel, cache: ArrayCache, weights: str = "w") -> PrefixCache:
    """The entries of a model whose weights have some hash."""
    return PrefixCache(adapted, weights, "files", cache)


@pytest.fixture
def cache(tmp_path: Path) -> ArrayCache:
    """An empty cache."""
    return ArrayCache(tmp_path / "prefixes", max_bytes=10_000_000)


def step(adapted: AdaptedModel, split: EncodedSplit) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Logits and gradients of one training step on a ragged batch, not in the data's order."""
    adapted.model.train()
    batch = collate(split, np.array([7, 2, 9, 0, 5]), torch.device("cpu"))
    assert (batch.prefix is None) == (split.prefix is None)
    logits = adapted.engine.logits(batch)
    loss_sum(logits, batch).backward()
    return logits.detach(), {name: p.grad for name, p in adapted.trainable().items()}


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_the_same_logits_and_gradients(kind: str, tmp_path: Path, cache: ArrayCache) -> None:
    """From what is kept, to 1e-5 of transformers' own forward pass, where nothing is dropped."""
    folder = checkpoint_of(tmp_path / "model", kind)
    split = split_of(12, segments=kind in ("bert", "electra"))
    expected, expected_gradients = step(build(folder, METHOD), split)
    adapted = fast(folder)
    kept = of_model(adapted, cache).attach({"train": split})["train"]
    logits, gradients = step(adapted, kept)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-5, rtol=1e-5)
    assert all(gradient is not None for gradient in gradients.values())


def test_evaluation_is_the_same(tmp_path: Path, cache: ArrayCache) -> None:
    """In fp32 bit for bit with batches of the same shapes, and to 1e-5 with others."""
    folder, split = checkpoint_of(tmp_path / "model", hidden_dropout_prob=0.1), split_of(150)
    expected = predict(fast(folder, cache_prefix=False), split, batch_size=64).logits
    adapted = fast(folder)
    kept = of_model(adapted, cache).attach({"dev": split})["dev"]
    assert kept.prefix is not None
    found = predict(adapted, kept, batch_size=64).logits
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, predict(adapted, split, batch_size=64).logits)
    other_shapes = predict(adapted, kept, batch_size=7).logits
    np.testing.assert_allclose(other_shapes, expected, atol=1e-5, rtol=0)


def test_evaluation_in_bf16_is_as_close_to_fp32(tmp_path: Path, cache: ArrayCache) -> None:
    """What is handed on is rounded, kept or not; that adds little to what bf16 rounds anyway."""
    folder, split = checkpoint_of(tmp_path / "model"), split_of(150)
    exact = predict(fast(folder), split, batch_size=64).logits
    without = predict(fast(folder, "bf16", cache_prefix=False), split, batch_size=64).logits
    adapted = fast(folder, "bf16")
    kept = of_model(adapted, cache).attach({"dev": split})["dev"]
    assert kept.prefix is not None
    found = predict(adapted, kept, batch_size=64).logits
    np.testing.assert_array_equal(found, predict(adapted, split, batch_size=64).logits)
    rms = np.sqrt(np.square([found - exact, without - exact, exact - exact.mean(0)]).mean((1, 2)))
    assert rms[0] < 2 * rms[1] + 1e-4
    assert rms[0] < 0.1 * rms[2]


def test_only_what_is_kept_is_without_dropout(tmp_path: Path, cache: ArrayCache) -> None:
    """In training the first layers are as in evaluation, and the others drop."""
    adapted = fast(checkpoint_of(tmp_path / "model", hidden_dropout_prob=0.5))
    kept = of_model(adapted, cache).attach({"train": split_of(12)})["train"]
    adapted.model.train()
    batch = collate(kept, np.arange(12), torch.device("cpu"))
    assert isinstance(adapted.engine, FusedEncoder)
    assert batch.prefix is not None
    in_training = adapted.engine.prefix(batch)[: batch.num_tokens]
    torch.testing.assert_close(in_training, batch.prefix[: batch.num_tokens])
    assert not torch.equal(adapted.engine.logits(batch), adapted.engine.logits(batch))


def entries(cache: ArrayCache) -> list[Path]:
    """Every file of the cache."""
    return sorted(cache.folder.iterdir())


def test_it_is_made_once(
    tmp_path: Path, cache: ArrayCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run takes it from the disk, memory-mapped, whatever its labels and seed."""
    adapted, split = fast(checkpoint_of(tmp_path / "model")), split_of(12)
    first = of_model(adapted, cache).attach({"train": split})["train"].prefix
    monkeypatch.setattr(FusedEncoder, "prefix", lambda *_: pytest.fail("computed again"))
    again = of_model(adapted, cache).attach({"dev": split})["dev"].prefix
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(again.values, first.values)
    assert not again.values.flags.owndata
    assert not again.values.flags.writeable


def test_what_changes_it_changes_the_entry(tmp_path: Path, cache: ArrayCache) -> None:
    """Tokens, weights, precision and the number of layers."""
    folder, split = checkpoint_of(tmp_path / "model"), split_of(12)
    adapted = fast(folder)
    of_model(adapted, cache).attach({"a": split, "b": split_of(12, seed=1)})
    of_model(adapted, cache, weights="others").attach({"a": split})
    of_model(fast(folder, "bf16"), cache).attach({"a": split})
    deeper = build(folder, "0-2:frozen;3:bias", engine="fast", cache_prefix=True)
    of_model(deeper, cache).attach({"a": split})
    assert len(entries(cache)) == 5


def test_damage_is_noticed_and_mended(
    tmp_path: Path, cache: ArrayCache, caplog: pytest.LogCaptureFixture
) -> None:
    """One flipped bit, and the entry is made anew."""
    adapted, split = fast(checkpoint_of(tmp_path / "model")), split_of(12)
    sound = of_model(adapted, cache).attach({"a": split})["a"].prefix
    assert sound is not None
    expected = sound.values.copy()
    (entry,) = entries(cache)
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)
    mended = of_model(adapted, cache).attach({"a": split})["a"].prefix
    assert mended is not None
    np.testing.assert_array_equal(mended.values, expected)
    assert "set aside" in caplog.text
    assert entry in entries(cache)


def test_the_bound_holds(
    tmp_path: Path, cache: ArrayCache, caplog: pytest.LogCaptureFixture
) -> None:
    """A split without room is said so and computed in every step; one run's splits never fight."""
    adapted = fast(checkpoint_of(tmp_path / "model"))
    splits = {name: split_of(40, seed=seed) for seed, name in enumerate(("train", "dev", "test"))}
    sizes = {name: int(split.offsets[-1]) * 4 * 32 for name, split in splits.items()}
    assert adapted.model.config.hidden_size == 32
    small = ArrayCache(cache.folder, sizes["train"] + sizes["dev"] + 3_000)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            found = of_model(adapted, small).attach(splits)
        assert [name for name, split in found.items() if split.prefix is not None] == [
            "train",
            "dev",
        ]
        assert sum(path.stat().st_size for path in entries(small)) <= small.max_bytes
    assert caplog.text.count("for test needs") == 2
    logits = predict(adapted, found["test"], batch_size=64).logits
    kept = of_model(adapted, cache).attach(splits)["test"]
    np.testing.assert_array_equal(logits, predict(adapted, kept, batch_size=64).logits)


def test_a_full_or_forbidden_disk_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be kept, everything is computed."""
    (tmp_path / "file").write_text("in the way")
    adapted = fast(checkpoint_of(tmp_path / "model"))
    found = of_model(adapted, ArrayCache(tmp_path / "file" / "c", 10_000_000)).attach(
        {"train": split_of(12)}
    )
    assert found["train"].prefix is None
    assert "could not be written" in caplog.text


def test_out_of_memory_halves_the_batch(
    tmp_path: Path, cache: ArrayCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is that of whole batches, in the same order; one example is the least."""
    adapted, split = fast(checkpoint_of(tmp_path / "model")), split_of(150)
    whole = of_model(adapted, cache).attach({"a": split})["a"].prefix
    prefix, most = FusedEncoder.prefix, 20

    def small_device(self: FusedEncoder, batch: Batch) -> Tensor:
        if batch.size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prefix(self, batch)

    monkeypatch.setattr(FusedEncoder, "prefix", small_device)
    pieces = of_model(adapted, cache, weights="others").attach({"a": split})["a"].prefix
    assert whole is not None
    assert pieces is not None
    np.testing.assert_allclose(pieces.values, whole.values, atol=1e-5)
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        of_model(adapted, cache, weights="third").attach({"a": split})


def test_a_stop_is_obeyed(tmp_path: Path, cache: ArrayCache) -> None:
    """Filling a large entry ends at the next batch, and leaves nothing half made."""
    adapted = fast(checkpoint_of(tmp_path / "model"))
    stopped = PrefixCache(adapted, "w", "f", cache, stop=lambda: True)
    with pytest.raises(KeyboardInterrupt):
        stopped.attach({"train": split_of(12)})
    assert entries(cache) == []


def _fill(prefixes: PrefixCache, split: EncodedSplit, start: Callable[[], int]) -> None:
    start()
    prefix = prefixes.attach({"a": split})["a"].prefix
    assert prefix is not None
    np.testing.assert_array_equal(prefix.values, prefixes.attach({"a": split})["a"].prefix.values)


def test_one_process_computes_for_all(
    tmp_path: Path, cache: ArrayCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait and have it whole, also where two entries would not fit."""
    adapted, split = fast(checkpoint_of(tmp_path / "model")), split_of(1_000)
    context = multiprocessing.get_context("fork")
    barrier, computed = context.Barrier(3, timeout=30), context.Value("i", 0)
    prefix = FusedEncoder.prefix

    def slowly(self: FusedEncoder, batch: Batch) -> Tensor:
        with computed.get_lock():
            computed.value += batch.size
        time.sleep(0.02)
        return prefix(self, batch)

    monkeypatch.setattr(FusedEncoder, "prefix", slowly)
    small = replace(cache, max_bytes=int(1.5 * split.offsets[-1] * 4 * 32))
    work = (of_model(adapted, small), split, barrier.wait)
    processes = [context.Process(target=_fill, args=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(entries(cache)) == 1
    assert computed.value == 1_000


def test_who_waits_can_be_stopped(cache: ArrayCache) -> None:
    """A process that waits for another's entry ends when it is asked to."""
    context = multiprocessing.get_context("fork")
    here, there = context.Event(), context.Event()

    def hold() -> None:
        with cache.alone("a"):
            there.set()
            here.wait(30)

    process = context.Process(target=hold)
    process.start()
    assert there.wait(30)
    with cache.alone("b"):
        pass  # another entry is free
    with pytest.raises(KeyboardInterrupt), cache.alone("a", stop=lambda: True):
        pytest.fail("two at once")
    here.set()
    with cache.alone("a", stop=lambda: not here.is_set()):
        process.join(30)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        (METHOD, 2),
        ("spafit", 1),
        ("all:frozen", 3),
        ("lora", 0),
        ("bitfit", 0),
        ("0-1:frozen;2-3:bias;embeddings:bias", 0),
    ],
)
def test_how_many_layers_are_frozen(method: str, layers: int, tmp_path: Path) -> None:
    """Those below the first that trains; none where the embeddings do; the last one never."""
    assert plan_checkpoint(checkpoint_of(tmp_path / "model"), method).frozen_layers == layers


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with dropout, of which `spafit` freezes one layer."""
    return save_checkpoint(tmp_path_factory.mktemp("four"), "bert", form="base", num_layers=4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method", "spafit", "--engine", "plain"), "this run uses --engine plain"),
        (("--method", "0:frozen;1-3:lora(query,r=2,alpha=4,dora)"), "does not support DoRA"),
        (("--method", "bitfit"), "bitfit trains bert.embeddings.LayerNorm.bias"),
        (("--method", "lora"), "lora trains bert.encoder.layer.0.attention.self.query.weight"),
    ],
)
def test_what_cannot_be_is_refused(
    flags: tuple[str, ...], said: str, call: Cli, four_layers: Path, data: Path
) -> None:
    """One message that says why."""
    where = ("--model", four_layers, "--data", data, "--max-length", 32)
    answer = call("run", "--task", "mrpc", *where, *flags, "--cache-prefix")
    assert "--cache-prefix" in answer.error
    assert said in answer.error


def test_it_is_another_run(four_layers: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes the result, so it changes the name; runs without it keep the name they had."""
    named: list[dict[str, object]] = []
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda body, **how: named.append(body) or dumps(body, **how))

    def run_id(**settings: object) -> str:
        train = {"max_length": 32}
        flags = {"model": str(four_layers), "data": str(data), "train": train} | settings
        request = RunRequest(task="mrpc", method="spafit", flags=flags)
        return Preparer().prepare(run_configs(request)[0]).run_id

    assert run_id(cache_prefix=False) == run_id()
    assert not any("cache_prefix" in body for body in named)
    assert run_id(cache_prefix=True) != run_id()
    assert any("cache_prefix" in body for body in named)


def test_runs_use_it(
    call: Cli, four_layers: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three entries for all seeds; the record says so; without room, the same predictions."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPAFIT_BENCH_CACHE_DIR", str(folder))
    where = ("--model", four_layers, "--data", data, "--precision", "fp32", "--device", "cpu")
    flags = ("run", "--task", "mrpc", "--method", "spafit", *where, "--epochs", 1, "--json")
    flags = (*flags, "--max-length", 32, "--cache-prefix")
    first = call(*flags, "--results", "first")
    assert first.code == 0, first.err
    assert first.json["config"]["cache_prefix"] is True
    made = sorted(folder.glob("prefixes/*.arrays"))
    assert len(made) == 3
    assert call(*flags, "--seed", 1).code == 0
    assert sorted(folder.glob("prefixes/*")) == made
    again = call(*flags, "--results", "again", "--set", "cache=false")
    assert again.json["run_id"] == first.json["run_id"]
    left, right = (
        pd.read_parquet(*(tmp_path / name).glob("runs/*/predictions.parquet"))
        for name in ("first", "again")
    )
    pd.testing.assert_frame_equal(left, right, atol=1e-5, rtol=1e-5)
    record = json.loads(next((tmp_path / "first").glob("runs/*/record.json")).read_text())
    assert record["config"]["cache_prefix"] is True

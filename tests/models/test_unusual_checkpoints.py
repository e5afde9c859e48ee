"""Checkpoints whose files are unusual or damaged: never another result in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, RobertaConfig

from spafit_bench.base.errors import UserError
from spafit_bench.config.selection import RunRequest, run_configs
from spafit_bench.data.load import Split
from spafit_bench.models.checkpoint import find_checkpoint, fingerprint
from spafit_bench.models.encoding import encode, load_tokenizer
from spafit_bench.training.prepare import PreparedRun, Preparer
from spafit_bench.training.run import build_model
from tests.conftest import call_main
from tests.support.tiny_runs import WORDS, World, make_world
from tests.support.tiny_runs import write_checkpoint as write_random

PAIR = ("the cat sat", "a red dog ran")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A tiny random BERT with tiny data."""
    return make_world(tmp_path)


def changed(folder: Path, file: str = "config.json", drop: str = "", **keys: Any) -> Path:
    """Change keys of one of a checkpoint's JSON files."""
    path = folder / file
    body: Mapping[str, Any] = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in body.items() if key != drop}))
    return folder


def prepared(world: World, method: str = "bitfit", **flags: Any) -> PreparedRun:
    """Prepare a run of the world's model, as it is on disk now."""
    request = RunRequest(
        task="mrpc",
        method=method,
        flags={"model": str(world.model), "data": str(world.data), "precision": "fp32", **flags},
        assignments=("train.max_length=24",),
    )
    [config] = run_configs(request)
    return Preparer().prepare(config)


@pytest.mark.parametrize(
    "key", [{"is_decoder": True}, {"some_key_of_tomorrow": 3}, {"pruned_heads": {"0": [1]}}]
)
def test_a_key_that_the_fast_engine_does_not_know(world: World, key: dict[str, Any]) -> None:
    """The plain engine computes it; the fast one names the key."""
    assert prepared(world).engine == "fast"
    changed(world.model, **key)
    assert prepared(world).engine == "plain"
    with pytest.raises(UserError, match=f"--engine fast: .*{next(iter(key))}"):
        prepared(world, engine="fast")


def test_keys_that_change_nothing_stay_fast(world: World) -> None:
    """Old metadata, and keys at their default."""
    changed(world.model, is_decoder=False, pooler_type="first_token_transform", return_dict=False)
    assert prepared(world).engine == "fast"


def test_return_dict_false_trains_with_the_plain_engine_and_exports(world: World) -> None:
    """A tuple of outputs is nowhere expected."""
    changed(world.model, return_dict=False)
    adapted = build_model(prepared(world, engine="plain"))
    assert adapted.model.config.return_dict


def test_segments_are_kept_without_type_vocab_size(world: World) -> None:
    """Transformers' default is two segments."""
    changed(world.model, drop="type_vocab_size")
    tokenizer = load_tokenizer(find_checkpoint(str(world.model)))
    assert tokenizer(*PAIR)["token_type_ids"][-1] == 1


def test_a_tokenizer_that_leaves_segments_out_is_repaired_and_said(world: World) -> None:
    """In training, and by a warning."""
    names = ["input_ids", "attention_mask"]
    changed(
        world.model,
        "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        model_input_names=names,
    )
    run = prepared(world)
    assert any("leaves out token_type_ids" in warning for warning in run.warnings)
    split = Split(tuple(np.array([text]) for text in PAIR), None)
    encoded = encode(split, load_tokenizer(run.checkpoint), max_length=24)
    assert encoded.token_type_ids is not None
    assert encoded.token_type_ids[-1] == 1


def test_special_tokens_in_a_text_are_text(world: World) -> None:
    """A literal [SEP] does not end a text."""
    tokenizer = load_tokenizer(find_checkpoint(str(world.model)))
    ids = tokenizer("the [SEP] cat [PAD] sat")["input_ids"]
    assert ids.count(tokenizer.sep_token_id) == 1
    assert tokenizer.pad_token_id not in ids


def test_an_export_tokenizes_as_training_did(tmp_path: Path) -> None:
    """RoBERTa's weights with BERT's tokenizer: no segment ids, also in a fresh process."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(
        vocab_size=5 + len(WORDS),
        intermediate_size=32,
        max_position_embeddings=40,
        type_vocab_size=1,
        pad_token_id=0,
        **sizes,
    )
    world = make_world(tmp_path, config)
    record = world.run("bitfit", "mrpc")
    to = tmp_path / "out"
    answer = call_main("export", record.run_id, "--results", world.results, "--to", to)
    assert answer.code == 0, answer.err
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert "token_type_ids" not in tokenizer(*PAIR)
    assert tokenizer("a [SEP] cat")["input_ids"].count(tokenizer.sep_token_id) == 1
    model = AutoModelForSequenceClassification.from_pretrained(to)
    with torch.no_grad():
        assert model(**tokenizer(*PAIR, return_tensors="pt")).logits.shape == (1, 2)


def test_positions_are_known_before_the_first_step(tmp_path: Path) -> None:
    """RoBERTa without pad_token_id in its configuration counts from transformers' default."""
    config = RobertaConfig(
        vocab_size=5 + len(WORDS), max_position_embeddings=40, type_vocab_size=1,
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    folder = changed(write_random(tmp_path / "roberta", config), drop="pad_token_id")
    assert find_checkpoint(str(folder)).most_tokens == 38


def test_a_head_of_another_task_is_replaced_and_said(world: World) -> None:
    """Three labels stored, two wanted: MNLI before MRPC is common practice."""
    file = world.model / "model.safetensors"
    tensors = load_file(file)
    hidden = next(t for n, t in tensors.items() if n.endswith("pooler.dense.bias")).shape[0]
    prefixed = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    head = {"classifier.weight": np.ones((3, hidden), "f4"), "classifier.bias": np.ones(3, "f4")}
    save_file(prefixed | head, file, metadata={"format": "pt"})
    run = prepared(world)
    said = "has 3 outputs, so a new one with 2 replaces it"
    assert any(said in warning for warning in run.warnings)
    assert build_model(run).model.classifier.weight.shape == (2, hidden)


def test_files_outside_the_fingerprint(world: World) -> None:
    """Keys that name other files are refused; files that a tokenizer may read are counted."""
    checkpoint = find_checkpoint(str(world.model))
    before = fingerprint(checkpoint)
    (world.model / "bpe.codes").write_text("x")
    assert fingerprint(checkpoint)[1] != before[1]
    changed(world.model, transformers_weights="other.safetensors")
    with pytest.raises(UserError, match="transformers_weights makes transformers read other files"):
        find_checkpoint(str(world.model))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda m: (m / "adapter_config.json").write_text("{}"),
            "holds a PEFT adapter",
        ),
        (lambda m: changed(m, drop="model_type"), "there is no model_type"),
        (lambda m: changed(m, num_hidden_layers=0), "at least one layer"),
        (lambda m: (m / "config.json").write_text("[" * 100_000), "nested too deeply"),
        (
            lambda m: (m / "config.json").write_text('{"model_type": "bert", "model_type": "x"}'),
            "'model_type' stands twice",
        ),
        (
            lambda m: (m / "model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
            ),
            "Git LFS pointer",
        ),
    ],
)
def test_a_message_names_the_cause(world: World, break_it: Any, message: str) -> None:
    """One line, exit code 2."""
    break_it(world.model)
    flags = ("--model", world.model, "--data", world.data, "--max-length", 24)
    results = ("--results", world.results)
    answer = call_main("run", "--task", "mrpc", "--method", "bitfit", *flags, *results)
    assert message in answer.error


@pytest.mark.parametrize("vocabulary", ["unknown", "cased"])
def test_a_tokenizer_that_does_not_understand_the_texts(world: World, vocabulary: str) -> None:
    """Stopped before the first step, with the likely cause."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if vocabulary == "unknown":
        words, message = [f"word{n}" for n in range(13)], "are unknown"
    else:
        words, message = [*WORDS, *(word.title() for word in WORDS)], "lower-cases every text"
    shutil.rmtree(world.model)
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(special) + len(words), intermediate_size=32, **sizes)
    write_random(world.model, config)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (world.model / name).unlink(missing_ok=True)
    (world.model / "vocab.txt").write_text("\n".join([*special, *words]))
    with pytest.raises(UserError, match=message):
        prepared(world)


@pytest.mark.parametrize(
    "key",
    [{"hidden_act": "gelu"}, {"attention_probs_dropout_prob": 0.3}, {"hidden_dropout_prob": 0.3}],
)
def test_keys_of_another_family_are_unknown(tmp_path: Path, key: dict[str, Any]) -> None:
    """DistilBERT reads `activation`; a `hidden_act` beside it decides nothing."""
    from transformers import DistilBertConfig

    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    config = DistilBertConfig(vocab_size=5 + len(WORDS), max_position_embeddings=40, **sizes)
    world = make_world(tmp_path, config)
    assert prepared(world).engine == "fast"
    changed(world.model, activation="relu", **key)
    assert prepared(world).engine == "plain"
    with pytest.raises(UserError, match="--engine fast"):
        prepared(world, engine="fast")


@pytest.mark.parametrize("num_merges", [1, 13, 26])
def test_a_merges_file_that_was_cut_is_an_error(tmp_path: Path, num_merges: int) -> None:
    """RoBERTa's tokenizer without all its merges splits words into letters."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    letters = [chr(code) for code in range(97, 123)]
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "Ġ", *(f"Ġ{a}" for a in letters)]
    config = RobertaConfig(
        vocab_size=len(names), intermediate_size=32, max_position_embeddings=40, **sizes
    )
    world = make_world(tmp_path, config)
    for file in world.model.glob("*token*.json"):
        file.unlink()
    (world.model / "vocab.txt").unlink(missing_ok=True)
    (world.model / "vocab.json").write_text(json.dumps({n: i for i, n in enumerate(names)}))
    merges = ["#version: 0.2", *(f"Ġ {letter}" for letter in letters[:num_merges])]
    (world.model / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    if num_merges == len(letters):
        prepared(world)
        return
    with pytest.raises(UserError, match=r"make only .* % of the words"):
        prepared(world)

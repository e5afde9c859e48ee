"""Tiny BERT: small, cased, six layers, and it has learned something."""

from __future__ import annotations

import runpy
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertForPreTraining,
    BertForSequenceClassification,
)

from scripts.mini_glue import generate, lexicon, pretraining_text
from spafit_bench.data.tasks import TASKS

FOLDER = Path(str(files("spafit_bench"))) / "assets" / "tiny-bert"


@pytest.fixture(scope="module")
def tokenizer():
    """Return the tokenizer of the shipped folder."""
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    """Return the shipped model with both of its pretraining heads."""
    torch.set_num_threads(1)
    return BertForPreTraining.from_pretrained(FOLDER).eval()


def test_it_is_small_cased_and_six_layers_deep():
    """The folder holds at most 5 MB of safetensors, no pickle, and a BERT of six layers."""
    config = AutoConfig.from_pretrained(FOLDER)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 6, 128)
    assert (FOLDER / "model.safetensors").stat().st_size <= 5_000_000
    assert not [path for path in FOLDER.iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]


def test_every_weight_of_the_encoder_is_in_the_checkpoint():
    """A classifier made from the folder takes all but its own head from it, in fp32."""
    _, info = BertForSequenceClassification.from_pretrained(FOLDER, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["mismatched_keys"]
    _, info = BertForPreTraining.from_pretrained(FOLDER, output_loading_info=True)
    assert not info["missing_keys"]


def test_weights_are_finite_and_fp32(model):
    """No weight is lost, and what is stored is what trains."""
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("task", [*TASKS, "ax"])
def test_no_word_of_mini_glue_is_unknown(tokenizer, task):
    """The vocabulary covers every text, and keeps its case."""
    columns = TASKS["mnli" if task == "ax" else task].text_columns
    texts = [row[column] for rows in generate(task).values() for row in rows for column in columns]
    encoded = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in encoded)
    assert max(len(row) for row in encoded) * len(columns) <= 128
    decoded = tokenizer.decode(encoded[0], skip_special_tokens=True)
    assert decoded.replace(" ", "") == texts[0].replace(" ", "")


def test_the_vocabulary_is_the_one_that_the_script_builds():
    """The shipped vocabulary can be made again, to the byte, from the repository."""
    script = Path(__file__).parents[2] / "scripts" / "pretrain_tiny.py"
    build = runpy.run_path(str(script))["build_vocabulary"]
    shipped = (FOLDER / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert build(50_000) == shipped


def test_words_of_the_lexicon_are_whole_tokens(tokenizer):
    """Names and nouns are one token each, cased; another word falls into characters."""
    words = [*lexicon.NAMES, *lexicon.KIND_OF]
    assert [tokenizer.tokenize(word) for word in words] == [[word] for word in words]
    assert tokenizer.tokenize("anna") != tokenizer.tokenize("Anna")
    assert tokenizer.unk_token not in tokenizer.tokenize("Zebras, 42 of them: quick (and odd)!")


def test_masked_names_are_found_in_the_other_sentence(model, tokenizer):
    """A name hidden in one of two sentences that say the same is read from the other one."""
    texts, answers = [], []
    for passage in pretraining_text(3000, "fresh"):
        if len(passage.texts) == 2 and not passage.perturbations:
            first, second = passage.texts
            shared = [
                name for name in lexicon.NAMES if f"{name} " in first and f"{name} " in second
            ]
            if shared and second.count(shared[0]) == 1:
                texts.append((first, second.replace(shared[0], tokenizer.mask_token)))
                answers.append(tokenizer.convert_tokens_to_ids(shared[0]))
    inputs = tokenizer(*map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt")
    masked = inputs["input_ids"] == tokenizer.mask_token_id
    with torch.no_grad():
        predicted = model(**inputs).prediction_logits[masked].argmax(dim=-1)
    assert len(answers) > 200
    assert (predicted == torch.tensor(answers)).float().mean() > 0.8


def test_pooler_tells_what_belongs_together(model, tokenizer):
    """On passages it has not seen, the sentence-pair head is right far more often than not."""
    fresh = pretraining_text(800, "fresh")
    pairs = [passage for passage in fresh if len(passage.texts) == 2]
    inputs = tokenizer(
        [pair.texts[0] for pair in pairs],
        [pair.texts[1] for pair in pairs],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        predicted = model(**inputs).seq_relationship_logits.argmax(dim=-1)
    perturbed = torch.tensor([bool(pair.perturbations) for pair in pairs])
    majority = perturbed.float().mean().item()
    accuracy = (predicted == perturbed).float().mean().item()
    assert accuracy > max(majority, 1 - majority) + 0.15

"""Exported models compute what the run's own recorded logits say."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
)

from spafit_bench.base.errors import UserError
from spafit_bench.cli import main
from spafit_bench.data.custom_tasks import find_task
from spafit_bench.data.tasks import get_task
from spafit_bench.export.export import Export, export_run
from spafit_bench.export.model_card import model_card
from spafit_bench.export.restore import Base, load_delta, trained_shapes
from spafit_bench.methods.method import get_method, method_names
from spafit_bench.methods.plan import make_plan
from spafit_bench.models.checkpoint import find_checkpoint, parameter_shapes
from spafit_bench.results.lookup import find_run
from spafit_bench.results.record import RunRecord
from tests.support.tiny_runs import WORDS, World, make_world, roberta_config

TOLERANCE = 1e-5
SMALL = ("method.rank=4", "method.alpha=8")
TWO_RANKS = (
    "0:frozen;1:lora(query+value,r=2,alpha=4)+bias(layernorm);"
    "2:full;3:lora(ffn,r=5,alpha=15)+lora(attention_output,r=3,alpha=7)+bias(query)"
)
DORA_AND_RSLORA = (
    "0:bias;1:lora(query,r=2,alpha=4,dora);2:lora(key+output,r=4,alpha=3,rslora);"
    "3:lora(value,r=2,alpha=4);embeddings:full;pooler:full"
)
ALL_RSLORA = "all:lora(all,r=4,alpha=3,rslora,dropout=0.1);pooler:frozen"
ALL_DORA = "0-1:frozen;2-3:lora(query+intermediate,r=3,alpha=5,dora)+bias"
ADAPTERS = ("lora", "lora-ii", "spafit", "spafit-ii", TWO_RANKS, DORA_AND_RSLORA)
CUSTOM = (TWO_RANKS, DORA_AND_RSLORA, ALL_RSLORA, ALL_DORA)
EVERY = (*method_names(), *CUSTOM)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny BERT and data."""
    return make_world(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny RoBERTa, whose classifier is two layers and which has no pooler."""
    return make_world(tmp_path_factory.mktemp("roberta"), roberta_config())


def trained(world: World, method: str, task: str = "mrpc") -> RunRecord:
    """Run a method, with a small rank where it states none of its own."""
    settings = SMALL if method in method_names() and get_method(method).loras else ()
    return world.run(method, task, *settings)


def export(world: World, record: RunRecord, to: Path, format_: str, **base: Any) -> Export:
    """Export a run."""
    return export_run(find_run(record.run_id, world.store), to, format_, Base(**base))


def recorded_logits(world: World, record: RunRecord, split: str = "validation") -> np.ndarray:
    """Return what the run itself wrote down, (num_examples, num_outputs)."""
    frame = pd.read_parquet(world.store.runs / record.run_id / "predictions.parquet")
    logits = np.stack(frame[frame["split"] == split]["logits"])
    assert np.ptp(logits[:, 0]) > 1e-3  # a constant would hide everything
    return logits


@torch.no_grad()
def logits_of(
    model: torch.nn.Module, folder: Path, world: World, task: str = "mrpc", split: str = ""
) -> np.ndarray:
    """Compute dev logits with transformers alone, tokenizer and all from the export."""
    facts = get_task(task)
    frame = pd.read_csv(world.data / task / f"{split or 'validation'}.csv")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [frame[column].tolist() for column in facts.text_columns]
    inputs = tokenizer(*texts, truncation=True, max_length=24, padding=True, return_tensors="pt")
    return model.eval()(**inputs).logits.numpy()


def load_peft(folder: Path, world: World) -> torch.nn.Module:
    """Load an adapter with the PEFT library."""
    base = AutoModelForSequenceClassification.from_pretrained(world.model, dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder)


@pytest.mark.parametrize("method", EVERY)
def test_merged_and_delta_give_the_recorded_logits(
    world: World, tmp_path: Path, method: str
) -> None:
    """A plain checkpoint, and a delta put back on its base, compute what the run computed."""
    record = trained(world, method)
    expected = recorded_logits(world, record)
    export(world, record, tmp_path / "merged", "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    found = logits_of(merged, tmp_path / "merged", world)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    export(world, record, tmp_path / "delta", "delta")
    restored = load_delta(tmp_path / "delta").adapted.model
    found = logits_of(restored, tmp_path / "delta", world)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("method", [*ADAPTERS, ALL_RSLORA, ALL_DORA])
def test_peft_gives_the_recorded_logits(world: World, tmp_path: Path, method: str) -> None:
    """PeftModel computes what the run computed: ranks, biases, whole modules and head included."""
    record = trained(world, method)
    export(world, record, tmp_path / "peft", "peft")
    model = load_peft(tmp_path / "peft", world)
    expected = recorded_logits(world, record)
    np.testing.assert_allclose(logits_of(model, tmp_path / "peft", world), expected, atol=TOLERANCE)
    auto = AutoModelForSequenceClassification.from_pretrained(tmp_path / "peft")
    np.testing.assert_allclose(logits_of(auto, tmp_path / "peft", world), expected, atol=TOLERANCE)


@pytest.mark.parametrize("method", ADAPTERS)
def test_heads_of_roberta_survive(roberta: World, tmp_path: Path, method: str) -> None:
    """A classifier of two layers is whole in every form."""
    record = trained(roberta, method.replace(";pooler:full", ""))
    expected = recorded_logits(roberta, record)
    export(roberta, record, tmp_path / "peft", "peft")
    found = logits_of(load_peft(tmp_path / "peft", roberta), tmp_path / "peft", roberta)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    export(roberta, record, tmp_path / "merged", "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    found = logits_of(merged, tmp_path / "merged", roberta)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_peft_adapts_only_what_the_method_adapts(world: World, tmp_path: Path) -> None:
    """Adapters are on the adapted matrices of the adapted layers, with their own ranks."""
    record = trained(world, TWO_RANKS)
    export(world, record, tmp_path / "peft", "peft")
    model = load_peft(tmp_path / "peft", world)
    ranks = {
        name.removeprefix("base_model.model.bert.encoder.layer."): module.r["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and module.lora_A
    }
    assert ranks == {
        "1.attention.self.query": 2,
        "1.attention.self.value": 2,
        "3.attention.output.dense": 3,
        "3.intermediate.dense": 5,
        "3.output.dense": 5,
    }
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == record.trainable_parameters


@pytest.mark.parametrize("method", ["bitfit", "full", "all:frozen"])
def test_peft_refuses_a_method_without_adapters(world: World, tmp_path: Path, method: str) -> None:
    """BitFit and full fine-tuning are no PEFT adapters; the message names what to use."""
    record = trained(world, method)
    with pytest.raises(UserError, match=r"no LoRA adapter.*--format delta.*--format merged"):
        export(world, record, tmp_path / "out", "peft")
    assert not any(tmp_path.iterdir())


def test_the_code_on_the_cards_works_in_a_fresh_process(world: World, tmp_path: Path) -> None:
    """Each model card's own snippet, run elsewhere, gives the recorded logits."""
    record = trained(world, "spafit")
    first = pd.read_csv(world.data / "mrpc" / "validation.csv").iloc[0]
    script = ["import json, os"]
    for format_ in ("merged", "peft", "delta"):
        folder = tmp_path / format_
        export(world, record, folder, format_)
        card = (folder / "README.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        for column in ("sentence1", "sentence2"):
            code = code.replace(f'"{column}"', repr(first[column]))
        script += [f"os.chdir({str(folder)!r})", code, "print(json.dumps(logits.tolist()))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    expected = np.repeat(recorded_logits(world, record)[None, :1], 3, axis=0)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_regression_and_three_classes(world: World, tmp_path: Path) -> None:
    """STS-B has one output, MNLI three; names and kind of problem are in the configuration."""
    for task, split in (("stsb", "validation"), ("mnli", "validation_mismatched")):
        record = trained(world, "spafit", task)
        export(world, record, tmp_path / task, "merged")
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / task)
        expected = recorded_logits(world, record, split)
        found = logits_of(model, tmp_path / task, world, task, split)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        names = get_task(task).labels or ("score",)
        assert model.config.id2label == dict(enumerate(names))
        assert model.config.label2id == {name: index for index, name in enumerate(names)}
        kind = "regression" if task == "stsb" else "single_label_classification"
        assert model.config.problem_type == kind
        export(world, record, tmp_path / f"{task}-peft", "peft")
        adapter = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / f"{task}-peft", num_labels=len(names)
        )
        found = logits_of(adapter, tmp_path / f"{task}-peft", world, task, split)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("format_", ["merged", "peft", "delta"])
def test_card_and_files(world: World, tmp_path: Path, format_: str) -> None:
    """The card's metadata is what the hub reads; there is no pickle; the tokenizer is there."""
    record = trained(world, "spafit")
    made = export(world, record, tmp_path / "out", format_)
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.model_name == record.run_id
    scores = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert scores == {("validation", m): v for m, v in record.metrics["validation"].items()}
    assert {r.dataset_type for r in data.eval_results} == {"other"}
    assert "not-official-glue" in data.tags
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert record.config["method"]["spec"] in text
    assert record.weights.weights_sha256 in text
    files = {path.name for path in (tmp_path / "out").iterdir()}
    config = "adapter_config.json" if format_ == "peft" else "config.json"
    assert {"README.md", config, "tokenizer.json", "tokenizer_config.json"} < files
    assert format_ != "peft" or "config.json" not in files
    endings = {"md", "json", "safetensors", "SHA256SUMS"}
    assert {path.rpartition(".")[2] for path in files} <= endings
    assert made.file_bytes.keys() == files
    assert made.trained_bytes == record.stored_bytes


def test_card_of_an_official_run(world: World) -> None:
    """Only official data is called GLUE; a hub model is named as the base; traps are told."""
    ours = trained(world, "spafit")
    official = ours.model_copy(
        update={
            "official_split": True,
            "select": "best",
            "config": ours.config | {"model": "google-bert/bert-large-cased"},
            "weights": ours.weights.model_copy(update={"revision": "abc123"}),
        }
    )
    card = ModelCard(model_card(official, "## Use"))
    assert card.data.datasets == ["nyu-mll/glue"]
    assert card.data.base_model == "google-bert/bert-large-cased"
    assert {r.dataset_name for r in card.data.eval_results} == {"GLUE MRPC"}
    assert "revision abc123" in card.text
    assert "its scores are optimistic" in card.text
    limited = official.model_copy(update={"train_limit": 12, "collapsed": True})
    text = model_card(limited, "## Use", ("a note",))
    assert "GLUE MRPC, first 12 train examples" in text
    assert "predicts one constant" in text
    beyond = official.model_copy(
        update={"task": "boolq", "task_definition": find_task("boolq").definition}
    )
    other = ModelCard(model_card(beyond, "## Use"))
    assert other.data.tags == ["spafit-bench"]
    assert (other.data.datasets, other.data.language) == (None, None)
    assert {r.dataset_type for r in other.data.eval_results} == {"other"}
    assert "GLUE split" not in other.text
    assert "- a note\n" in text
    stsb = trained(world, "bitfit", "stsb")
    metrics = ModelCard(model_card(stsb, "## Use")).data.eval_results
    assert [result.metric_type for result in metrics] == ["pearsonr", "spearmanr"]


def test_command_line(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`export` says what it wrote and what was trained; a delta folder is a RUN in its turn."""
    record = trained(world, "spafit")

    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["spafit-bench", *words])
        with pytest.raises(SystemExit) as leaving:
            main()
        captured = capsys.readouterr()
        assert leaving.value.code in (0, None), captured.err
        return captured.out

    where = ("--results", str(world.results))
    delta = tmp_path / "delta"
    text = command("export", record.run_id, "--to", str(delta), "--format", "delta", *where)
    assert "trained weights: 4.36 kB in fp32 (2.18 kB in bf16)" in text
    body = json.loads(command("export", str(delta), "--to", str(tmp_path / "m"), "--json", *where))
    assert body["format"] == "merged"
    assert body["stored_bytes"] == record.stored_bytes
    assert body["total_bytes"] == sum(p.stat().st_size for p in (tmp_path / "m").iterdir())


def test_tokens_are_those_of_the_run(world: World, tmp_path: Path) -> None:
    """The exported tokenizer cuts texts as the base model's does."""
    export(world, trained(world, "bitfit"), tmp_path / "out", "merged")
    text = " ".join(WORDS) + " The Unknown"
    ours, theirs = (AutoTokenizer.from_pretrained(p) for p in (tmp_path / "out", world.model))
    assert ours(text, "a cat")["input_ids"] == theirs(text, "a cat")["input_ids"]


def test_folder_is_whole_or_not_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash on the way leaves nothing; an empty folder is filled, a full one refused."""
    record = trained(world, "spafit")
    with monkeypatch.context() as patch:
        patch.setattr("spafit_bench.export.export.model_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(world, record, tmp_path / "deep" / "out", "merged")
    assert list((tmp_path / "deep").iterdir()) == []
    (tmp_path / "empty").mkdir()
    export(world, record, tmp_path / "empty", "delta")
    with pytest.raises(UserError, match="not empty"):
        export(world, record, tmp_path / "empty", "delta")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        export(world, record, tmp_path / "file", "delta")
    with pytest.raises(UserError, match="cannot be written"):
        export(world, record, tmp_path / "file" / "below", "delta")
    with pytest.raises(UserError, match="did you mean 'merged'"):
        export(world, record, tmp_path / "new", "merge")


def test_spafit_stores_22_megabytes_at_bert_large(tmp_path: Path) -> None:
    """SPAFIT-4-9-I adds 22.6 MB in fp32, 11.3 MB in bf16, to BERT-large-cased."""
    large = BertConfig(
        vocab_size=28996,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    )
    large.save_pretrained(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path), weights=False)
    shapes = parameter_shapes(checkpoint, get_task("mrpc"))
    fresh = [name for name in shapes if name.startswith("classifier")]
    plan = make_plan(get_method("spafit-4-9-i"), checkpoint.architecture, shapes, fresh=fresh)
    count = sum(int(np.prod(shape)) for shape in trained_shapes(plan).values())
    assert count == plan.trainable_parameters == 5_650_434
    assert round(4 * count / 1e6, 1) == 22.6
    assert round(2 * count / 1e6, 1) == 11.3

"""A finished run as a model again, and the one message where that cannot be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from spafit_bench.base.errors import UserError
from spafit_bench.data.load import load_task_data
from spafit_bench.data.tasks import get_task
from spafit_bench.export.restore import Base, RestoredRun, load_run
from spafit_bench.methods.treatments import Lora, parse_treatment
from spafit_bench.models.adapters import LoraLinear
from spafit_bench.models.encoding import encode, load_tokenizer
from spafit_bench.results.lookup import find_run
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store
from spafit_bench.training.evaluation import predict
from tests.support.records import seal
from tests.support.tiny_runs import World, make_world, write_checkpoint

SMALL = ("method.rank=4", "method.alpha=8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny BERT and data."""
    return make_world(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def record(world: World) -> RunRecord:
    """A SPAFIT run."""
    return world.run("spafit", "mrpc", *SMALL)


@pytest.fixture
def copy(world: World, record: RunRecord, tmp_path: Path) -> Path:
    """A copy of the results folder that may be damaged; returns the run's folder in it."""
    shutil.copytree(world.results, tmp_path / "results")
    return tmp_path / "results" / "runs" / record.run_id


def dev_logits(restored: RestoredRun, world: World) -> np.ndarray:
    """Evaluate the dev set as a run does."""
    data = load_task_data(restored.task, str(world.data))
    tokenizer = load_tokenizer(restored.checkpoint)
    split = encode(data.splits["validation"], tokenizer, max_length=24)
    return predict(restored.adapted, split, batch_size=8).logits


def recorded_logits(world: World, record: RunRecord) -> np.ndarray:
    """Return the logits of `predictions.parquet`, (num_examples, num_outputs)."""
    frame = pd.read_parquet(world.store.runs / record.run_id / "predictions.parquet")
    return np.stack(frame[frame["split"] == "validation"]["logits"])


@pytest.mark.parametrize(
    "settings",
    [
        ("spafit", *SMALL),
        ("spafit", *SMALL, "head.pooler_init=fresh", "method.embeddings=full"),
        ("lora", "method.rank=3", "method.alpha=0.12345678901", "method.rslora=true"),
        ("lora-ii", *SMALL, "method.dora=true", "select=best"),
        ("full", "head.pooler=frozen"),
    ],
)
def test_restored_without_data_gives_the_same_bits(
    world: World, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """Overrides of every kind are restored, bit for bit, from a results folder alone."""
    method, *assignments = settings
    record = world.run(method, "mrpc", *assignments)
    moved = World(world.model, tmp_path / "nowhere", world.results)
    restored = load_run(moved.store, record.run_id)
    np.testing.assert_array_equal(dev_logits(restored, world), recorded_logits(world, record))
    assert restored.warnings == ()
    assert not restored.adapted.model.training


def test_a_kept_prefix_is_not_needed(world: World) -> None:
    """What was kept for a run is computed again, to rounding, and not with dropout."""
    record = world.run("spafit-0-1-i", "mrpc", *SMALL, "cache_prefix=true")
    restored = load_run(world.store, record.run_id)
    logits = dev_logits(restored, world)
    np.testing.assert_allclose(logits, recorded_logits(world, record), atol=1e-5, rtol=1e-5)


def test_a_method_file_may_be_gone(world: World, tmp_path: Path) -> None:
    """The record alone says what the method was."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nstrata:\n"
        "  - {layers: 0-1, treatment: bias}\n"
        "  - {layers: 2-last, treatment: 'lora(ffn, r=2, alpha=3.14159265)'}\n"
    )
    record = world.run(str(path))
    path.unlink()
    restored = load_run(world.store, record.run_id)
    np.testing.assert_array_equal(dev_logits(restored, world), recorded_logits(world, record))
    scalings = {m.scaling for m in restored.adapted.model.modules() if isinstance(m, LoraLinear)}
    assert scalings == {3.14159265 / 2}


@pytest.mark.parametrize("alpha", [128.0, 0.1, 1e-7, 16.123456789, 1 / 3, 1e20])
def test_the_one_line_form_keeps_every_digit(alpha: float) -> None:
    """Reading a treatment's text gives the same treatment."""
    lora = Lora(matrices=("query",), rank=2, alpha=alpha, dropout=1 / 7)
    assert parse_treatment(str(lora)).loras == (lora,)


def test_runs_are_found_by_beginning_and_by_folder(world: World, record: RunRecord) -> None:
    """A name, an unambiguous beginning, a folder; anything else is one message."""
    folder = world.store.runs / record.run_id
    for name in (record.run_id, record.run_id[:-3], str(folder)):
        assert find_run(name, world.store).record == record
        assert find_run(name, world.store).folder == folder
    assert find_run(str(folder), Store(Path("/nowhere"))).record == record
    world.run("bitfit")
    with pytest.raises(UserError, match=r"could be any of \d+ runs"):
        find_run("mrpc", world.store)
    with pytest.raises(UserError, match="no run 'mrcp'"):
        find_run("mrcp", world.store)


def test_moved_base(world: World, record: RunRecord, tmp_path: Path) -> None:
    """Where the base model has gone, the message says so and --model finds it."""
    shutil.copytree(world.model, tmp_path / "model")
    moved = World(tmp_path / "model", world.data, tmp_path / "results")
    gone = moved.run("spafit", "mrpc", *SMALL)
    assert gone.run_id == record.run_id
    (tmp_path / "model").rename(tmp_path / "there")
    with pytest.raises(UserError, match=r"the base model of .* give its place with --model"):
        load_run(moved.store, gone.run_id)
    restored = load_run(moved.store, gone.run_id, Base(model=str(tmp_path / "there")))
    np.testing.assert_array_equal(dev_logits(restored, world), recorded_logits(moved, gone))
    with pytest.raises(UserError, match="--model /nowhere/x: does not exist"):
        load_run(moved.store, gone.run_id, Base(model="/nowhere/x"))


def test_other_weights_are_refused(world: World, record: RunRecord, tmp_path: Path) -> None:
    """Another base model is an error, and a warning where the user insists."""
    other = str(write_checkpoint(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"are not those that .* --other-weights"):
        load_run(world.store, record.run_id, Base(model=other))
    restored = load_run(world.store, record.run_id, Base(model=other, other_weights=True))
    assert "are not those" in restored.warnings[0]


def test_changed_tokenizer_is_a_warning(world: World, record: RunRecord, tmp_path: Path) -> None:
    """Configuration and tokenizer files are compared, too."""
    shutil.copytree(world.model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"note": 1}))
    restored = load_run(world.store, record.run_id, Base(model=str(tmp_path / "model")))
    assert "have changed since" in restored.warnings[0]


def test_damaged_tensors_are_one_message(copy: Path) -> None:
    """Cut short, missing, of another shape or another run: what to do is said."""
    path = copy / "adapter.safetensors"
    store = Store(copy.parent.parent)
    tensors = load_file(path)
    content = path.read_bytes()

    path.write_bytes(content[:-10])
    seal(copy)
    with pytest.raises(UserError, match=r"adapter.safetensors: damaged .* --force"):
        load_run(store, copy.name)
    name = "bert.encoder.layer.2.attention.self.query.lora_A"
    save_file(tensors | {name: tensors[name][:1].clone()}, path)
    seal(copy)
    with pytest.raises(UserError, match=rf"'{name}' has shape \(1, 16\), .* need \(4, 16\)"):
        load_run(store, copy.name)
    save_file({n: t for n, t in tensors.items() if n != "classifier.bias"}, path)
    seal(copy)
    with pytest.raises(UserError, match=r"'classifier.bias' has shape None.*--force"):
        load_run(store, copy.name)
    save_file(tensors | {"extra": torch.zeros(1)}, path)
    seal(copy)
    with pytest.raises(UserError, match=r"'extra' has shape \(1,\).*need None"):
        load_run(store, copy.name)
    path.unlink()
    seal(copy)
    with pytest.raises(UserError, match=r"is missing: there is nothing to restore.*--force"):
        load_run(store, copy.name)


def test_runs_without_a_model(world: World, copy: Path) -> None:
    """Nothing kept, no result, or a setting of another version: each is one message."""
    kept = world.run("bitfit", "cola", save_weights="none")
    with pytest.raises(UserError, match=r"--save-weights none.*--force --save-weights best"):
        load_run(world.store, kept.run_id)
    store, path = Store(copy.parent.parent), copy / "record.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"status": "diverged", "reason": "the loss"}))
    seal(copy)
    with pytest.raises(UserError, match=r"is diverged \(the loss\).*--retry-failed"):
        load_run(store, copy.name)
    body["config"]["train"]["novelty"] = 1
    path.write_text(json.dumps(body))
    seal(copy)
    with pytest.raises(UserError, match=r"train.novelty is not one of this version"):
        load_run(store, copy.name)


def test_task_is_that_of_the_record(world: World, record: RunRecord) -> None:
    """The restored run carries task, record and configuration."""
    restored = load_run(world.store, record.run_id)
    assert restored.task == get_task("mrpc")
    assert restored.record == record
    assert restored.config.train.max_length == 24

"""How far an encoder moved: measures against their definitions, and what must not change."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from spafit_bench.analysis.tables.settings import group_runs
from spafit_bench.cli.running import prepare_runs
from spafit_bench.config.selection import RunRequest
from spafit_bench.export.restore import load_run
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.encoding import EncodedSplit
from spafit_bench.results.record import RunRecord, parse_record
from spafit_bench.training import run as execute
from spafit_bench.training.forgetting import MAX_EXAMPLES, measure_forgetting
from spafit_bench.training.prepare import PreparedRun
from spafit_bench.training.run import build_model
from spafit_bench.training.token_cache import encode_task
from tests.conftest import call_main
from tests.support.tiny_runs import World, make_world, write_data

LAYERS = ("embeddings", "0", "1", "2", "3")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny BERT and data with more dev examples than are looked at."""
    world = make_world(tmp_path_factory.mktemp("bert"))
    write_data(world.data, "mrpc", num_rows=MAX_EXAMPLES + 20)
    return world


def prepared_run(world: World, method: str) -> PreparedRun:
    """Prepare a run without carrying it out."""
    flags = {"model": str(world.model), "data": str(world.data), "precision": "fp32"}
    flags |= {"train": {"max_length": 24}}
    (prepared,) = prepare_runs(RunRequest(task="mrpc", method=method, flags=flags))
    return prepared


def models(world: World, method: str) -> tuple[AdaptedModel, AdaptedModel, EncodedSplit]:
    """Build the same model twice, and the dev set."""
    prepared = prepared_run(world, method)
    return build_model(prepared), build_model(prepared), encode_task(prepared)["validation"]


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Compute linear CKA in token space, by HSIC with centred Gram matrices (equation 3)."""
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    return float((k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum()))


@torch.no_grad()
def hidden_states(model: torch.nn.Module, world: World, rows: int) -> list[np.ndarray]:
    """Return every layer's hidden states of the dev set, one example at a time, unpadded."""
    import pandas as pd

    tokenizer = AutoTokenizer.from_pretrained(world.model)
    frame = pd.read_csv(world.data / "mrpc" / "validation.csv").head(rows)
    layers: list[list[np.ndarray]] = [[] for _ in LAYERS]
    for first, second in zip(frame["sentence1"], frame["sentence2"], strict=True):
        inputs = tokenizer(first, second, truncation=True, max_length=24, return_tensors="pt")
        states = model(**inputs, output_hidden_states=True).hidden_states
        for layer, state in zip(layers, states, strict=True):
            layer.append(state[0].double().numpy())
    return [np.concatenate(layer) for layer in layers]


@pytest.fixture(scope="module")
def measured(world: World) -> RunRecord:
    """A SPAFIT run with forgetting measured."""
    small = ("method.rank=4", "method.alpha=8")
    return world.run("spafit", "mrpc", *small, limit=12, measure_forgetting=True)


def test_measures_are_those_of_the_definition(world: World, measured: RunRecord) -> None:
    """Recorded values equal plain numpy on all tokens of the first 256 dev examples."""
    pretrained = AutoModel.from_pretrained(world.model, dtype=torch.float32)
    adapted = load_run(world.store, measured.run_id).adapted.model.base_model
    before = hidden_states(pretrained.eval(), world, MAX_EXAMPLES)
    after = hidden_states(adapted.eval(), world, MAX_EXAMPLES)
    assert measured.forgetting is not None
    assert tuple(measured.forgetting) == LAYERS
    for layer, x, y in zip(LAYERS, before, after, strict=True):
        drift = measured.forgetting[layer]
        assert drift.cka == pytest.approx(linear_cka(x, y), abs=1e-6)
        distance = np.linalg.norm(y - x) / np.linalg.norm(x)
        assert drift.relative_distance == pytest.approx(distance, abs=1e-5)


def test_frozen_layers_have_not_moved_at_all(measured: RunRecord) -> None:
    """SPAFIT's frozen prefix is exactly where it was, and what is behind it is not."""
    assert measured.forgetting is not None
    for layer in ("embeddings", "0"):
        assert measured.forgetting[layer].relative_distance == 0.0
        assert measured.forgetting[layer].cka == 1.0
    for layer in ("1", "2", "3"):
        assert measured.forgetting[layer].relative_distance > 1e-3
        assert measured.forgetting[layer].cka < 1.0


@pytest.mark.parametrize("method", ["full", "spafit", "all:lora(all,r=2,alpha=4,dora)+bias"])
def test_an_untrained_model_has_not_moved(world: World, method: str) -> None:
    """Before the first step every layer has CKA 1 and distance 0, exactly."""
    for drift in measure_forgetting(*models(world, method)).values():
        assert (drift.cka, drift.relative_distance) == (1.0, 0.0)


def test_cka_ignores_scale_and_distance_does_not(world: World) -> None:
    """Doubling the last normalisation leaves CKA at 1 and moves the layer by its own norm."""
    pretrained, adapted, split = models(world, "full")
    with torch.no_grad():
        norm = adapted.model.get_submodule("bert.encoder.layer.3.output.LayerNorm")
        norm.weight.mul_(2)
        norm.bias.mul_(2)
    drift = measure_forgetting(pretrained, adapted, split)
    assert drift["3"].cka == pytest.approx(1.0, abs=1e-12)
    assert drift["3"].relative_distance == pytest.approx(1.0, abs=1e-6)
    assert drift["2"].relative_distance == 0.0


def test_nothing_else_changes(world: World, measured: RunRecord) -> None:
    """The name of the run, its scores and its trained tensors are those of a run without it."""
    folder = world.store.runs / measured.run_id
    tensors, predictions = (
        (folder / name).read_bytes() for name in ("adapter.safetensors", "predictions.parquet")
    )
    plain = world.run("spafit", "mrpc", "method.rank=4", "method.alpha=8", limit=12)
    assert plain.run_id == measured.run_id  # found, not repeated
    other = World(world.model, world.data, world.results.with_name("other"))
    plain = other.run("spafit", "mrpc", "method.rank=4", "method.alpha=8", limit=12)
    assert plain.forgetting is None
    assert plain.run_id == measured.run_id
    assert plain.evaluations == measured.evaluations
    assert (other.store.runs / plain.run_id / "adapter.safetensors").read_bytes() == tensors
    assert (other.store.runs / plain.run_id / "predictions.parquet").read_bytes() == predictions


def test_tables_do_not_part_runs_by_it(measured: RunRecord) -> None:
    """A seed with the measure, one without and one from before it existed share a table row."""
    key = "measure_forgetting"
    without = {name: value for name, value in measured.config.items() if name != key}
    configs = [measured.config, without | {key: False}, without]
    runs = [measured.model_copy(update={"seed": n, "config": c}) for n, c in enumerate(configs)]
    (group,) = group_runs(runs)
    (cells,) = group.rows.values()
    assert len(cells["mrpc"]) == 3


def test_record_and_show(world: World, measured: RunRecord) -> None:
    """It survives the record, is shown, and is in `results.csv`; old records lack it."""
    assert parse_record(measured.to_json(), "here").forgetting == measured.forgetting
    text = call_main("show", measured.run_id, "--results", world.results).out
    assert measured.forgetting is not None
    drift = measured.forgetting["3"]
    assert f"{'3':<12} {drift.cka:.4f}  {drift.relative_distance:.4f}" in text
    assert "in fp32 (" in text
    table = (world.results / "results.csv").read_text()
    assert "forgetting.3.cka" in table.splitlines()[0]
    old = measured.model_dump(mode="json")
    del old["forgetting"]
    assert RunRecord.model_validate(old).forgetting is None


def test_a_finished_run_outlives_a_full_gpu(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is no memory for a second model, nothing is measured, and the run is kept."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(execute, "measure_forgetting", full)
    record = world.run("bitfit", "mrpc", limit=12, measure_forgetting=True)
    assert record.status == "done"
    assert record.forgetting is None
    assert record.movement is not None
    assert "forgetting is not measured" in caplog.text

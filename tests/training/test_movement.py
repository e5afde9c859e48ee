"""How far parameters moved: recorded norms against the stored files, and what must not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from spafit_bench.export.restore import load_run
from spafit_bench.results.record import Movement, RunRecord, parse_record
from spafit_bench.training import movement
from tests.conftest import call_main
from tests.support.tiny_runs import World, make_world, roberta_config

SMALL = ("method.rank=4", "method.alpha=8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny BERT of four layers."""
    return make_world(tmp_path_factory.mktemp("movement"))


@pytest.fixture(scope="module")
def spafit(world: World) -> RunRecord:
    """A SPAFIT run: layer 0 frozen, layer 1 biases, layers 2 and 3 adapters."""
    return world.run("spafit", "mrpc", *SMALL)


def stored(world: World, record: RunRecord) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read the pretrained and the trained tensors, by the trained ones' names."""
    before = load_file(world.model / "model.safetensors")
    before = {f"bert.{name.removeprefix('bert.')}": value for name, value in before.items()}
    folder = world.store.runs / record.run_id
    return before, load_file(folder / "adapter.safetensors")


def moved(record: RunRecord, where: str, kind: str) -> Movement:
    """Find one measure."""
    assert record.movement is not None
    return record.movement[where][kind]


def norm(*arrays: np.ndarray) -> float:
    """Frobenius norm of several tensors together, in float64."""
    return float(np.sqrt(sum(np.sum(a.astype(np.float64) ** 2) for a in arrays)))


def test_adapters_are_measured_as_the_product_they_add(world: World, spafit: RunRecord) -> None:
    """Attention's change in an adapted layer is that of s B A over query, key and value."""
    before, after = stored(world, spafit)
    for layer in (2, 3):
        path = f"bert.encoder.layer.{layer}.attention"
        changes = [
            8 / 4 * after[f"{path}.self.{m}.lora_B"] @ after[f"{path}.self.{m}.lora_A"]
            for m in ("query", "key", "value")
        ]
        weights = [before[f"{path}.self.{m}.weight"] for m in ("query", "key", "value")]
        found = moved(spafit, str(layer), "attention")
        assert found.change == pytest.approx(norm(*changes), rel=1e-4)
        whole = norm(*weights, before[f"{path}.output.dense.weight"])
        assert found.pretrained == pytest.approx(whole, rel=1e-4)
        assert found.relative == pytest.approx(norm(*changes) / whole, rel=1e-4)


def test_biases_are_measured_against_the_stored_ones(world: World, spafit: RunRecord) -> None:
    """Every bias of layer 1, normalisations included, and of the pooler."""
    before, after = stored(world, spafit)
    for where, prefix in (("1", "bert.encoder.layer.1."), ("pooler", "bert.pooler.")):
        names = [n for n in before if n.startswith(prefix) and n.endswith(".bias")]
        assert names
        assert set(names) <= set(after)
        found = moved(spafit, where, "bias")
        change = norm(*(after[name] - before[name] for name in names))
        assert found.change == pytest.approx(change, rel=1e-4)
        assert found.pretrained == pytest.approx(norm(*(before[n] for n in names)), rel=1e-4)


def test_what_is_frozen_has_not_moved_at_all(spafit: RunRecord) -> None:
    """Exactly zero in the frozen layer and the embeddings, and in all but biases behind it."""
    assert spafit.movement is not None
    assert tuple(spafit.movement) == ("embeddings", "0", "1", "2", "3", "pooler")
    still = {
        (w, k) for w, kinds in spafit.movement.items() for k, m in kinds.items() if not m.change
    }
    assert still >= {("embeddings", "weight"), ("0", "attention"), ("0", "bias"), ("0", "norm")}
    assert still >= {("1", "attention"), ("1", "ffn"), ("3", "norm"), ("pooler", "weight")}
    assert not still & {("1", "bias"), ("2", "attention"), ("3", "attention"), ("3", "bias")}


@pytest.mark.parametrize("method", ["full", "all:lora(all,r=2,alpha=4,dora)+bias"])
def test_every_way_of_training_agrees_with_the_merged_model(world: World, method: str) -> None:
    """The change of a layer's matrices is that of the plain model that the run exports to."""
    from spafit_bench.export.restore import merge_adapters

    record = world.run(method, "mrpc")
    before, _ = stored(world, record)
    restored = load_run(world.store, record.run_id)
    merge_adapters(restored)
    after = {n: p.detach().numpy() for n, p in restored.adapted.model.named_parameters()}
    for layer in range(4):
        names = [f"bert.encoder.layer.{layer}.{m}.weight" for m in ("intermediate.dense",)]
        names.append(f"bert.encoder.layer.{layer}.output.dense.weight")
        change = norm(*(after[name] - before[name] for name in names))
        assert moved(record, str(layer), "ffn").change == pytest.approx(change, rel=1e-3)
        assert change > 0


def test_another_architecture(tmp_path: Path) -> None:
    """RoBERTa has no pooler, and its fresh classifier is left out."""
    record = make_world(tmp_path, roberta_config()).run("spafit", "mrpc", *SMALL)
    assert record.movement is not None
    assert tuple(record.movement) == ("embeddings", "0", "1", "2", "3")
    assert moved(record, "3", "attention").change > 0


def test_bf16_does_not_round_an_adapter_away(world: World) -> None:
    """The update is measured by itself, not in the sum with a matrix of seven bits."""
    record = world.run("all:lora(query,r=2,alpha=1e-4)", "mrpc", "precision=bf16")
    change = moved(record, "0", "attention").change
    assert 0 < change < 1e-3


def test_weights_that_are_gone_cost_no_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is finished, and lacks the measure."""

    def gone(*_: object) -> object:
        raise SafetensorError("gone")

    monkeypatch.setattr(movement, "stored_tensors", gone)
    record = world.run("bitfit", "cola")
    assert record.status == "done"
    assert record.movement is None


def test_record_csv_and_show(world: World, spafit: RunRecord) -> None:
    """It survives the record and is shown, not in `results.csv`; records from before lack it."""
    assert parse_record(spafit.to_json(), "here").movement == spafit.movement
    text = call_main("show", spafit.run_id, "--results", world.results).out
    relative = moved(spafit, "3", "attention").relative
    assert f"{relative:.4f}" in text[text.index("movement") :]
    assert "movement" not in (world.results / "results.csv").read_text().splitlines()[0]
    old = spafit.model_dump(mode="json")
    del old["movement"]
    assert RunRecord.model_validate(old).movement is None
    assert Movement(change=0.0, pretrained=0.0).relative is None

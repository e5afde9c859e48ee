"""What `make bench` counts: its clock, its floor, and one measurement of our own engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.bench import case_of
from benchmarks.cases import Case
from benchmarks.floor import FloorClock
from benchmarks.worker import Clock, measure_ours
from spafit_bench.models.encoding import EncodedSplit
from spafit_bench.models.fused import FusedEncoder
from tests.conftest import write_data
from tests.support.models import SPECIAL, VOCABULARY, build, save_checkpoint


def test_times_and_tokens_are_of_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU tells of some steps only: what lies between two of them past the warm-up counts."""
    now = iter([1.0, 4.0, 9.0])
    monkeypatch.setattr("benchmarks.worker.time.perf_counter", lambda: next(now))
    clock = Clock()
    for step in (2, 4, 7):
        clock.on_step(SimpleNamespace(step=step))
    tokens = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000]
    assert clock.after(2, tokens) == ([3.0, 5.0], [1100, 1_110_000])
    assert clock.after(3, tokens) == ([5.0], [1_110_000])


@pytest.mark.parametrize("engine", ["fast", "floor"])
def test_our_own_measurement_is_of_the_steps_asked_for(
    engine: str, checkpoint: Path, tmp_path: Path
) -> None:
    """As many times as steps past the warm-up."""
    data = write_data(tmp_path, "mrpc", train=24)
    case = Case(str(checkpoint), str(data), "mrpc", "spafit", 4, 4, 2, eval_examples=5)
    found = measure_ours(case, engine)
    assert len(found["times_s"]) == len(found["tokens"]) == 4
    assert all(time > 0 for time in found["times_s"])
    assert all(4 * 3 < tokens < 4 * 128 for tokens in found["tokens"])
    if engine == "floor":
        assert len(found["step_times_s"]) == 4
        assert 0.01 < sum(found["times_s"]) / sum(found["step_times_s"]) < 1


def test_the_floor_is_of_the_steps_that_it_stands_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU tells of some steps only; the time of the products is not in the next step's."""
    now = iter([1.0, 1.0, 6.0, 7.0, 10.0, 12.0])
    monkeypatch.setattr("benchmarks.floor.time.perf_counter", lambda: next(now))
    steps: list[int] = []
    monkeypatch.setattr(FloorClock, "products_s", lambda _, step: steps.append(step) or 0.5)
    clock = FloorClock(None, None, [*range(6)])  # type: ignore[arg-type]
    for step in (1, 3, 6):
        clock.on_step(SimpleNamespace(step=step))
    assert steps == [1, 2, 3, 4, 5]
    tokens = [1, 10, 100, 1000, 10_000, 100_000]
    whole = {"times_s": [1.0, 1.5], "step_times_s": [5.0, 3.0], "tokens": [110, 111_000]}
    assert clock.after(0, tokens) == whole
    assert clock.after(2, tokens) == {key: values[1:] for key, values in whole.items()}


def test_the_floor_is_computed_on_the_models_device(tmp_path: Path) -> None:
    """Products of tensors on two devices would fail."""
    folder = save_checkpoint(tmp_path, "bert", form="base", num_layers=4)
    adapted = build(folder, "spafit", engine="fast", device="meta")
    assert isinstance(adapted.engine, FusedEncoder)
    rng = np.random.default_rng(0)
    ids = rng.integers(len(SPECIAL), VOCABULARY, 40).astype(np.int32)
    offsets = np.array([0, 5, 12, 20, 40])
    split = EncodedSplit(ids, None, offsets, np.array([0, 1, 1, 0]), pad_token_id=0)
    assert adapted.numerics.device == torch.device("meta")
    clock = FloorClock(adapted.engine, split, [])
    assert clock.products_s(np.array([0, 3])) > 0


def test_few_steps_of_a_large_model_stay_few() -> None:
    """Warming up for the floor takes no longer than twice what is asked for."""
    case = Case("model", "data", "mrpc", "spafit", 16, steps=60)
    assert case_of("fast", case) == case_of("tuned", case) == case
    assert case_of("floor", case).warm_up == 40
    assert case_of("floor", replace(case, steps=30)).warm_up == 40
    assert case_of("floor", replace(case, steps=3)).warm_up == 6
    assert case_of("floor", replace(case, steps=1)).warm_up == case.warm_up == 4
    assert case_of("stock", case).steps == 6

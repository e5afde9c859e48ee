"""What a run is estimated to cost before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from spafit_bench.cli.running import prepare_runs
from spafit_bench.config.selection import RunRequest
from spafit_bench.running.estimate import _token_lengths, training_flops_per_token
from tests.support.models import plan_checkpoint, save_checkpoint
from tests.support.tiny_runs import World, make_world, write_data


def test_layers_whose_output_is_kept_cost_nothing(tmp_path: Path) -> None:
    """Of two frozen layers of four, just their forward products are saved."""
    plan = plan_checkpoint(
        save_checkpoint(tmp_path, form="base", num_layers=4), "0-1:frozen;2-3:bias"
    )
    matrices = [t for t in plan.tensors if t.place.layer in (0, 1) and len(t.shape) == 2]
    saved = training_flops_per_token(plan) - training_flops_per_token(plan, 2)
    assert saved == 2 * sum(t.num_parameters for t in matrices) > 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny BERT and forty rows."""
    world = make_world(tmp_path_factory.mktemp("world"))
    write_data(world.data, "mrpc", num_rows=40)
    return world


def test_rows_held_out_are_not_counted(world: World) -> None:
    """The lengths are those of the rows that train, also after a run that trains on all."""
    lengths = []
    for holdout in (None, 0.25):
        flags = {"model": str(world.model), "data": str(world.data), "holdout": holdout}
        flags["train"] = {"max_length": 24}
        (run,) = prepare_runs(RunRequest(task="mrpc", method="bitfit", flags=flags))
        lengths.append(len(_token_lengths(run)))
    assert lengths == [40, 30]

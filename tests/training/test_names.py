"""Names of runs: computed once, and unchanged by settings that are added later."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spafit_bench.config.run_config import (
    WITHOUT_EFFECT,
    HeadSettings,
    MethodSettings,
    RunConfig,
    TrainSettings,
    load_sources,
    resolve,
)
from spafit_bench.training.prepare import Preparer
from tests.support.tiny_runs import write_checkpoint, write_data

OTHER: dict[str, Any] = {
    "seed": 1,
    "limit": 4,
    "holdout": 0.4,
    "select": "best",
    "engine": "plain",
    "cache_prefix": True,
    "precision": "bf16",
    "method.name": "bitfit",
    "method.rank": 2,
    "method.alpha": 3,
    "method.dropout": 0.1,
    "method.rslora": True,
    "method.dora": True,
    "method.alpha_per_rank": 5,
    "method.shuffle": 3,
    "method.embeddings": "full",
    "head.pooler": "full",
    "head.pooler_init": "fresh",
    "train.learning_rate": 0.5,
    "train.epochs": 9,
    "train.batch_size": 3,
    "train.micro_batch_size": 2,
    "train.eval_batch_size": 2,
    "train.max_length": 9,
    "train.batch_tokens": 64,
    "train.warmup": 5,
    "train.schedule": "constant",
    "train.weight_decay": 0.5,
    "train.max_grad_norm": 9,
    "train.adam_beta1": 0.5,
    "train.adam_beta2": 0.5,
    "train.adam_eps": 0.5,
}
"""Another value of every setting that changes what a run computes. Add yours."""
SECTIONS = {"method": MethodSettings, "head": HeadSettings, "train": TrainSettings}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write a model and data."""
    root = tmp_path_factory.mktemp("names")
    model = write_checkpoint(root / "model")
    return {"model": str(model), "data": str(write_data(root / "data", "rte"))}


@pytest.fixture(scope="module")
def preparer() -> Preparer:
    """Prepare several runs on one model and data set."""
    return Preparer()


def config(folders: dict[str, str], **flags: Any) -> RunConfig:
    """Return the configuration of a run on the tiny model."""
    flags = {"train": {"max_length": 16}, **folders, **flags}
    layers = load_sources(preset=None, config=None, assignments=(), flags=flags)
    return resolve(layers, task="rte", method="spafit", seed=0)


def changed(made: RunConfig, key: str, value: Any) -> RunConfig:
    """Return the configuration with one setting replaced."""
    section, _, name = key.rpartition(".")
    if section:
        value = getattr(made, section).model_copy(update={name: value})
    return made.model_copy(update={section or name: value})


def settings() -> list[str]:
    """Name every setting that should change a run's name."""
    keys = [k for k in RunConfig.model_fields if k not in (*SECTIONS, *WITHOUT_EFFECT, "task")]
    return keys + [f"{s}.{key}" for s, model in SECTIONS.items() for key in model.model_fields]


def test_every_setting_with_an_effect_changes_the_name(
    folders: dict[str, str], preparer: Preparer
) -> None:
    """Two runs that differ in one setting never have one name."""
    plain = config(folders)
    names = [preparer.prepare(plain).run_id]
    names += [preparer.prepare(changed(plain, key, OTHER[key])).run_id for key in settings()]
    assert len(set(names)) == len(names)


def test_a_new_setting_enters_only_where_it_differs_from_its_default(
    folders: dict[str, str], preparer: Preparer
) -> None:
    """A version with more settings finds the runs of this one finished."""

    class NewTrain(TrainSettings):
        """Settings of a later version."""

        noise: float = 0.0

    class NewHead(HeadSettings):
        """Settings of a later version."""

        dropout: float | None = None

    class NewConfig(RunConfig):
        """Settings of a later version."""

        train: NewTrain
        head: NewHead = NewHead()
        mixture: str = "none"

    today = config(folders)
    body = today.model_dump()
    later = NewConfig.model_validate(body)
    names = [preparer.prepare(later).run_id]
    assert names == [preparer.prepare(today).run_id]
    for key, value in (("train.noise", 0.1), ("head.dropout", 0.2), ("mixture", "all")):
        names.append(preparer.prepare(changed(later, key, value)).run_id)
    assert len(set(names)) == 4


def test_a_name_is_computed_once(
    folders: dict[str, str], preparer: Preparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run keeps its name although the number of threads changes within the command."""
    run = preparer.prepare(config(folders))
    name = run.run_id
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert run.run_id == name
    assert preparer.prepare(config(folders)).run_id != name

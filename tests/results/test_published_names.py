"""Every run in `results/` is found finished under its own name: names of runs never change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from spafit_bench.config.run_config import RunConfig
from spafit_bench.models.numerics import Numerics
from spafit_bench.training.prepare import Preparer
from tests.conftest import REPOSITORY

SHARED = REPOSITORY.parent / "shared"
FOLDERS = {
    "all-minilm-l6-v2": SHARED / "models" / "all-minilm-l6-v2",
    "glue": SHARED / "glue",
    "glue-derived": SHARED / "glue-derived",
}


def records() -> Iterator[dict[str, Any]]:
    """Read one record of each run as plain JSON, so that no code of ours improves it."""
    seen = set()
    for path in sorted((REPOSITORY / "results").glob("**/runs/*/record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["run_id"] not in seen:
            seen.add(record["run_id"])
            yield record


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data and model beside the checkout")
def test_names_of_published_runs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of runs that were made months ago are computed again from their configuration."""
    preparers: dict[tuple[str, str], Preparer] = {}
    wrong, count = [], 0
    for record in records():
        made = record["environment"]
        threads = made["num_threads"]
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        numerics = Numerics(torch.device("cpu"), made["precision"])
        kernels = made.get("kernels") or "torch"
        key = (made["precision"], kernels)
        preparer = preparers.setdefault(
            key, Preparer(numerics=lambda *_, n=numerics: n, kernels=lambda _, k=kernels: k)
        )
        del record["config"]["method"]["spec"]  # the line that the method resolves to
        config = RunConfig.model_validate(record["config"])
        folders = {name: str(FOLDERS[getattr(config, name)]) for name in ("model", "data")}
        name = preparer.prepare(config.model_copy(update=folders)).run_id
        count += 1
        if name != record["run_id"]:
            wrong.append((record["run_id"], name))
    assert count > 300
    assert not wrong, wrong[:5]

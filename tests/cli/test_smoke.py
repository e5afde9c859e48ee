"""Nine tasks x four methods through the real command line: `make smoke`, minutes on two cores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spafit_bench.data.tasks import TASKS
from spafit_bench.results.store import Store
from tests.conftest import MAIN, clean_environment

HERE = Path(__file__).parent
BANDS = json.loads((HERE / "smoke_bands.json").read_text())
"""task -> method -> [low, high] of the score times 100; made by scripts/smoke_bands.py."""


@pytest.mark.smoke
def test_every_score_is_in_its_band(tmp_path: Path) -> None:
    """Each cell runs, learns, collapses nowhere, and scores as it did when the bands were made."""
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "demo", "--results", "results"],
        cwd=tmp_path,
        env=clean_environment(HF_HUB_OFFLINE="1"),
        check=False,
    )
    assert done.returncode == 0
    records = Store(tmp_path / "results").records()
    assert {(r.task, r.method) for r in records} == {(t, m) for t in BANDS for m in BANDS[t]}
    assert set(BANDS) == set(TASKS)
    outside = []
    for record in records:
        low, high = BANDS[record.task][record.method]
        score = 100 * (record.score or 0.0)
        print(f"{record.task:6} {record.method:7} {score:6.2f}  [{low}, {high}]")  # noqa: T201
        if not low <= score <= high or record.collapsed:
            outside.append((record.task, record.method, score, low, high))
    assert not outside
    averages = {
        method: sum(r.score or 0.0 for r in records if r.method == method) / len(TASKS)
        for method in ("full", "bitfit", "lora", "spafit")
    }
    assert len(set(averages.values())) == 4

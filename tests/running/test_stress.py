"""The short form of `make stress`: real processes, real signals, a few kills."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
import yaml

from scripts import stress

KILLS = 6


def test_killed_writers_lose_nothing(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    """Two processes on one folder, each killed and replaced; the rest is asserted by the script."""
    if torch.get_num_threads() > 1:
        pytest.skip("forks of a process with several threads of OpenMP may hang")
    sweep = {
        "tasks": ["mrpc"],
        "methods": ["bitfit", "lora"],
        "settings": {
            "model": str(checkpoint),
            "data": str(data),
            "precision": "fp32",
            "train": {"epochs": 6, "batch_size": 4, "max_length": 32},
        },
    }
    fire = stress.Stress(
        folder=tmp_path,
        rng=random.Random(0),
        num_writers=2,
        kills_left=KILLS,
        until_s=time.monotonic() + 60,
    )
    said: list[str] = []
    stress.import_libraries()
    stress.carry_out(fire, yaml.safe_dump(sweep), said.append)
    assert sum(fire.kills.values()) == KILLS
    assert f"{KILLS} kills" in said[-1]

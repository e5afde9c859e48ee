"""What is equal to the bit, what is merely close: the statement in docs/promises.md, tested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from spafit_bench.models.fused import why_not_native
from spafit_bench.models.fused.native import SWITCH
from spafit_bench.models.numerics import Numerics
from tests.conftest import Answer, Cli

HALF_A_PERCENT = 0.005


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Put the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(call: Cli, results: str, *more: object) -> Answer:
    """Carry one run out."""
    settings = ("--epochs", "2", "--batch-size", "8", "--max-length", "32", "--lr", "1e-3")
    answer = call("run", *settings, "--results", results, *more, "--json")
    assert answer.code == 0, answer.err
    return answer


def files_of(results: Path) -> dict[str, bytes]:
    """Return what a run predicted and learned."""
    (folder,) = (results / "runs").glob("[!.]*")
    return {n: (folder / n).read_bytes() for n in ("predictions.parquet", "adapter.safetensors")}


def logits_of(results: Path) -> np.ndarray:
    """Return every logit of a run, (num_examples, num_outputs)."""
    (path,) = (results / "runs").glob("*/predictions.parquet")
    return np.stack(list(pd.read_parquet(path)["logits"]))


@pytest.mark.parametrize(
    ("method", "precision"), [("full", "fp32"), ("lora", "fp32"), ("spafit", "bf16")]
)
def test_the_same_command_gives_the_same_bits(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path, method: str, precision: str
) -> None:
    """Metrics, predictions, logits and trained tensors; also between two other runs."""
    args = ("--task", "mrpc", "--model", checkpoint, "--data", data, "--precision", precision)
    first = run(call, "a", *args, "--method", method).json
    run(call, "between", *args, "--method", "bitfit", "--seed", "3")
    second = run(call, "b", *args, "--method", method).json
    assert first["run_id"] == second["run_id"]
    for key in ("metrics", "evaluations", "score", "train_tokens", "trainable_parameters"):
        assert first[key] == second[key], key
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_process_of_its_own_gives_the_same_bits(
    call: Cli, cli: Cli, tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    """Nothing depends on what the process did before, nor on the order of hashes."""
    args = ("--task", "stsb", "--model", checkpoint, "--data", data, "--precision", "fp32")
    torch.set_num_threads(1)
    run(call, "a", *args, "--method", "spafit")
    more = ("--epochs", "2", "--batch-size", "8", "--max-length", "32", "--lr", "1e-3")
    other = cli("run", *args, *more, "--method", "spafit", "--results", "b", PYTHONHASHSEED="7")
    assert other.code == 0, other.err
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("method", ["full", "spafit"])
def test_other_numbers_of_threads_are_close(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path, method: str
) -> None:
    """Sums in another order: another name, and logits within half a percent of the largest."""
    args = ("--task", "mrpc", "--model", checkpoint, "--data", data, "--precision", "fp32")
    answers = []
    for number in (1, 2):
        torch.set_num_threads(number)
        answers.append(run(call, str(number), *args, "--method", method).json)
    assert answers[0]["run_id"] != answers[1]["run_id"]
    assert [a["environment"]["num_threads"] for a in answers] == [1, 2]
    one, two = (logits_of(tmp_path / str(number)) for number in (1, 2))
    assert np.abs(one - two).max() < HALF_A_PERCENT * np.abs(one).max()


def test_what_a_run_depends_on_is_in_its_name(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    """Seed and precision name another run; the place of the results does not."""
    args = ("--task", "mrpc", "--method", "lora", "--model", checkpoint, "--data", data)
    base = ("--precision", "fp32", "--dry-run", "--json")
    names = {}
    for key, more in {
        "same": ("--results", "x"),
        "seed": ("--seed", "1"),
        "precision": ("--precision", "bf16"),
        "rate": ("--lr", "0.5"),
    }.items():
        names[key] = json.loads(call("run", *args, *base, *more).out)["runs"][0]["run_id"]
    plain = json.loads(call("run", *args, *base).out)["runs"][0]["run_id"]
    assert names.pop("same") == plain
    assert len({plain, *names.values()}) == 4


def test_compiled_kernels_make_another_run(
    call: Cli, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They drop other elements. Runs without them have the names that they had before."""
    bf16 = Numerics(torch.device("cpu"), "bf16")
    if (reason := why_not_native(bf16)) is not None:
        pytest.skip(f"no compiled kernels: {reason}")
    args = ("--task", "mrpc", "--method", "lora", "--model", checkpoint, "--data", data)

    def names(*more: str) -> list[str]:
        found = call("run", *args, "--precision", "bf16", "--dry-run", "--json", *more)
        return [run["run_id"] for run in json.loads(found.out)["runs"]]

    native, plain = names(), names("--engine", "plain")
    monkeypatch.setenv(SWITCH, "torch")
    assert names() != native
    assert names("--engine", "plain") == plain
    monkeypatch.setenv(SWITCH, "tarch")
    wrong = call("run", *args, "--precision", "bf16")
    assert wrong.code == 2
    assert f"{SWITCH}=tarch" in wrong.err
    assert "torch" in wrong.err

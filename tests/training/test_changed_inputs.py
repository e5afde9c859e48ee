"""Files of a checkpoint that change while a command runs: no result under another one's name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spafit_bench.models import checkpoint as checkpoint_module
from spafit_bench.models.encoding import load_tokenizer
from spafit_bench.training import run as run_module
from spafit_bench.training import token_cache
from tests.conftest import Answer, Cli
from tests.support.models import save_checkpoint


@pytest.fixture
def model(tmp_path: Path, checkpoint: Path) -> Path:
    """A checkpoint that may be changed."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


@pytest.fixture
def run(
    call: Cli, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Answer]:
    """Run tasks for one epoch."""
    monkeypatch.setenv("SPAFIT_BENCH_CACHE_DIR", str(tmp_path / "cache"))
    token_cache._ENCODED.clear()

    def command(tasks: str, *flags: object) -> Answer:
        where = ("--model", model, "--data", data, "--results", tmp_path / "results")
        how = ("--method", "bitfit", "--epochs", 1, "--limit", 8, "--max-length", 32)
        return call("run", "--task", tasks, *where, *how, *flags, "--json")

    return command


def other_weights(model: Path) -> None:
    """Replace the weights by others of the same shapes."""
    from safetensors.numpy import load_file, save_file

    file = model / "model.safetensors"
    tensors = {n: t * 1.5 for n, t in load_file(file).items()}
    save_file(tensors, model / "new", metadata={"format": "pt"})
    (model / "new").replace(file)


def test_weights_replaced_between_two_runs(
    run: Callable[..., Answer], model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second run fails and says why; it is tried again by the same command."""
    original = (model / "model.safetensors").read_bytes()
    finished: list[object] = []
    execute = run_module.build_model

    def build(prepared: object) -> object:
        if finished:
            other_weights(model)
        finished.append(prepared)
        return execute(prepared)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "build_model", build)
        answer = run("mrpc,cola")
    assert answer.code == 1
    first, second = answer.json["runs"]
    assert (first["status"], second["status"]) == ("done", "failed")
    assert "the weights changed" in second["reason"]
    (model / "model.safetensors").write_bytes(original)
    assert [r["status"] for r in run("mrpc,cola").json["runs"]] == ["done", "done"]


def test_weights_changed_during_training(
    run: Callable[..., Answer], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record of a result is stored."""
    train = run_module.train

    def meddling(*args: object, **kwargs: object) -> object:
        other_weights(model)
        return train(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "train", meddling)
    answer = run("mrpc")
    assert answer.code == 1
    assert "the weights changed" in answer.json["reason"]


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_tokenizer_that_is_replaced_and_restored(
    run: Callable[..., Answer],
    model: Path,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Its tokens are never kept under the key of the other one."""
    file = next(p for n in ("tokenizer.json", "vocab.txt") if (p := model / n).is_file())
    original = file.read_bytes()

    def load(checkpoint: checkpoint_module.Checkpoint) -> object:
        words = original.decode()
        if file.suffix == ".json":
            body = json.loads(words)
            vocabulary = body["model"]["vocab"]
            names = list(vocabulary)
            body["model"]["vocab"] = dict(zip(names, reversed(vocabulary.values()), strict=True))
            words = json.dumps(body)
        else:
            words = "\n".join(reversed(words.split("\n")))
        (model / "new").write_text(words)
        (model / "new").replace(file)
        found = load_tokenizer(checkpoint)
        if when == "while":
            file.write_bytes(original)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "load_tokenizer", load)
        answer = run("mrpc")
    assert answer.code == 1
    assert "changed" in answer.json["reason"]
    assert not list((tmp_path / "cache").rglob("*.arrays"))
    file.write_bytes(original)
    assert run("mrpc").json["status"] == "done"


def test_an_untouched_copy_is_the_same_checkpoint(
    run: Callable[..., Answer], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file replaced by one of the same bytes, or touched, fails no run."""
    train = run_module.train

    def meddling(*args: object, **kwargs: object) -> object:
        (model / "new").write_bytes((model / "model.safetensors").read_bytes())
        (model / "new").replace(model / "model.safetensors")
        (model / "config.json").touch()
        return train(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "train", meddling)
    assert run("mrpc").json["status"] == "done"


def test_weights_changed_before_the_prefix_is_kept(
    call: Cli, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs of other weights never enter the cache under the key of the recorded ones."""
    monkeypatch.setenv("SPAFIT_BENCH_CACHE_DIR", str(tmp_path / "cache"))
    model = save_checkpoint(tmp_path / "four", "bert", form="base", num_layers=4)
    original = (model / "model.safetensors").read_bytes()
    build = run_module.build_model

    def meddling(prepared: object) -> object:
        built = build(prepared)  # type: ignore[arg-type]
        other_weights(model)
        return built

    flags = ("--task", "mrpc", "--method", "spafit", "--model", model, "--data", data)
    flags = (*flags, "--epochs", 1, "--limit", 8, "--max-length", 32, "--cache-prefix", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "build_model", meddling)
        answer = call("run", *flags)
    assert answer.code == 1
    assert "the weights changed" in answer.json["reason"]
    assert not list((tmp_path / "cache" / "prefixes").glob("*.arrays"))
    (model / "model.safetensors").write_bytes(original)
    assert call("run", *flags).json["status"] == "done"

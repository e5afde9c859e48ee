"""The command line's contract: exit codes, JSON, what a run leaves behind, what is repeated."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from spafit_bench.cli.options import complete_sweeps
from spafit_bench.data.tasks import TASKS, get_task
from tests.conftest import (
    MAIN,
    Answer,
    Cli,
    call_main,
    clean_environment,
    task_rows,
    write_checkpoint,
    write_data,
)
from tests.support.glue_files import write_hub, write_plain, write_tsv
from tests.support.hub_server import COMMIT, HubServer

NUMBER = (int, float)
CONTRACT: dict[str, Any] = {
    "schema_version": int, "run_id": str, "status": str, "task": str, "method": str, "model": str,
    "seed": int, "official_split": bool, "metrics": dict, "collapsed": bool,
    "train_limit": (int, type(None)), "trainable_parameters": int, "base_parameters": int,
    "trainable_percent": NUMBER, "train_time_s": NUMBER, "train_tokens": int,
    "train_tokens_per_s": NUMBER, "eval_tokens_per_s": NUMBER, "wall_time_s": NUMBER,
    "peak_memory_bytes": (int, type(None)), "stored_bytes": int,
}  # fmt: skip
"""Keys that other tools rely on, and their types."""
SMALL = ("--set", "method.rank=2", "--set", "method.alpha=4", "--precision", "fp32")
Run = Callable[..., Answer]


@pytest.fixture
def run(call: Cli, checkpoint: Path, data: Path) -> Run:
    """`run` with a tiny LoRA in two epochs on mrpc; further flags come last and win or add."""

    def go(*args: object, method: str = "lora", task: str = "mrpc") -> Answer:
        small = SMALL if "lora" in method else SMALL[-2:]
        inputs = ("--task", task, "--model", checkpoint, "--data", data, "--epochs", 2)
        return call("run", "--method", method, *inputs, *small, *args)

    return go


def files_of(results: Path) -> dict[str, bytes]:
    """The one run of a results folder: file name -> content."""
    (folder,) = (results / "runs").iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def finished(
    checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Answer]:
    """A results folder with one finished run, and what the command said; not to be changed."""
    results = tmp_path_factory.mktemp("finished") / "results"
    inputs = ("--task", "mrpc", "--model", checkpoint, "--data", data, "--epochs", 2)
    args = ("run", "--method", "lora", *inputs, *SMALL, "--results", results, "--json")
    return results, call_main(*args)


def test_one_run_is_one_json_object(finished: tuple[Path, Answer]) -> None:
    """Every key of the contract, with its type; stdout is the stored record and nothing else."""
    results, answer = finished
    assert answer.code == 0, answer.err
    record = answer.json
    for key, kind in CONTRACT.items():
        assert isinstance(record[key], kind), key
        assert kind is int or kind == NUMBER or not isinstance(record[key], bool) or kind is bool
    assert record["status"] == "done"
    assert set(record["metrics"]) == {"validation"}
    assert set(record["metrics"]["validation"]) == {"f1", "accuracy"}
    assert record["official_split"] is False
    assert json.loads(files_of(results)["record.json"]) == record
    assert "Traceback" not in answer.err
    assert f"{record['trainable_parameters']:,} trainable" in answer.err


def test_what_a_run_leaves_behind(finished: tuple[Path, Answer], data: Path) -> None:
    """Record, predictions of dev and test, what was trained; and one row of results.csv."""
    results, answer = finished
    record, folder = answer.json, results / "runs" / answer.json["run_id"]
    expected = {"record.json", "predictions.parquet", "adapter.safetensors", "SHA256SUMS"}
    assert {path.name for path in folder.iterdir()} == expected
    table = pd.read_parquet(folder / "predictions.parquet")
    assert table.groupby("split").size().to_dict() == {"test": 10, "validation": 10}
    dev, test = (table[table["split"] == split] for split in ("validation", "test"))
    rows = (data / "mrpc" / "validation.jsonl").read_text().splitlines()
    assert dev["label"].tolist() == [json.loads(row)["label"] for row in rows]
    assert test["label"].isna().all()
    logits = np.stack(list(table["logits"]))
    assert (logits.argmax(axis=1) == table["prediction"]).all()
    accuracy = (dev["label"] == dev["prediction"]).mean()
    assert record["metrics"]["validation"]["accuracy"] == pytest.approx(accuracy)
    tensors = load_file(folder / "adapter.safetensors")
    assert sum(tensor.size for tensor in tensors.values()) == record["trainable_parameters"]
    assert record["stored_bytes"] == 4 * record["trainable_parameters"]
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    (row,) = csv.DictReader((results / "results.csv").read_text().splitlines())
    assert row["run_id"] == record["run_id"]
    assert float(row["metrics.validation.accuracy"]) == pytest.approx(accuracy)


def test_the_same_command_gives_the_same_bytes(
    run: Run, finished: tuple[Path, Answer], tmp_path: Path
) -> None:
    """Elsewhere and with --force: metrics, predictions and weights to the last bit."""
    results, answer = finished
    reference = files_of(results)
    for flags in ((), ("--force",)):
        again = run("--json", *flags)
        assert again.code == 0
        assert again.json["metrics"] == answer.json["metrics"]
        assert again.json["run_id"] == answer.json["run_id"]
        made = files_of(tmp_path / "results")
        for name in ("predictions.parquet", "adapter.safetensors"):
            assert made[name] == reference[name], (name, flags)


def test_a_finished_run_is_not_repeated(
    run: Run, finished: tuple[Path, Answer], tmp_path: Path
) -> None:
    """A line says so; the answer is the stored record; no file is written again."""
    shutil.copytree(finished[0], tmp_path / "results")
    before = files_of(tmp_path / "results")
    again = run("--json")
    assert again.code == 0
    assert again.json == finished[1].json
    assert "already done" in again.err
    assert "--force repeats it" in again.err
    assert files_of(tmp_path / "results") == before
    assert "1 of 1 runs done" in run().out


def test_several_runs_and_one_that_diverges(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """{"runs": [...]} in order, exit code 1; the others go on; repeated only when asked to."""
    (tmp_path / "wild.yaml").write_text("methods: {full: {train: {learning_rate: 1.0e+20}}}")
    flags = ("--config", "wild.yaml", "--json")
    first = run(*flags, method="full,bitfit")
    assert first.code == 1
    assert set(first.json) == {"runs"}
    full, bitfit = first.json["runs"]
    assert (full["method"], full["status"]) == ("full", "diverged")
    assert "--lr" in full["reason"]
    assert (bitfit["method"], bitfit["status"]) == ("bitfit", "done")
    assert isinstance(full["train_time_s"], NUMBER)
    again = run(*flags, method="full,bitfit")
    assert again.code == 1
    assert again.json == first.json
    assert "already diverged" in again.err
    assert "--retry-failed repeats it" in again.err
    retried = run(*flags, "--retry-failed", method="full,bitfit")
    assert retried.err.count("already done") == 1
    assert "already diverged" not in retried.err
    assert [r["status"] for r in retried.json["runs"]] == ["diverged", "done"]
    text = run("--config", "wild.yaml", method="full,bitfit").out
    assert "1 of 2 runs done" in text
    assert "diverged (" in text


def test_weights_that_make_nan_diverge(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    """A loss that is NaN at the first step is a run that diverged, with its reason."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "nan" / "tiny-random"))
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.0.attention.self.query.weight"][0, 0] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    answer = run("--model", folder, "--json")
    assert answer.code == 1
    assert answer.json["status"] == "diverged"
    assert "not finite at step 1" in answer.json["reason"]


def test_a_run_that_does_not_fit_a_gpu_is_failed_and_the_others_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one example: this run's end, and no other's."""
    import torch

    from spafit_bench.training.gradients import Gradients

    real = Gradients._backward

    def full_card(self: Gradients, *batches: Any) -> Any:
        if self.adapted.plan.method.name == "lora":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *batches)

    monkeypatch.setattr(Gradients, "_backward", full_card)
    answer = run("--json", method="lora,bitfit")
    assert answer.code == 1
    lora, bitfit = answer.json["runs"]
    assert (lora["status"], bitfit["status"]) == ("failed", "done")
    assert "is out of memory with a single example; use a shorter --max-length" in lora["reason"]


def test_a_warm_up_without_end_is_said(run: Run) -> None:
    """It is done, and has learned next to nothing."""
    assert "the learning rate never reaches" in run("--warmup", "5000").err
    assert "never reaches" not in run("--warmup", "0", "--seed", "1").err


def test_only_the_hub_has_revisions(run: Run) -> None:
    """A folder as it stands must not be recorded as a revision."""
    assert "is no hub repository" in run("--revision", "v2").error


def test_a_run_that_raises_is_failed_and_the_others_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is one short line; a finished record is never replaced by a failure."""
    from spafit_bench.running import runner as run_module

    real = run_module.execute
    broken = ["lora"]

    def sometimes(prepared: Any, *args: Any) -> Any:
        if prepared.method in broken:
            raise RuntimeError("no luck\n" + "frame\n" * 500)
        return real(prepared, *args)

    monkeypatch.setattr(run_module, "execute", sometimes)
    answer = run("--json", method="lora,bitfit")
    assert answer.code == 1
    lora, bitfit = answer.json["runs"]
    assert lora["status"] == "failed"
    assert lora["reason"].startswith("RuntimeError: no luck frame")
    assert "\n" not in lora["reason"]
    assert len(lora["reason"]) <= 500
    assert bitfit["status"] == "done"
    assert "already failed" in run(method="lora,bitfit").err
    broken.clear()
    assert run("--retry-failed", "--json", method="lora,bitfit").code == 0
    broken.append("bitfit")
    again = run("--force", "--json", method="bitfit")
    assert again.code == 1
    assert again.json["status"] == "failed"
    stored = tmp_path / "results" / "runs" / bitfit["run_id"]
    assert json.loads((stored / "record.json").read_text())["status"] == "done"
    assert (stored / "adapter.safetensors").is_file()


def test_a_run_that_the_machine_broke_is_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same command: permissions, disk, memory and network are not the run's own faults."""
    import torch

    from spafit_bench.running import runner

    real, causes = runner.execute, [PermissionError(13, "denied"), torch.OutOfMemoryError("full")]

    def broken(*args: Any) -> Any:
        if not causes:
            return real(*args)
        raise RuntimeError("no dev scores") from causes.pop()

    monkeypatch.setattr(runner, "execute", broken)
    answers = [run("--json") for _ in range(3)]
    assert [answer.code for answer in answers] == [1, 1, 0]
    assert [answer.json["status"] for answer in answers] == ["failed", "failed", "done"]
    assert [answer.json["retry"] for answer in answers] == [True, True, False]


def test_an_interrupted_repeat_keeps_the_finished_run(
    run: Run, finished: tuple[Path, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--force and Ctrl-C: exit code 130, and the earlier result is still whole."""
    from spafit_bench.running import runner as run_module

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    shutil.copytree(finished[0], tmp_path / "results")
    before = files_of(tmp_path / "results")
    monkeypatch.setattr(run_module, "execute", interrupted)
    assert run("--force").code == 130
    assert files_of(tmp_path / "results") == before
    answer = run("--seed", 5)
    assert answer.code == 130
    assert "interrupted" in answer.err
    statuses = [
        json.loads(path.read_text())["status"]
        for path in sorted((tmp_path / "results").glob("runs/*/record.json"))
    ]
    assert sorted(statuses) == ["done", "interrupted"]


RunId = Callable[..., str]


@pytest.fixture
def run_id(checkpoint: Path, data: Path) -> RunId:
    """The name of a run with the given settings; nothing is trained."""
    from spafit_bench.cli.running import prepare_runs
    from spafit_bench.config.selection import RunRequest

    def name(*assignments: str, method: str = "lora", seed: str = "0", **flags: Any) -> str:
        given = {"model": str(checkpoint), "data": str(data), "precision": "fp32"} | flags
        request = RunRequest(
            task="mrpc", method=method, seed=seed, flags=given, assignments=assignments
        )
        (prepared,) = prepare_runs(request)
        return prepared.run_id

    return name


def test_a_name_does_not_depend_on_places(run_id: RunId, tmp_path: Path, checkpoint: Path) -> None:
    """The same text in any folder and layout, the same weights elsewhere, and what is kept."""
    task, name = get_task("mrpc"), run_id()
    assert name.startswith("mrpc-lora-tiny-random-s0-")
    rows = task_rows("mrpc")
    write_plain(tmp_path / "a", task, rows, "csv")
    write_plain(tmp_path / "b" / "c", task, rows, "jsonl")
    write_hub(tmp_path / "hub", task, rows)
    write_tsv(tmp_path / "tsv", task, rows)
    for folder in ("a", "a/mrpc", "b/c", "hub", "tsv"):
        assert run_id(data=str(tmp_path / folder)) == name, folder
    copied = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "tiny-random")
    assert run_id(model=str(copied)) == name
    assert run_id(save_weights="all", predict_test=False, device="cpu", offline=True) == name
    body = "strata: [{layers: all, treatment: bias}]\nname: mine\n"
    (tmp_path / "one.yaml").write_text(body)
    (tmp_path / "b" / "two.yaml").write_text(body)
    named = run_id(method=str(tmp_path / "one.yaml"))
    assert named == run_id(method=str(tmp_path / "b" / "two.yaml"))
    assert named.startswith("mrpc-mine-tiny-random-s0-")


def test_a_name_depends_on_what_changes_the_result(
    run_id: RunId, tmp_path: Path, checkpoint: Path
) -> None:
    """Seed, settings, text, labels, weights, tokenizer and precision: all names differ."""
    task = get_task("mrpc")
    text, label = task_rows("mrpc"), task_rows("mrpc")
    text["train"][0]["sentence1"] += " dog"
    label["train"][0]["label"] = 1 - label["train"][0]["label"]
    write_plain(tmp_path / "text", task, text, "jsonl")
    write_plain(tmp_path / "label", task, label, "jsonl")
    weights = write_checkpoint(tmp_path / "weights" / "tiny-random", seed=1)
    words = Path(shutil.copytree(checkpoint, tmp_path / "words" / "tiny-random"))
    vocabulary = words / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text().replace("dog\ncat", "cat\ndog"))
    names = [
        run_id(),
        run_id(seed="1"),
        run_id("train.learning_rate=1e-5"),
        run_id("train.batch_size=8"),
        run_id("method.rank=8"),
        run_id("head.pooler=full"),
        run_id("head.pooler_init=fresh"),
        run_id(limit=10),
        run_id(select="best"),
        run_id(precision="bf16"),
        run_id(data=str(tmp_path / "text")),
        run_id(data=str(tmp_path / "label")),
        run_id(model=str(weights)),
        run_id(model=str(words)),
        run_id(method="lora-ii"),
    ]
    assert len(set(names)) == len(names)
    assert len({name.rpartition("-")[2] for name in names}) == len(names)


def test_test_labels_are_never_read(
    run: Run, finished: tuple[Path, Answer], tmp_path: Path
) -> None:
    """Hidden, real, nonsense or no labels in the test file: the same name and the same bytes."""
    reference = files_of(finished[0])
    for number, labels in enumerate((lambda i: i % 2, lambda i: f"label {i}", None)):
        rows = task_rows("mrpc")
        for index, row in enumerate(rows["test"]):
            del row["label"]
            if labels is not None:
                row["label"] = labels(index)
        folder, results = tmp_path / f"data{number}", tmp_path / f"results{number}"
        write_plain(folder, get_task("mrpc"), rows, "jsonl")
        answer = run("--data", folder, "--results", results, "--json")
        assert answer.json["run_id"] == finished[1].json["run_id"]
        assert files_of(results)["predictions.parquet"] == reference["predictions.parquet"]


@pytest.mark.parametrize("task", ["cola", "stsb", "mnli"])
def test_other_kinds_of_task(run: Run, task: str) -> None:
    """One sentence, a regression, and two dev splits, with their metrics; no NaN anywhere."""
    answer = run("--json", "--epochs", 1, task=task)
    assert answer.code == 0, answer.err
    assert "NaN" not in answer.out
    facts = get_task(task)
    assert set(answer.json["metrics"]) == set(facts.dev_splits)
    for values in answer.json["metrics"].values():
        assert set(values) == set(facts.metrics)


def test_a_limit_that_cuts_nothing_is_none(run: Run) -> None:
    """The same run as without, not a copy of it that is marked as cut."""
    first = run("--json").json
    again = run("--limit", 10_000, "--json")
    assert again.json["run_id"] == first["run_id"]
    assert again.json["train_limit"] is None


def test_a_limit_is_recorded_and_cuts_train_alone(run: Run) -> None:
    """`train_limit` says so; dev stays whole."""
    answer = run("--limit", 8, "--json")
    assert answer.json["train_limit"] == 8
    rows = answer.json["data"]["rows"]
    assert (rows["train"], rows["validation"]) == (8, 10)


def test_a_dry_run_runs_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    """The names that would run, with estimates; finished runs are told apart."""
    plan = run("--dry-run", "--json", method="lora,full")
    assert plan.code == 0
    assert not any(tmp_path.iterdir())
    first, second = plan.json["runs"]
    assert first["finished"] is second["finished"] is False
    assert first["steps"] == 4
    assert 0 < first["stored_bytes"] < second["stored_bytes"]
    assert run("--json").json["run_id"] == first["run_id"]
    again = run("--dry-run", "--json", method="lora,full").json["runs"]
    assert [row["finished"] for row in again] == [True, False]
    text = run("--dry-run", method="lora,full").out
    assert "there, skipped" in text
    assert "1 of 2 to run" in text


def test_an_option_given_twice_is_a_list(run: Run, call: Cli) -> None:
    """The first value is not lost: `--seed 0 --seed 1` is `--seed 0,1`."""

    def planned(answer: Answer) -> list[tuple[str, str]]:
        return [(row["task"], row["run_id"]) for row in answer.json["runs"]]

    dry = ("--dry-run", "--json")
    listed = planned(run(*dry, "--seed", "0,1", method="lora,full"))
    twice = ("--method", "full", "--seed", 0, "--seed", 1)
    assert planned(run(*dry, *twice, method="lora")) == listed
    assert len(listed) == 4
    found = planned(call("sweep", "smoke", *dry, "--task", "cola", "--task", "mrpc"))
    assert {task for task, _ in found} == {"cola", "mrpc"}


def test_counts_of_a_plan(call: Cli, checkpoint: Path, finished: tuple[Path, Answer]) -> None:
    """The contract's names at the top level, equal to what a run records; `params` is the same."""
    flags = ("--method", "lora", "--model", checkpoint, *SMALL[:4])
    plan = call("plan", *flags, "--json").json
    for key in ("trainable_parameters", "base_parameters", "trainable_percent", "stored_bytes"):
        assert plan[key] == pytest.approx(finished[1].json[key], abs=1e-4), key
    assert call("params", *flags, "--json").json == plan
    three = call("plan", *flags, "--task", "mnli", "--json").json
    assert three["trainable_parameters"] == plan["trainable_parameters"] + 33
    assert three["task"] == "mnli"
    bare = Path(checkpoint).parent / "bare-config"
    bare.mkdir(exist_ok=True)
    (bare / "config.json").write_bytes((Path(checkpoint) / "config.json").read_bytes())
    without_weights = call("plan", *flags, "--model", bare, "--json").json
    assert without_weights["trainable_parameters"] == plan["trainable_parameters"]
    text = call("plan", *flags).out
    assert f"trainable {plan['trainable_parameters']:,} of" in text


def test_listings(call: Cli, finished: tuple[Path, Answer]) -> None:
    """Tasks, methods, models, sweeps and runs, as text and as JSON with native-scale scores."""
    results, answer = finished
    tasks = call("list", "tasks", "--json").json["tasks"]
    assert [row["task"] for row in tasks].count("mnli") == 1
    assert [row["task"] for row in tasks][:9] == [*TASKS]
    methods = {row["method"] for row in call("list", "methods", "--json").json["methods"]}
    assert {"full", "bitfit", "lora", "spafit"} <= methods
    assert any(r["model"] == "tiny-bert" for r in call("list", "models", "--json").json["models"])
    sweeps = {
        row["sweep"]: row["description"] for row in call("list", "sweeps", "--json").json["sweeps"]
    }
    assert {"paper", "smoke", "ablation-rank"} <= set(sweeps)
    assert all(sweeps.values())
    assert complete_sweeps("ablation-p") == ["ablation-pooler", "ablation-prefix"]
    assert call("list", "runs", "--json", "--results", results).json == {"runs": [answer.json]}
    line = call("list", "runs", "--results", results).out.splitlines()[1].split()
    assert line[:2] == [answer.json["run_id"], "done"]
    assert line[6] == f"{100 * answer.json['score']:.2f}"


def test_showing_a_run(call: Cli, finished: tuple[Path, Answer]) -> None:
    """By its name or an unambiguous beginning; --json is the record."""
    results, answer = finished
    run_id = answer.json["run_id"]
    for name in (run_id, run_id[:12]):
        assert call("show", name, "--json", "--results", results).json == answer.json
    text = call("show", "mrpc", "--results", results).out
    for said in (run_id, "NOT official", "learning_rate: 0.0002", "trainable"):
        assert said in text
    assert "did you mean" in call("show", f"x{run_id}", "--results", results).error


def test_tables_from_the_command_line(
    call: Cli, finished: tuple[Path, Answer], tmp_path: Path
) -> None:
    """Printed and kept current; with --out, written alone; results.csv is renewed."""
    results = tmp_path / "results"
    shutil.copytree(finished[0], results)
    (results / "results.csv").unlink()
    (results / "tables").mkdir(exist_ok=True)
    for name in ("scores-gone.md", "notes.md", "mine.csv"):
        (results / "tables" / name).touch()
    printed = call("table")
    assert printed.code == 0
    there = {path.name for path in (results / "tables").iterdir()}
    assert "scores-gone.md" not in there
    assert {"notes.md", "mine.csv", "scores.md"} <= there
    assert "lora" in printed.out
    assert {path.suffix for path in (results / "tables").iterdir()} == {".csv", ".md"}
    assert finished[1].json["run_id"] in (results / "results.csv").read_text()
    assert isinstance(call("table", "--json").json, dict | list)
    assert call("table", "--format", "md", "--out", "scores.md").out == ""
    assert "| lora" in (tmp_path / "scores.md").read_text()
    for other, name in (("markdown", "md"), ("tex", "latex")):
        assert call("table", "--format", other).out == call("table", "--format", name).out
    assert "cannot be written" in call("table", "--out", "no/such/folder.md").error


def test_names_that_are_not_utf8(run: Run, tmp_path: Path, data: Path) -> None:
    """A path with undecodable bytes is recorded, not a crash after training."""
    folder = tmp_path / "d\udcffata"
    shutil.copytree(data, folder)
    answer = run("--data", folder, "--results", "r\udcff")
    assert answer.code == 0
    assert "data" in call_main("list", "runs", "--json", "--results", "r\udcff").out


def test_help_is_fast_and_complete() -> None:
    """Every command's help, in one process that never imports a heavy library."""
    code = """
import sys
from spafit_bench.cli import app, main
commands = [[c.name or c.callback.__name__] for c in app.registered_commands]
for group in app.registered_groups:
    inner = [c.name or c.callback.__name__ for c in group.typer_instance.registered_commands]
    commands += [[group.name], *([group.name, name] for name in inner)]
assert len(commands) >= 6, commands
for command in ([], *commands):
    sys.argv = ["spafit-bench", *command, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (command, end.code)
heavy = {"torch", "transformers", "pandas", "numpy", "datasets", "scipy", "yaml"}
sys.exit(f"imported: {heavy & set(sys.modules)}" if heavy & set(sys.modules) else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for said in ("--method", "--results", "--format", "Example"):
        assert said in done.stdout


def test_help_takes_little_time() -> None:
    """Processor time of `--help`, which other processes on the machine hardly change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", MAIN, "run", "--help"],
        env=clean_environment(),
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 1.0, f"{used:.2f} s of processor time, {time.perf_counter() - start:.2f} s"


def test_the_real_command_line_with_a_hub(cli: Cli, tmp_path: Path) -> None:
    """The default model and data are fetched, then come from the cache when the hub is gone."""
    root = tmp_path / "root"
    write_hub(root / "datasets/nyu-mll/glue", get_task("mrpc"), task_rows("mrpc"))
    write_checkpoint(root / "models/bert-large-cased")
    env = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    args = ("run", "--task", "mrpc", "--method", "spafit", "--epochs", 1, "--json")
    with HubServer(root) as hub:
        online = cli(*args, HF_ENDPOINT=hub.url, **env)
        assert online.code == 0, online.err
        hub.stop()
        offline = cli(*args, "--force", HF_ENDPOINT=hub.url, **env)
    record = online.json
    assert record["model"] == "bert-large-cased"
    assert record["run_id"].startswith("mrpc-spafit-bert-large-cased-s0-")
    assert record["data"]["source"] == f"nyu-mll/glue@{COMMIT}"
    assert record["weights"]["revision"] == COMMIT
    assert offline.code == 0, offline.err
    assert offline.json["run_id"] == record["run_id"]
    assert offline.json["metrics"] == record["metrics"]


def test_data_of_all_tasks_are_checked_before_the_first_run(call: Cli, checkpoint: Path) -> None:
    """A task whose data is missing stops the command before another task has trained."""
    folder = write_data(Path("some"), "mrpc")
    flags = ("--method", "lora", "--model", checkpoint, "--data", folder)
    assert "no data for cola" in call("run", "--task", "mrpc,cola", *flags).error
    assert not Path("results").exists()

"""Sweeps: the matrix, choices on held-out train, shards, workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from spafit_bench.base.errors import UserError
from spafit_bench.config.sweep import (
    Sweep,
    SweepCell,
    final_configs,
    groups,
    narrowed,
    parse_shard,
    read_sweep,
    sweep_path,
    trial_configs,
)
from spafit_bench.config.sweep_values import value_list
from spafit_bench.results.store import Store
from spafit_bench.running.agenda import choose
from spafit_bench.training.prepare import Preparer
from tests.conftest import MAIN, Answer, Cli, clean_environment
from tests.support.records import make_record


def sweep_of(folder: Path, **body: Any) -> Sweep:
    """Read a sweep from a file with the given content."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"tasks": ["mrpc", "cola"], "methods": ["full", "lora"]} | body))
    return read_sweep(path, {})


def test_the_matrix_is_every_combination_once(tmp_path: Path) -> None:
    """Tasks x methods x grid points x seeds."""
    sweep = sweep_of(
        tmp_path,
        seeds="0-2",
        grid={
            "train.max_length": [32, 64],
            "train.learning_rate": {"full": [1e-5], "lora": [1e-4, 2e-4]},
        },
    )
    configs = final_configs(sweep, {})
    found = {
        (c.task, c.method.name, c.train.max_length, c.train.learning_rate, c.seed) for c in configs
    }
    expected = {
        (task, method, length, rate, seed)
        for task in ("mrpc", "cola")
        for method, rates in (("full", [1e-5]), ("lora", [1e-4, 2e-4]))
        for length in (32, 64)
        for rate in rates
        for seed in range(3)
    }
    assert found == expected
    assert len(configs) == len(expected)


def test_settings_hold_for_their_task_and_method(tmp_path: Path) -> None:
    """Sections work as in a configuration file, and a range counts both ends."""
    sweep = sweep_of(
        tmp_path,
        settings={
            "head": {"pooler": "full"},
            "tasks": {"cola": {"train": {"epochs": 7}}},
            "methods": {"full": {"save_weights": "none"}},
        },
        grid={"train.batch_size": {"from": 8, "to": 16, "step": 4}},
    )
    configs = final_configs(sweep, {})
    assert {c.train.batch_size for c in configs} == {8, 12, 16}
    assert {c.head.pooler for c in configs} == {"full"}
    assert {c.train.epochs for c in configs if c.task == "cola"} == {7}
    assert {c.save_weights for c in configs if c.method.name == "full"} == {"none"}
    assert {c.save_weights for c in configs if c.method.name == "lora"} == {"best"}


CHOOSE = {
    "key": "train.learning_rate",
    "values": {"full": [1e-5, 3e-5], "lora": [1e-4, 3e-4]},
    "holdout": 0.25,
    "seeds": [0, 1],
}


def test_trials_are_judged_on_held_out_train(tmp_path: Path) -> None:
    """One trial for each value and trial seed; the reported runs do not hold anything out."""
    sweep = sweep_of(tmp_path, seeds=[5], choose=CHOOSE)
    trials = trial_configs(sweep)
    assert {(g.task, g.method) for g in trials} == {
        (task, method) for task in ("mrpc", "cola") for method in ("full", "lora")
    }
    for values in trials.values():
        for value, configs in values.items():
            assert [c.seed for c in configs] == [0, 1]
            assert {c.train.learning_rate for c in configs} == {value}
            assert {c.holdout for c in configs} == {0.25}
    chosen = {group: list(values)[1] for group, values in trials.items()}
    chosen[next(iter(chosen))] = None
    finals = final_configs(sweep, chosen)
    assert len(finals) == 3
    assert {(c.seed, c.holdout) for c in finals} == {(5, None)}
    assert {c.train.learning_rate for c in finals if c.method.name == "lora"} == {3e-4}


def test_several_settings_are_chosen_together(tmp_path: Path) -> None:
    """Every combination is tried, and the reported runs have the chosen one."""
    keys = {"train.epochs": {"all": [3], "cola": [5, 6]}, "train.learning_rate": [1e-4, 3e-4]}
    sweep = sweep_of(tmp_path, methods=["lora"], choose={"keys": keys})
    trials = trial_configs(sweep)
    made = {
        group.task: [
            (value, config.train.learning_rate, config.train.epochs)
            for value, configs in values.items()
            for config in configs
        ]
        for group, values in trials.items()
    }
    assert made["mrpc"] == [((3, 1e-4), 1e-4, 3), ((3, 3e-4), 3e-4, 3)]
    assert [epochs for *_, epochs in made["cola"]] == [5, 5, 6, 6]
    finals = final_configs(sweep, {group: list(v)[-1] for group, v in trials.items()})
    assert {(c.task, c.train.learning_rate, c.train.epochs) for c in finals} == {
        ("mrpc", 3e-4, 3),
        ("cola", 3e-4, 6),
    }
    assert sweep.keys == ("train.epochs", "train.learning_rate")


def trial(score: float, **changes: Any) -> Any:
    """Return a trial's record."""
    return make_record().model_copy(update={"score": score, "holdout": 0.1, **changes})


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ({1: [trial(0.5)], 2: [trial(0.7)], 3: [trial(0.6)]}, 2),
        ({1: [trial(0.5), trial(0.9)], 2: [trial(0.8), trial(0.8)]}, 2),
        ({1: [trial(0.5)], 2: [trial(0.5)]}, 1),
        ({1: [trial(0.5)], 2: [trial(0.9, collapsed=True)]}, 1),
        ({1: [trial(0.5)], 2: [trial(0.9), trial(0.0, status="diverged")]}, 1),
        ({1: [trial(0.9, collapsed=True)]}, None),
    ],
)
def test_the_best_mean_is_chosen(trials: Mapping[int, list[Any]], expected: int | None) -> None:
    """Over trial seeds; the first of equals; never a value that collapsed or diverged."""
    assert choose(trials) == expected


def test_what_would_change_nothing_is_refused(tmp_path: Path) -> None:
    """LoRA's settings without LoRA, a flag over the sweep's own values, keys that are no text."""
    with pytest.raises(UserError, match=r"method.rank has no effect: full, bitfit has no LoRA"):
        sweep_of(tmp_path, methods=["full", "bitfit"], settings={"method": {"rank": 8}})
    with pytest.raises(UserError, match=r"method.alpha has no effect"):
        sweep_of(tmp_path, methods=["full"], grid={"method.alpha": [4, 8]})
    with pytest.raises(UserError, match="grid must be a mapping from settings to values"):
        sweep_of(tmp_path, grid={5: [1]})
    path = tmp_path / "sweep.yaml"
    sweep_of(tmp_path, grid={"model": ["a/b", "c/d"]})
    with pytest.raises(UserError, match="model = tiny-bert is given, and the sweep itself"):
        read_sweep(path, {"model": "tiny-bert"})
    sweep_of(tmp_path, choose=CHOOSE)
    with pytest.raises(UserError, match=r"train\.learning_rate = 0\.1 is given"):
        read_sweep(path, {"train": {"learning_rate": 0.1}})


def test_trials_share_their_rows(tmp_path: Path, data: Path) -> None:
    """A matrix of trials holds one slice of a task's train split, not one for each."""
    settings = {"model": "tiny-bert", "data": str(data)}
    sweep = sweep_of(tmp_path, tasks=["mrpc"], settings=settings, choose=CHOOSE)
    preparer = Preparer()
    trials = [c for values in trial_configs(sweep).values() for cs in values.values() for c in cs]
    assert len(trials) > 2
    assert len({id(preparer.prepare(config).data) for config in trials}) == 1


def test_shards_divide_the_cells(tmp_path: Path) -> None:
    """Every cell is in exactly one shard."""
    from dataclasses import replace

    sweep = sweep_of(tmp_path, grid={"train.max_length": [32, 64, 96]})
    parts: list[SweepCell] = []
    for number in range(1, 6):
        parts += groups(replace(sweep, shard=(number, 5)))
    assert sorted(parts, key=str) == sorted(groups(sweep), key=str)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_bad_shard_is_an_error(text: str) -> None:
    """The message has the form that is wanted."""
    with pytest.raises(UserError, match="i/n with 1 <= i <= n"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"taskss": ["mrpc"]}, "did you mean 'tasks'"),
        ({"tasks": None}, "'tasks' is missing"),
        ({"tasks": ["mrcp"]}, "did you mean 'mrpc'"),
        ({"methods": ["lor"]}, "did you mean 'lora'"),
        ({"settings": {"train": {"lr": 1}}}, "unknown key 'train.lr'"),
        ({"grid": {"train.epoch": [1]}}, "did you mean 'epochs'"),
        ({"grid": {"train.epochs": 3}}, "give a list"),
        ({"grid": {"train.epochs": {"full": [1]}}}, "no values for mrpc/lora"),
        ({"choose": {"values": [1]}}, "choose"),
        ({"choose": CHOOSE | {"keys": {}}}, "give key: with values:, or keys:"),
        ({"choose": {"keys": [1]}}, "choose.keys must be a mapping"),
        ({"choose": {"keys": {"train.epochs": 3}}}, "choose.keys.train.epochs: give a list"),
        ({"choose": CHOOSE | {"holdout": 2.0}}, "between 0 and 1"),
        ({"preset": 3}, "unknown preset 3: "),
        (
            {"settings": {"methods": {"sapfit": {}}}},
            "methods.sapfit: no such method: did you mean",
        ),
        ({"settings": {"task": "rte"}}, "settings: 'task' is not set here; give `tasks:`"),
        ({"settings": {"seed": 3}}, "settings: 'seed' is not set here; give `seeds:`"),
        ({"settings": {"method": "lora"}}, "settings: 'method' is not set here; give `methods:`"),
        ({"settings": {"method": {"name": "lora"}}}, "give `methods:`"),
        ({"grid": {"method": ["lora"]}}, "grid: 'method' is not set here; give `methods:`"),
        ({"grid": {"method.name": ["lora"]}}, "grid: 'method.name' is not set here"),
        ({"grid": {"seed": [1, 2]}}, "grid: 'seed' is not set here; give `seeds:`"),
        ({"choose": CHOOSE | {"key": "seed"}}, "choose: 'seed' is not set here; give `seeds:`"),
        (
            {"choose": CHOOSE | {"values": [None, 1e-3]}},
            "None cannot be a value in a sweep with choose",
        ),
        (
            {"choose": CHOOSE | {"values": [[1e-3]]}},
            "[0.001] cannot be a value in a sweep with choose",
        ),
        ({"choose": CHOOSE, "grid": {"train": [{"epochs": 1}]}}, "grid.train: {'epochs': 1}"),
        ({"choose": CHOOSE, "grid": {CHOOSE["key"]: [1e-3]}}, "is in grid and in choose"),
    ],
)
def test_a_bad_sweep_is_one_message(tmp_path: Path, body: dict[str, Any], message: str) -> None:
    """It names the file and the key."""
    with pytest.raises(UserError, match=r"sweep\.yaml|unknown") as caught:
        final_configs(sweep_of(tmp_path, **body), {})
    assert message in str(caught.value)


def test_the_shipped_sweeps_are_whole() -> None:
    """The paper's matrix: nine tasks, six methods, five seeds, three rates each to choose from."""
    paper = read_sweep(sweep_path("paper"), {})
    assert len(groups(paper)) == 9 * 6
    assert set(paper.seeds.values()) == {(0, 1, 2, 3, 4)}
    assert paper.choice is not None
    assert {len(paper.choice.candidates(group)) for group in groups(paper)} == {3}
    assert {len(v) for values in trial_configs(paper).values() for v in values.values()} == {1}
    assert len(groups(read_sweep(sweep_path("smoke"), {}))) == 9 * 4
    with pytest.raises(UserError, match="did you mean 'paper'"):
        sweep_path("papre")


def test_a_sweep_chooses_runs_and_goes_on(call: Cli, tmp_path: Path) -> None:
    """Trials of two settings, then the reported runs; nothing is repeated; no trial is a result."""
    body = {
        "tasks": ["cola"],
        "methods": ["full"],
        "seeds": "0-1",
        "settings": {
            **{"model": "tiny-bert", "data": "mini", "precision": "fp32", "limit": 256},
            "train": {"epochs": 1, "batch_size": 16, "max_length": 32},
        },
        "choose": {
            "keys": {"train.learning_rate": [1.0e-5, 1.0e-3], "train.warmup": [0.1, 0.0]},
            "holdout": 0.3,
            "seeds": 0,
        },
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(body))
    plan = call("sweep", "s.yaml", "--dry-run")
    assert plan.code == 0, plan.err
    assert "6 of 6 to run" in plan.out
    assert not (tmp_path / "results").exists()
    first = call("sweep", "s.yaml", "--json")
    assert first.code == 0, first.err
    records = first.json["runs"]
    trials = [record for record in records if record["holdout"] is not None]
    assert [set(record["metrics"]) for record in trials] == [{"holdout"}] * 4
    assert not any(record["official_split"] for record in trials)
    again = call("sweep", "s.yaml", "--json")
    assert again.json == first.json
    assert "6 of 6 runs are there already" in again.err
    best = max(trials, key=lambda record: record["score"] or 0.0)["config"]["train"]
    assert best["learning_rate"] == 1e-3
    finals = [record for record in records if record["holdout"] is None]
    assert [record["seed"] for record in finals] == [0, 1]
    for key in ("learning_rate", "warmup"):
        assert {record["config"]["train"][key] for record in finals} == {best[key]}
    table = json.loads(call("table", "--json").out)
    scores = [line for line in table["measurements"] if line["kind"] == "scores"]
    assert scores
    assert "holdout" not in json.dumps(scores)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1, "a"], (1, "a")),
        ("2-5", (2, 3, 4, 5)),
        ({"from": 8, "to": 17, "step": 4}, (8, 12, 16)),
        ({"from": 0.1, "to": 0.5, "step": 0.2}, (0.1, 0.3, 0.5)),
        ({"from": 0, "to": 1, "num": 5}, (0.0, 0.25, 0.5, 0.75, 1.0)),
        ({"from": "1e-5", "to": "1e-3", "num": 3, "spacing": "log"}, (1e-5, 1e-4, 1e-3)),
        ({"from": 1e-5, "to": 1e-4, "num": 3, "spacing": "log"}, (1e-5, 3.16e-5, 1e-4)),
    ],
)
def test_ranges(given: Any, expected: tuple[Any, ...]) -> None:
    """Both ends count; spaced values have three digits, and 1e-5 is a number."""
    assert value_list(given, "x") == expected


@pytest.mark.parametrize(
    "given",
    [
        [], 3, None, True, "5-2", "a-b",
        {"from": 1}, {"from": 1, "to": 2}, {"from": 5, "to": 1, "step": 1},
        {"from": 1, "to": 5, "step": 0}, {"from": 1, "to": 1e9, "step": 1},
        {"from": 1, "to": 5, "num": 1}, {"from": 1, "to": 5, "num": 2.5},
        {"from": 0, "to": 5, "num": 3, "spacing": "log"},
        {"from": 1, "to": 5, "num": 3, "spacing": "cubic"},
        {"from": float("nan"), "to": 5, "num": 3}, {"from": 1, "to": 5, "num": 3, "step": 1},
    ],
)  # fmt: skip
def test_what_is_no_range_is_one_message(given: Any) -> None:
    """It names the key."""
    with pytest.raises(UserError, match=r"^grid\.x: "):
        value_list(given, "grid.x")


def test_the_most_exact_name_counts(tmp_path: Path) -> None:
    """A task with a method before the method, before the task, before all; seeds too."""
    rates = {"all": [1e-5], "cola": [2e-5], "lora": [3e-5, 4e-5], "cola/lora": [5e-5]}
    sweep = sweep_of(tmp_path, seeds={"all": "0-1", "full": 7}, grid={"train.learning_rate": rates})
    found = {
        (c.task, c.method.name, c.train.learning_rate, c.seed) for c in final_configs(sweep, {})
    }
    assert found == {
        ("mrpc", "full", 1e-5, 7), ("cola", "full", 2e-5, 7), ("mrpc", "lora", 3e-5, 0),
        ("mrpc", "lora", 3e-5, 1), ("mrpc", "lora", 4e-5, 0), ("mrpc", "lora", 4e-5, 1),
        ("cola", "lora", 5e-5, 0), ("cola", "lora", 5e-5, 1),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"'lorra' is not in this sweep: did you mean 'lora'"):
        sweep_of(tmp_path, grid={"train.epochs": {"all": [1], "lorra": [2]}})


def test_a_killed_worker_stops_nobody(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    """Two processes share a sweep; kill -9 of one: its run is carried out again, whole."""
    body = {
        "tasks": ["mrpc"],
        "methods": ["bitfit", "lora"],
        "settings": {
            "model": str(checkpoint),
            "data": str(data),
            "precision": "fp32",
            "predict_test": False,
            "train": {"epochs": 8, "batch_size": 4, "max_length": 32},
        },
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(body))
    sweep = subprocess.Popen(
        [sys.executable, "-c", MAIN, "sweep", "s.yaml", "--jobs", "2"],
        cwd=tmp_path,
        # torch follows MKL's number: workers must not take the whole machine's for their own
        env=clean_environment(HF_HUB_OFFLINE="1", MKL_NUM_THREADS="2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    locks, until = tmp_path / "results" / "locks", time.monotonic() + 60
    workers: list[int] = []
    while not workers and time.monotonic() < until:
        time.sleep(0.01)
        with suppress(FileNotFoundError):  # a lock that was released meanwhile
            texts = " ".join(path.read_text() for path in locks.glob("[!.]*"))
            owners = [int(pid) for pid in re.findall(r"process (\d+) on", texts)]
            workers = [pid for pid in owners if pid != sweep.pid]
    assert workers, sweep.communicate(timeout=100)
    os.kill(workers[0], signal.SIGKILL)
    out, err = sweep.communicate(timeout=100)
    assert sweep.returncode == 0, err
    assert "ended by SIGKILL" in err
    assert err.count(" tokens/s") == 2, err
    assert "2 of 2 runs done" in out
    records = Store(tmp_path / "results").records()
    assert [r.status for r in records] == ["done", "done"]
    typed = {r.environment.command for r in records}
    assert typed == {"-c sweep s.yaml --jobs 2"}, "not what was typed, but how a worker was started"


def test_a_sweep_is_narrowed_and_set_from_the_command_line(tmp_path: Path) -> None:
    """Some tasks and methods, other seeds, settings over the file's; each refused where wrong."""
    sweep_of(
        tmp_path,
        seeds={"all": "0-2", "full": 7},
        settings={"train": {"epochs": 3, "batch_size": 8}},
        grid={"train.max_length": [32, 64]},
        choose={"key": "train.learning_rate", "values": {"full": [1e-5], "lora": [1e-4]}},
    )
    path = tmp_path / "sweep.yaml"
    sweep = read_sweep(path, {}, ["train.epochs=2", "head.pooler=full"])
    found = narrowed(sweep, "cola", "lora", "1-2")
    configs = final_configs(found, dict.fromkeys(groups(found), 1e-4))
    assert {(c.task, c.method.name, c.seed, c.train.max_length) for c in configs} == {
        ("cola", "lora", seed, length) for seed in (1, 2) for length in (32, 64)
    }
    assert {(c.train.epochs, c.train.batch_size, c.head.pooler) for c in configs} == {
        (2.0, 8, "full")
    }
    assert narrowed(sweep, None, "all", None) == sweep
    for wrong, message in (
        (lambda: narrowed(sweep, "rte", None, None), "--task rte: not in this sweep"),
        (lambda: narrowed(sweep, None, "spafit", None), "--method spafit: not in this sweep"),
        (lambda: narrowed(sweep, None, None, "x"), "seed"),
        (lambda: read_sweep(path, {}, ["train.max_length=8"]), "goes through values of"),
        (lambda: read_sweep(path, {}, ["train.learning_rate=1"]), "goes through values of"),
        (lambda: read_sweep(path, {}, ["seed=3"]), "--seed"),
        (lambda: read_sweep(path, {}, ["method=lora"]), "method"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()


def test_a_dry_run_knows_what_is_there(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    """Finished runs of a choice that is not its first value; by as many processes as asked for."""
    body = {
        "tasks": ["mrpc"],
        "methods": ["bitfit"],
        "seeds": "0-2",
        "settings": {"model": str(checkpoint), "data": str(data), "device": "cpu"},
        "choose": {"key": "train.learning_rate", "values": {"all": [1e-3, 1e-4]}, "holdout": 0.25},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(body))
    store = Store(tmp_path / "results")

    def dry_run(*flags: str) -> Answer:
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            return call("sweep", "s.yaml", "--dry-run", *flags)
        finally:
            torch.set_num_threads(before)

    trials = dry_run("--json", "--jobs", "2").json["runs"][:2]
    for row, score in zip(trials, (0.5, 0.9), strict=True):
        update = {"run_id": row["run_id"], "score": score}
        store.save(make_record().model_copy(update=update), {})
    after = dry_run("--json", "--jobs", "2").json["runs"]
    assert [row["finished"] for row in after] == [True, True, False, False, False]
    assert not any(row["finished"] for row in dry_run("--json").json["runs"]), "other threads"
    said = dry_run("--jobs", "2").out
    assert "3 of 5 to run" in said
    assert "2 runs at a time" in said
    store.save(make_record().model_copy(update={"run_id": after[2]["run_id"]}), {})
    assert "2 of 5 to run" in dry_run("--jobs", "2").out


def test_a_dry_run_counts_what_would_run(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    """Cell by cell; a failed run is one of them only with --retry-failed."""
    body = {
        "tasks": ["mrpc", "cola"],
        "methods": ["bitfit", "lora"],
        "seeds": "0-2",
        "settings": {"model": str(checkpoint), "data": str(data), "device": "cpu"},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(body))
    rows = call("sweep", "s.yaml", "--dry-run", "--json").json["runs"]
    assert len(rows) == 12
    for row, status in zip(rows, ("done", "failed"), strict=False):
        record = make_record().model_copy(update={"run_id": row["run_id"], "status": status})
        Store(tmp_path / "results").save(record, {})
    said = call("sweep", "s.yaml", "--dry-run").out.splitlines()
    assert said[0].split() == ["task", "method", "runs", "there", "each", "all", "memory", "disk"]
    assert [line.split()[:4] for line in said[1:-1]] == [
        ["mrpc", "bitfit", "3", "2"], ["mrpc", "lora", "3", "0"], ["cola", "bitfit", "3", "0"],
        ["cola", "lora", "3", "0"],
    ]  # fmt: skip
    assert said[-1].startswith("10 of 12 to run: about ")
    retried = call("sweep", "s.yaml", "--dry-run", "--retry-failed").out
    assert "11 of 12 to run" in retried
    assert "12 of 12 to run" in call("sweep", "s.yaml", "--dry-run", "--force").out

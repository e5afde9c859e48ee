"""Filters that all commands share: task, method or table row, model, seed, status, setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from spafit_bench.analysis.selection import Selection, select
from spafit_bench.analysis.tables import build_tables
from spafit_bench.base.errors import UserError
from spafit_bench.results.record import RunRecord
from tests.conftest import Cli
from tests.support.finished_runs import save
from tests.support.records import make_record, scores

SPEC = "lora(query,r=8,alpha=16;0-11)+full(12-23)"


def records() -> list[RunRecord]:
    """Two tasks, two learning rates of full, a method written out, a failure, another model."""
    runs = [
        make_record(task, "full", seed, config={"train.learning_rate": rate})
        for task in ("mrpc", "rte")
        for seed in (0, 1)
        for rate in (1e-3, 3e-4)
    ]
    runs += [make_record("mrpc", SPEC, 0), make_record("rte", SPEC, 1)]
    runs.append(
        make_record("rte", "full", 2, status="failed", config={"train.learning_rate": 1e-3})
    )
    runs.append(make_record("rte", "bitfit", 0, model="hub/tiny-bert", weights="beef" * 16))
    return runs


def chosen(**filters: str) -> list[RunRecord]:
    """Select by texts, in which commas part alternatives."""
    given = {name: tuple(text.split("|")) for name, text in filters.items()}
    return select(records(), Selection(**given))


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({}, 12),
        ({"task": "mrpc"}, 5),
        ({"task": "mrpc|rte", "method": "full"}, 9),
        ({"method": "FULL"}, 9),
        ({"method": "full · lr 1e-3"}, 5),
        ({"method": "full lr 3e-4"}, 4),
        ({"method": "full lr 3e-4|bitfit"}, 5),
        ({"method": "custom [1]"}, 2),
        ({"method": SPEC}, 2),
        ({"model": "tiny-bert"}, 1),
        ({"model": "hub/tiny-bert"}, 1),
        ({"seed": "0", "status": "done"}, 6),
        ({"status": "failed"}, 1),
        ({"where": "train.learning_rate=1e-3"}, 8),
        ({"where": "train.learning_rate=0.001"}, 8),
        ({"where": "lr=1e-3", "method": "full"}, 5),
        ({"where": "precision=bf16"}, 12),
        ({"where": "limit=none"}, 12),
        ({"where": "train.epochs=3|lr=3e-4"}, 4),
    ],
)
def test_filters_choose_runs(filters: dict[str, str], count: int) -> None:
    """A run must pass every filter; rows are named as tables print them, with their failures."""
    assert len(chosen(**filters)) == count


def test_a_row_of_the_narrowed_table_is_found() -> None:
    """What `table --task mrpc` prints can be given back to it, beside names of the whole table."""
    runs = records()
    runs = [r for r in runs if r.task == "rte" or r.config["train"]["learning_rate"] == 1e-3]
    narrow = Selection(task=("mrpc",))
    assert next(row.name for row in scores(select(runs, narrow)).rows) == "full"
    for name in ("full", "full · lr 1e-3"):
        found = select(runs, Selection(task=("mrpc",), method=(name,)))
        assert {run.method for run in found} == {"full"}
        assert len(found) == 2


def test_every_name_that_tables_print_is_a_method() -> None:
    """Labels of rows, and the short forms of long ones, in every kind of table."""
    runs = [
        make_record(task, method, seed, config={"train.weight_decay": decay, "train.epochs": 3})
        for task, method in (("mrpc", "bitfit"), ("rte", SPEC), ("rte", "spafit"))
        for seed in (0, 1)
        for decay in (0.01, 0.123456789)
    ]
    assert names_mean_one_row(runs) == {2}


def test_trials_and_machines_share_the_numbers_of_the_scores() -> None:
    """`custom [2]` is one method in every table, and a machine stands after the short name."""
    other, unlike = SPEC.replace("r=8", "r=4"), SPEC.replace("r=8", "r=2")
    gpu = {"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3"}
    runs = [make_record("mrpc", method, 0) for method in (SPEC, other)]
    runs += [make_record("mrpc", other, 1, environment=gpu)]
    runs += [
        make_record("mrpc", method, 0, holdout=0.1, config={"train.learning_rate": rate})
        for method in (other, unlike)
        for rate in (1e-3, 1e-4)
    ]
    names_mean_one_row(runs)
    tables = {table.kind: table for table in build_tables(runs)}
    shorts = {row.name: row.label for row in tables["scores"].rows}
    cost = {row.name: row.label for row in tables["cost"].rows}
    trials = {row.name: row.label for row in tables["trials"].rows}
    assert trials == {other: shorts[other], unlike: "custom [3]"}
    gpu_row = f"{other} · NVIDIA H100 80GB HBM3"
    assert cost[gpu_row] == f"{shorts[other]} · NVIDIA H100 80GB HBM3"
    assert [run.seed for run in select(runs, Selection(method=(cost[gpu_row],)))] == [1]


def names_mean_one_row(runs: list[RunRecord]) -> set[int]:
    """Check that every label of every table is a filter and means one row; count its runs."""
    by_short: dict[str, set[str]] = {}
    counts = set()
    for table in build_tables(runs):
        for row in table.rows:
            if row.is_method:
                found = select(runs, Selection(method=(row.label,)))
                assert found == select(runs, Selection(method=(row.name,)))
                counts.add(len(found))
                by_short.setdefault(row.label, set()).add(row.name)
    assert all(len(names) == 1 for names in by_short.values()), by_short
    return counts


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"task": "mrcp"}, r"--task mrcp: no run has it; did you mean 'mrpc'\?"),
        ({"method": "loar"}, r"--method loar: no run has it; "),
        ({"method": "custom [2]"}, r"--method custom \[2\]: no run has it; "),
        ({"model": "bert"}, r"--model bert: no run has it; .*bert-large-cased"),
        ({"where": "lr"}, r"--where lr: write key=value"),
        ({"where": "train.lernin_rate=1"}, r"no such setting; did you mean 'train.learning_rate'"),
        ({"where": "train.epochs=7"}, r"--where train.epochs=7: no run has it; there is 3$"),
        ({"task": "mrpc", "method": "bitfit"}, r"no run passes --task mrpc --method bitfit"),
    ],
)
def test_what_no_run_has_is_said(filters: dict[str, str], message: str) -> None:
    """One message: the filter, and what there is."""
    with pytest.raises(UserError, match=message):
        chosen(**filters)


def test_every_command_has_the_same_filters(call: Cli, tmp_path: Path) -> None:
    """`table`, `compare`, `list runs`, `report`, `plot` and `runs rm` mean the same runs."""
    store = save(tmp_path / "results", *records())
    where = ("--results", store.root)
    flags = ("--task", "mrpc", "--where", "lr=1e-3")
    assert call("table", *where).code == 0
    whole = {path: path.read_text() for path in (store.root / "tables").iterdir()}
    (table, *_) = call("table", *where, *flags, "--json").json["tables"]
    assert [row["method"] for row in table["rows"]][:2] == ["full", SPEC]
    # the files are tables of all runs
    assert {path: path.read_text() for path in (store.root / "tables").iterdir()} == whole
    listed = call("list", "runs", *where, *flags, "--method", "full lr 1e-3", "--json").json["runs"]
    assert [(run["task"], run["method"], run["seed"]) for run in listed] == [
        ("mrpc", "full", 0),
        ("mrpc", "full", 1),
    ]
    (comparison,) = call("compare", "full", SPEC, *where, *flags, "--json").json["comparisons"]
    assert [task["task"] for pair in comparison["pairs"] for task in pair["tasks"]] == ["mrpc"]
    page = tmp_path / "report.html"
    assert call("report", *where, *flags, "--out", page).code == 0
    assert "MRPC" in page.read_text()
    assert "RTE" not in page.read_text()
    removed = call("runs", "rm", *where, *flags, "--method", "full", "--dry-run", "--json").json
    assert len(removed["would_remove"]) == 2
    for command in (["table"], ["compare", "full", "lora"], ["report"], ["plot"], ["list", "runs"]):
        assert "--task mrcp: no run has it" in call(*command, *where, "--task", "mrcp").error
    assert "`list runs`" in call("list", "tasks", "--task", "mrpc").error

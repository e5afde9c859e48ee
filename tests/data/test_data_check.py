"""`data verify` reads the data of every task and says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from spafit_bench.base.errors import UnreachableError
from spafit_bench.data.tasks import Task
from tests.conftest import Cli, write_data


def test_a_folder_of_several_tasks(call: Cli, data: Path) -> None:
    """Tasks with files are sound but not official; missing tasks are no damage."""
    answer = call("data", "verify", "--data", data, "--json")
    assert answer.code == 0, answer.err
    found = {each["task"]: each for each in answer.json["tasks"]}
    assert {name for name, each in found.items() if each["finding"] == "sound"} == {
        "mrpc",
        "cola",
        "stsb",
        "mnli",
    }
    assert found["rte"]["finding"] == "missing"
    assert found["mrpc"]["rows"] == {"train": 24, "validation": 10, "test": 10}
    assert sum(found["mrpc"]["labels"]["train"].values()) == 24
    assert found["stsb"]["labels"] == {}
    assert "train has 24 rows, official has 3668" in found["mrpc"]["problem"]


def test_damage_is_named_and_stops_nothing(call: Cli, tmp_path: Path) -> None:
    """A bad label is reported with file, row and column; other tasks are still read."""
    root = write_data(tmp_path / "glue", "mrpc", "cola")
    path = root / "mrpc" / "validation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["label"] = 7
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = call("data", "verify", "--data", root)
    assert answer.code == 2
    assert answer.err == ""
    lines = answer.out.splitlines()
    (problem,) = [line for line in lines if line.startswith("mrpc: ")]
    assert "validation.jsonl" in problem
    assert "label" in problem
    assert "7" in problem
    assert any(line.split()[:2] == ["cola", "sound"] for line in lines)


def test_a_lost_split_is_said(call: Cli, tmp_path: Path) -> None:
    """Train without dev is incomplete, not damaged; a missing test set is a note."""
    root = write_data(tmp_path / "glue", "mrpc", "cola")
    (root / "mrpc" / "validation.jsonl").unlink()
    (root / "cola" / "test.jsonl").unlink()
    answer = call("data", "verify", "--data", root)
    assert answer.code == 2
    assert "validation.csv or validation.jsonl is missing" in answer.out
    assert any(line.split()[:2] == ["mrpc", "incomplete"] for line in answer.out.splitlines())
    assert "cola: no test set (test)" in answer.out


def test_named_tasks_must_be_there(call: Cli, data: Path) -> None:
    """A missing task fails if it was named; if no task is there, it is an error."""
    answer = call("data", "verify", "--data", data, "--task", "mrpc,rte")
    assert answer.code == 2
    assert "missing" in answer.out
    assert "no files of rte" in call("data", "verify", "--data", data, "--task", "rte").error
    assert "no such data folder" in call("data", "verify", "--data", data / "none").error


def test_a_hub_that_does_not_answer_is_no_damage(
    call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is reported once, because it says nothing about the data."""
    asked = []

    def unreachable(task: Task, *_: object, **__: object) -> None:
        asked.append(task.name)
        raise UnreachableError("cannot fetch nyu-mll/glue")

    monkeypatch.setattr("spafit_bench.data.verify.load_task_data", unreachable)
    assert "cannot fetch" in call("data", "verify").error
    assert len(asked) == 1


def test_a_folder_of_one_task(call: Cli, data: Path, tmp_path: Path) -> None:
    """Only the user knows which task the files in the folder itself belong to."""
    shutil.copytree(data / "mrpc", tmp_path / "flat")
    message = call("data", "verify", "--data", tmp_path / "flat").error
    assert "--task" in message
    assert "mrpc" in message
    answer = call("data", "verify", "--data", tmp_path / "flat", "--task", "mrpc", "--json")
    assert answer.json["tasks"][0]["finding"] == "sound"


def test_a_class_without_examples(call: Cli, tmp_path: Path) -> None:
    """Such data is valid, but hardly anybody wants to train on it."""
    root = write_data(tmp_path / "glue", "mrpc")
    path = root / "mrpc" / "train.jsonl"
    rows = [json.loads(line) | {"label": 1} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = call("data", "verify", "--data", root)
    assert answer.code == 0
    expected = "mrpc: train has no example of not_equivalent: every label is equivalent"
    assert expected in answer.out


def test_rows_of_dev_that_are_also_in_train(call: Cli, tmp_path: Path) -> None:
    """They make scores look better than they are, so their number is said."""
    root = write_data(tmp_path / "glue", "mrpc")
    train, dev = (root / "mrpc" / f"{split}.jsonl" for split in ("train", "validation"))
    lines = dev.read_text().splitlines(keepends=True)
    train.write_text(train.read_text() + "".join(lines[:3]))
    answer = call("data", "verify", "--data", root)
    assert "of 10 rows of validation are also in train" in answer.out


def test_the_official_data_is_known(call: Cli, tmp_path: Path) -> None:
    """Only data with the known fingerprint is called official."""
    import pytest

    shared = Path(__file__).resolve().parents[3] / "shared" / "glue"
    if not (shared / "wnli").is_dir():
        pytest.skip("no copy of GLUE beside the repository")
    answer = call("data", "verify", "--data", shared, "--task", "wnli", "--json")
    assert answer.json["tasks"][0]["finding"] == "official"

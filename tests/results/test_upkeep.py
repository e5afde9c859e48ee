"""Removing runs and leftovers, and joining results folders."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from spafit_bench.base.errors import UserError
from spafit_bench.results import cleanup
from spafit_bench.results.cleanup import leftovers
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.merge import carry_out, plan_merge
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_files
from spafit_bench.results.store import Store
from tests.conftest import Cli
from tests.support.records import make_record


def folder_of(root: Path, *records: RunRecord) -> Store:
    """A results folder with these runs."""
    store = Store(root)
    for record in records:
        store.save(record, {"adapter.safetensors": record.run_id.encode()})
    return store


def names(store: Store) -> list[str]:
    """The runs that are there, by their records and by results.csv."""
    found = [record.run_id for record in store.records()]
    rows = (store.root / "results.csv").read_text().splitlines()[1:]
    assert len(rows) == len(found)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two methods, two tasks, two seeds; one failed."""
    records = [
        make_record(task, method, seed)
        for task in ("mrpc", "cola")
        for method in ("lora", "full")
        for seed in (0, 1)
    ]
    records[0] = records[0].model_copy(update={"status": "failed", "metrics": {}})
    return folder_of(tmp_path / "results", *records)


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["--task", "mrpc"], 4),
        (["--task", "mrpc,cola", "--method", "full", "--seed", "1"], 2),
        (["--task", "mrpc", "--task", "cola", "--method", "full", "--seed", "1"], 2),
        (["--status", "failed"], 1),
        (["mrpc-lora-0"], 1),
        (["mrpc-lora-0", "mrpc-lora-1", "--status", "done"], 1),
    ],
)
def test_chosen_runs_go(call: Cli, store: Store, arguments: list[str], gone: int) -> None:
    """By name and by filter; a dry run says the same and removes nothing; the table follows."""
    before = names(store)
    dry = call("runs", "rm", *arguments, "--dry-run")
    assert (dry.code, names(store)) == (0, before)
    assert f"{gone} runs would be removed" in dry.out
    answer = call("runs", "rm", *arguments, "--json")
    assert answer.code == 0, answer.err
    removed = [Path(path).name for path in answer.json["removed"]]
    assert len(removed) == gone
    assert sorted(removed + names(store)) == sorted(before)
    assert {path.name[0] for path in store.runs.iterdir()} <= {"m", "c"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the runs"),
        (["nothing"], "no run 'nothing'"),
        (["mrpc"], "could be any of 4 runs"),
        (["--status", "broken"], "no run has it; choices: done, failed"),
        (["--task", "rte"], "choices: cola, mrpc"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    call: Cli, store: Store, arguments: list[str], message: str
) -> None:
    """Nothing is removed."""
    assert message in call("runs", "rm", *arguments).error
    assert len(names(store)) == 8


def test_a_terminal_is_asked(call: Cli, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """No keeps everything; --yes does not ask."""
    asked: list[str] = []
    from spafit_bench.cli import upkeep

    monkeypatch.setattr("sys.stdin", type("Tty", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(
        upkeep.sys, "stderr", type("Tty", (), {"isatty": lambda self: True})(), raising=False
    )
    monkeypatch.setattr(upkeep.typer, "confirm", lambda text, err: asked.append(text))
    assert not upkeep._ask("Remove 8 runs?", yes=False)
    assert upkeep._ask("Remove 8 runs?", yes=True)
    assert asked == ["Remove 8 runs?"]


def test_a_run_under_way_is_not_removed(call: Cli, store: Store) -> None:
    """Whoever has it is named."""
    run_id = names(store)[0]
    with RunLocks(store.root) as locks:
        assert locks.acquire(run_id) is not None
        assert f"process {os.getpid()}" in call("runs", "rm", run_id).error
        assert leftovers(store, ()) == []
    assert run_id in names(store)


def test_leftovers_are_found_and_go(
    call: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each kind one; what may still be of use stays."""
    done, other = make_record("cola", "lora", 0), make_record("cola", "full", 0)
    for path in (store.root / "claims" / done.run_id, store.root / "locks"):
        path.mkdir(parents=True)
    (store.root / "locks" / done.run_id).touch()  # of a process that was killed
    twin = done.model_copy(
        update={
            "run_id": "twin",
            "status": "failed",
            "metrics": {},
            "config": done.config | {"precision": "fp32"},
        }
    )
    store.save(twin, {})
    other_precision = done.environment.model_copy(update={"precision": "fp16"})
    store.save(changed(twin, run_id="unlike", environment=other_precision), {})
    for run_id in (done.run_id, "unrecorded", "old", "bad"):
        (store.root / "unfinished").mkdir(exist_ok=True)
        store.keep_snapshot(run_id, b"state")
    store.set_aside(store.root / "unfinished" / "bad.snapshot", "damaged")
    hours = time.time() - 2 * 3600
    for name in (".unfinished-old", ".unfinished-new"):
        (store.runs / name).mkdir()
        (store.runs / name / "record.json").write_text("{")
    os.utime(store.runs / ".unfinished-old", (hours, hours))
    long_ago = time.time() - 40 * 24 * 3600
    os.utime(store.root / "unfinished" / "old.snapshot", (long_ago, long_ago))
    expected = {
        "claims", "runs/.unfinished-old", "runs/twin",
        f"unfinished/{done.run_id}.snapshot", "set-aside/bad.snapshot", "unfinished/old.snapshot",
    }  # fmt: skip
    dry = call("runs", "gc", "--dry-run", "--json").json
    assert set(dry["would_remove"]) == expected
    assert set(call("runs", "gc", "--json").json["removed"]) == expected
    assert not any((store.root / path).exists() for path in expected)
    assert list((store.root / "locks").iterdir()) == []
    assert store.snapshot("unrecorded") == b"state"
    assert (store.runs / ".unfinished-new").is_dir()
    assert {done.run_id, other.run_id, "unlike"} <= set(names(store))
    assert "no leftovers to remove" in call("runs", "gc").out


def test_a_run_that_was_locked_meanwhile_stays(store: Store) -> None:
    """Between the look and the removal another process may have begun with the run."""
    (store.root / "unfinished").mkdir()
    store.keep_snapshot("somebody", b"state")
    with RunLocks(store.root) as locks:
        assert locks.acquire("somebody") is not None
        found = [cleanup.Leftover(store.snapshot_path("somebody"), "old", "somebody")]
        assert cleanup.remove(store, found) == found
    assert store.snapshot("somebody") == b"state"


def test_what_changed_while_the_user_was_asked_stays(
    call: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed run that finished meanwhile, and one that a process has by now; it is said."""
    finished, taken, failed = (make_record("cola", "lora", seed) for seed in (0, 1, 2))
    for record in (finished, taken, failed):
        store.save(changed(record, status="failed", metrics={}), {})
    from spafit_bench.cli import upkeep

    with RunLocks(store.root) as locks:

        def meanwhile(question: str, *, yes: bool) -> bool:
            store.save(finished, {})
            assert locks.acquire(taken.run_id) is not None
            return True

        monkeypatch.setattr(upkeep, "_ask", meanwhile)
        answer = call("runs", "rm", "--status", "failed", "--task", "cola", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["removed"] == [f"runs/{failed.run_id}"]
    assert answer.json["kept"] == [f"runs/{finished.run_id}", f"runs/{taken.run_id}"]
    assert {finished.run_id, taken.run_id} <= set(names(store))
    assert store.find(finished.run_id) == finished


def test_json_says_what_was_done(call: Cli, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, where there was nothing to do or the user said no."""
    assert call("runs", "gc", "--json").json == {"removed": [], "bytes": 0}
    from spafit_bench.cli import upkeep

    monkeypatch.setattr(upkeep, "_ask", lambda question, *, yes: False)
    assert call("runs", "rm", "mrpc-full-0", "--json").json == {"removed": [], "bytes": 0}
    assert len(names(store)) == 8


def test_a_run_of_another_folder_is_not_removed(call: Cli, store: Store, tmp_path: Path) -> None:
    """Nor the one of the same name in this folder."""
    other = folder_of(tmp_path / "other", *store.records())
    path = other.runs / names(store)[0]
    assert "is no run of results: name its results folder" in call("runs", "rm", path).error
    assert len(names(store)) == 8
    assert call("runs", "rm", path, "--results", "other").code == 0
    assert len(names(other)) == 7


def test_a_damaged_run_is_set_aside_before_another_takes_its_place(
    call: Cli, tmp_path: Path
) -> None:
    """Nothing is deleted: what is left of it may be all that somebody has."""
    folder_of(tmp_path / "one", A)
    record = folder_of(tmp_path / "all", A).runs / A.run_id / "record.json"
    record.write_text("{}")
    answer = call("merge", "one", "--results", "all")
    assert answer.code == 0, answer.err
    assert "set aside as" in answer.err
    assert Store(tmp_path / "all").records() == [A]
    aside = tmp_path / "all" / "set-aside" / A.run_id / A.run_id
    assert {path.name for path in aside.iterdir()} >= {"record.json", "adapter.safetensors"}


def test_a_run_whose_files_are_damaged_is_not_identical(call: Cli, tmp_path: Path) -> None:
    """A sound copy takes the place of a damaged one; a damaged copy is refused."""
    folder_of(tmp_path / "one", A)
    adapter = folder_of(tmp_path / "all", A).runs / A.run_id / "adapter.safetensors"
    adapter.write_bytes(b"altered")
    assert f"{A.run_id}/adapter.safetensors" in call("merge", "all", "--results", "one").error
    answer = call("merge", "one", "--results", "all", "--json")
    assert answer.json == {"merged": [A.run_id], "identical": 0, "conflicts": []}
    assert adapter.read_bytes() == A.run_id.encode()
    aside = tmp_path / "all" / "set-aside" / A.run_id / A.run_id
    assert (aside / "adapter.safetensors").read_bytes() == b"altered"


def changed(record: RunRecord, **fields: Any) -> RunRecord:
    """The same run with other facts."""
    return record.model_copy(update=fields)


A, B, C = (make_record("mrpc", "lora", seed) for seed in range(3))
OTHER = changed(B, metrics={"validation": {"f1": 0.1, "accuracy": 0.1}})


def test_shards_become_one(call: Cli, tmp_path: Path) -> None:
    """Runs of every folder once, with their files; times may differ; twice is the same as once."""
    folder_of(tmp_path / "one", A, B)
    folder_of(tmp_path / "two", changed(B, wall_time_s=99.0), C)
    dest = tmp_path / "all"
    dry = call("merge", "one", "two", "--results", dest, "--dry-run", "--json")
    assert dry.json["would_merge"] == [r.run_id for r in (A, B, C)]
    assert not dest.exists()
    answer = call("merge", "one", "two", "--results", dest, "--json")
    assert answer.json == {
        "merged": [r.run_id for r in (A, B, C)], "identical": 1, "conflicts": [],
    }  # fmt: skip
    store = Store(dest)
    assert names(store) == sorted(r.run_id for r in (A, B, C))
    assert read_files(store.runs / C.run_id) == {"adapter.safetensors": C.run_id.encode()}
    assert store.find(B.run_id) == B
    again = call("merge", "one", "two", "--results", dest)
    assert "0 runs merged" in again.out
    assert "4 are there already" in again.out


def test_a_finished_run_stands_in_for_a_failed_one(tmp_path: Path) -> None:
    """Whatever the order of the folders."""
    failed = changed(A, status="failed", metrics={}, evaluations=())
    folder_of(tmp_path / "bad", failed)
    folder_of(tmp_path / "good", A)
    for number, order in enumerate((("bad", "good"), ("good", "bad"))):
        dest = tmp_path / f"dest{number}"
        carry_out(plan_merge([tmp_path / name for name in order], dest), keep_apart=False)
        assert Store(dest).records() == [A]


def test_conflicts_are_named_and_nothing_is_merged(call: Cli, tmp_path: Path) -> None:
    """Or they are kept apart, in results folders that can be read like any other."""
    folder_of(tmp_path / "all", B)
    folder_of(tmp_path / "two", A, OTHER)
    third = changed(B, metrics={"validation": {"f1": 0.2, "accuracy": 0.2}})
    folder_of(tmp_path / "three", third)
    message = call("merge", "two", "three", "--results", "all").error
    assert f"{B.run_id} in two" in message
    assert "nothing was merged" in message
    assert names(Store(tmp_path / "all")) == [B.run_id]
    rehearsal = call("merge", "two", "three", "--results", "all", "--dry-run")
    assert "nothing is merged" in rehearsal.out
    told = call("merge", "two", "three", "--results", "all", "--dry-run", "--json").json
    assert (told["would_merge"], len(told["conflicts"])) == ([], 2)
    apart = call("merge", "two", "three", "--results", "all", "--dry-run", "--keep-apart")
    assert "1 runs would be merged" in apart.out
    for _ in range(2):
        answer = call("merge", "two", "three", "--results", "all", "--keep-apart")
        assert answer.code == 0, answer.err
        assert answer.out.count("conflict: ") == 2
    assert Store(tmp_path / "all").find(B.run_id) == B
    assert Store(tmp_path / "all" / "conflicts" / "1").records() == [OTHER]
    assert Store(tmp_path / "all" / "conflicts" / "2").records() == [third]
    assert not (tmp_path / "all" / "conflicts" / "3").exists()
    assert json.loads(call("list", "runs", "--results", "all/conflicts/1", "--json").out)["runs"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["dest"], "is the destination itself"),
        (["missing"], "does not exist"),
        (["empty"], "no runs here"),
    ],
)
def test_what_cannot_be_merged(tmp_path: Path, sources: list[str], message: str) -> None:
    """A mistake is one message, before anything is written."""
    folder_of(tmp_path / "dest", A)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        plan_merge([tmp_path / name for name in sources], tmp_path / "dest")


def test_a_merge_that_was_killed_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash at any run, every run there is whole, and the same command finishes."""
    folder_of(tmp_path / "one", A, B, C)
    real, calls = Path.rename, 0

    class Crash(BaseException):
        """Nobody catches it."""

    def crashing(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Crash
        return real(self, target)

    dest = tmp_path / "all"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crashing)
        with pytest.raises(Crash):
            carry_out(plan_merge([tmp_path / "one"], dest), keep_apart=False)
    assert Store(dest).records() == [A]
    carry_out(plan_merge([tmp_path / "one"], dest), keep_apart=False)
    assert names(Store(dest)) == sorted(r.run_id for r in (A, B, C))


@pytest.mark.parametrize("name", ["adapter.safetensors", "record.json"])
def test_a_damaged_run_is_not_merged(tmp_path: Path, name: str) -> None:
    """It is named, and the other runs wait: a merge is of what was checked."""
    source = folder_of(tmp_path / "one", A, B)
    (source.runs / B.run_id / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{B.run_id}/{name}"):
        carry_out(plan_merge([source.root], tmp_path / "all"), keep_apart=False)
    assert not (tmp_path / "all").exists()

"""The results folder: whole runs or none, and a table that can always be made again."""

from __future__ import annotations

import csv
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spafit_bench.base.durable import replacing
from spafit_bench.base.errors import UserError
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import prediction_rows
from spafit_bench.results.store import Store
from tests.support.records import make_record


class Crash(BaseException):
    """The machine goes down here: no handler of the store may catch it."""


def record(seed: int = 0, **fields: Any) -> RunRecord:
    """A finished run."""
    return make_record(seed=seed, **fields)


def rows(store: Store) -> list[dict[str, str]]:
    """The rows of results.csv."""
    with (store.root / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty results folder that does not exist yet."""
    return Store(tmp_path / "deep" / "results")


def test_a_run_comes_back_as_it_was_saved(store: Store) -> None:
    """Record and files; nothing else is left in the folder."""
    folder = store.save(record(), {"adapter.safetensors": b"weights"})
    assert store.find(record().run_id) == record()
    assert store.records() == [record()]
    assert (folder / "adapter.safetensors").read_bytes() == b"weights"
    assert [path.name for path in store.runs.iterdir()] == [record().run_id]
    assert store.find("nothing") is None
    assert store.find("x" * 400) is None


def test_a_run_replaces_an_earlier_one_whole(store: Store) -> None:
    """No file of the earlier run stays beside the new ones."""
    earlier = record().model_copy(update={"status": "diverged"})
    store.save(earlier, {"old.bin": b"old"})
    folder = store.save(record(), {"new.bin": b"new"})
    assert {path.name for path in folder.iterdir()} == {"record.json", "new.bin", "SHA256SUMS"}
    assert [path.name for path in store.runs.iterdir()] == [record().run_id]


LAST = 20
"""More calls than saving makes: no crash."""


@pytest.mark.parametrize("after", range(LAST + 1))
def test_a_crash_at_any_call_leaves_the_old_or_the_new_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Every rename, sync and removal is a place to crash; the next reader finds one whole run."""
    old, new = record(wall_time_s=1.0), record(wall_time_s=2.0).model_copy()
    new = new.model_copy(update={"run_id": old.run_id})
    store.save(old, {"a.bin": b"old"})
    calls = 0

    def crashing(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise Crash
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for owner, name in (
            (Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"),
            (Path, "chmod"), (os, "fsync"), (__import__("shutil"), "rmtree"),
        ):  # fmt: skip
            patch.setattr(owner, name, crashing(getattr(owner, name)))
        try:
            store.save(new, {"a.bin": b"new"})
            crashed = False
        except Crash:
            crashed = True
    assert crashed == (after < calls), "a crash is not to be swallowed"
    assert crashed or after > 8
    assert not crashed or after < LAST
    found = store.find(old.run_id)
    assert found in (old, new)
    content = (store.runs / old.run_id / "a.bin").read_bytes()
    assert content == (b"old" if found == old else b"new")
    assert store.records() == [found]
    store.rebuild_csv()
    assert float(rows(store)[0]["wall_time_s"]) == found.wall_time_s
    store.save(new, {"a.bin": b"new"})
    assert store.find(old.run_id) == new


def test_results_csv_is_made_again_from_the_records(store: Store) -> None:
    """Deleted or damaged, it comes back the same; a removed run leaves it."""
    for seed in range(3):
        store.save(record(seed), {})
    path = store.root / "results.csv"
    before = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_text("nonsense")):
        damage()
        assert store.rebuild_csv() == path
        assert path.read_bytes() == before
    assert [row["seed"] for row in rows(store)] == ["0", "1", "2"]
    assert {row["status"] for row in rows(store)} == {"done"}
    assert rows(store)[0]["metrics.validation.f1"] == "0.8"
    (store.runs / record(1).run_id).rename(store.root / "elsewhere")
    store.rebuild_csv()
    assert [row["seed"] for row in rows(store)] == ["0", "2"]


def _save_at_once(store: Store, worker: int) -> None:
    for seed in range(8):
        store.save(make_record(seed=100 * worker + seed), {"a.bin": bytes(1000)})
        store.save(make_record(seed=7), {"a.bin": bytes([worker]) * 1000})


def test_processes_that_save_at_once(store: Store) -> None:
    """Runs of their own and one that all of them write: every record and row is there, whole."""
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_save_at_once, args=(store, number)) for number in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=100)
        assert worker.exitcode == 0
    assert len(store.records()) == len(rows(store)) == 25
    assert {path.name[0] for path in store.runs.iterdir()} == {"m"}
    shared = (store.runs / make_record(seed=7).run_id / "a.bin").read_bytes()
    assert len(shared) == 1000
    assert len(set(shared)) == 1


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(store: Store, umask: int) -> None:
    """A shared results folder is as readable as its users' umask says."""
    before = os.umask(umask)
    try:
        folder = store.save(record(), {"a.bin": b""})
    finally:
        os.umask(before)
    for path in (folder / "a.bin", folder / "record.json", store.root / "results.csv"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path.name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask


def test_what_cannot_be_written_is_said(store: Store, tmp_path: Path) -> None:
    """A file where the folder should be: before a run, and after it."""
    (tmp_path / "deep").write_text("in the way")
    with pytest.raises(UserError, match=r"--results .*results: cannot be written \(Not a dir"):
        store.check_writable()
    with pytest.raises(UserError, match="cannot be written"):
        store.save(record(), {})


def test_checking_leaves_no_file(store: Store) -> None:
    """Only the folder itself."""
    store.check_writable()
    assert list(store.runs.iterdir()) == []


def test_text_that_no_encoding_has(store: Store) -> None:
    """Undecodable bytes of a path survive in the record; the CSV stays readable UTF-8."""
    odd = record().model_copy(update={"reason": "d\udcffata \u00e4"})
    store.save(odd, {})
    assert store.records() == [odd]
    assert b"\\udcff" in (store.root / "results.csv").read_bytes()
    assert "ä" in (store.root / "results.csv").read_text(encoding="utf-8")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """A failing writer leaves the earlier content and no other file."""
    path = tmp_path / "table.md"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise Crash

    with pytest.raises(Crash):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_predictions(tmp_path: Path) -> None:
    """One row per example; test labels are null; logits as given."""
    logits = {"validation": np.eye(2, dtype=np.float32), "test": np.ones((3, 2), np.float32)}
    predictions = {"validation": np.array([0, 1]), "test": np.zeros(3, np.int64)}
    (tmp_path / "p.parquet").write_bytes(
        prediction_rows(logits, predictions, {"validation": np.array([1, 1])})
    )
    table = pd.read_parquet(tmp_path / "p.parquet")
    assert table["split"].tolist() == ["validation"] * 2 + ["test"] * 3
    assert table["index"].tolist() == [0, 1, 0, 1, 2]
    assert table["label"].tolist()[:2] == [1, 1]
    assert table["label"][2:].isna().all()
    assert np.array_equal(np.stack(list(table["logits"][:2])), logits["validation"])


def test_what_a_killed_process_left_is_removed_by_the_runs_next_owner(store: Store) -> None:
    """Half-written folders, temporary files and a snapshot of this run, and of no other."""
    run_id, other = record(0).run_id, record(1).run_id
    store.save(record(2), {})
    for name in (run_id, other):
        (store.runs / f".unfinished-{name}-abcd1234").mkdir()
        store.keep_snapshot(name, b"state")
        (store.root / "unfinished" / f".{name}.snapshot-abcd1234").write_bytes(b"half")
    (store.root / ".results.csv-abcd1234").write_text("half")
    store.remove_litter(run_id)
    left = {path.name for path in (*store.runs.glob(".*"), *(store.root / "unfinished").glob(".*"))}
    assert left == {f".unfinished-{other}-abcd1234", f".{other}.snapshot-abcd1234"}
    assert store.snapshot(run_id) == b"state"
    store.rebuild_csv()
    assert not (store.root / ".results.csv-abcd1234").exists()


def test_content_is_on_the_disk_before_its_name_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure at any moment leaves no name that stands for half a file."""
    synced: list[Path] = []
    renamed: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def note(handle: int) -> None:
        fsync(handle)
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())

    def checked(move: Any) -> Any:
        def call(self: Path, target: Path) -> Path:
            if not self.name.startswith(".results.csv"):  # it can always be made again
                inside = [*self.iterdir(), self] if self.is_dir() else [self]
                assert {p.resolve() for p in inside} <= set(synced)
                renamed.append(target.name)
            return move(self, target)

        return call

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to name what is synced")
    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", checked(rename))
    monkeypatch.setattr(Path, "replace", checked(replace))
    folder = store.save(record(), {"adapter.safetensors": b"weights"})
    assert store.runs in synced[-1:], "the name itself, last"
    assert {store.root, store.root.parent, store.root.parent.parent} <= set(synced)
    store.keep_snapshot("run", b"state")
    assert synced[-1] == store.root / "unfinished"
    assert renamed == [folder.name, "run.snapshot"]

"""Results folders of others: from somebody else, of a group, on a device that fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spafit_bench.analysis.compare import _read_answers
from spafit_bench.base.errors import DamagedError, UnreadableError, UserError
from spafit_bench.data.custom_tasks import TaskDefinition
from spafit_bench.export.model_card import _command
from spafit_bench.results.cleanup import leftovers, remove
from spafit_bench.results.locks import RunLocks
from spafit_bench.results.merge import plan_merge
from spafit_bench.results.run_folder import prediction_rows
from spafit_bench.results.store import Store
from tests.conftest import Cli
from tests.support.records import make_record, seal

GOOD, BAD = make_record(seed=0), make_record(seed=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A results folder with two runs."""
    store = Store(tmp_path / "results")
    for record in (GOOD, BAD):
        store.save(record, {"adapter.safetensors": b"weights"})
    return store


# Only plain files and folders are read or written


def _link_to_file(folder: Path, outside: Path) -> None:
    (folder / "adapter.safetensors").unlink()
    (folder / "adapter.safetensors").symlink_to(outside)


def _link_to_record(folder: Path, outside: Path) -> None:
    (folder / "record.json").rename(outside.with_name("record.json"))
    (folder / "record.json").symlink_to(outside.with_name("record.json"))


def _link_to_folder(folder: Path, outside: Path) -> None:
    folder.rename(outside.with_name(folder.name))
    folder.symlink_to(outside.with_name(folder.name))


def _pipe(folder: Path, outside: Path) -> None:
    (folder / "record.json").unlink()
    os.mkfifo(folder / "record.json")


@pytest.mark.parametrize("spoil", [_link_to_file, _link_to_record, _link_to_folder, _pipe])
def test_only_plain_files_of_a_run_are_read(
    call: Cli, store: Store, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    """Nothing outside is read or copied, and a named pipe blocks nobody."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"weights")
    spoil(store.runs / BAD.run_id, secret)
    answer = call("list", "runs", "--json")
    assert [run["run_id"] for run in answer.json["runs"]] == [GOOD.run_id]
    assert "is not a plain file" in answer.err or "is a symbolic link" in answer.err
    with pytest.raises(DamagedError):
        store.find(BAD.run_id)
    with pytest.raises(UserError, match=BAD.run_id):
        plan_merge([store.root], tmp_path / "all")
    store.set_damaged_aside(lambda _: None)
    store.save(BAD, {})
    assert store.find(BAD.run_id) == BAD
    assert secret.read_bytes() == b"weights"
    assert [path.name for path in store.root.rglob(".*")] == [".lock"]


@pytest.mark.parametrize(
    "name",
    ["runs", "tables", "unfinished", "set-aside", "locks", ".lock", "conflicts/1", "tensorboard/x"],
)
def test_no_folder_of_ours_may_be_a_link(
    call: Cli, store: Store, tmp_path: Path, name: str
) -> None:
    """Whoever gave us the folder does not choose where we write."""
    outside = tmp_path / "outside"
    if (store.root / name).exists():
        (store.root / name).rename(outside)
    else:
        outside.mkdir()
        (store.root / name).parent.mkdir(exist_ok=True)
    (store.root / name).symlink_to(outside)
    before = [path.name for path in outside.rglob("*")]
    for command in (
        ("table",),
        ("list", "runs"),
        ("runs", "gc"),
        ("run", "--task", "mrpc", "--method", "lora", "--preset", "smoke"),
    ):
        assert f"results/{name}: is a symbolic link" in call(*command).error
    assert [path.name for path in outside.rglob("*")] == before


def test_a_results_folder_may_be_a_link_itself(call: Cli, store: Store, tmp_path: Path) -> None:
    """The user named it."""
    (tmp_path / "link").symlink_to(store.root)
    assert len(call("list", "runs", "--results", "link", "--json").json["runs"]) == 2


@pytest.mark.parametrize("name", ["record.json", "SHA256SUMS", "adapter.safetensors"])
def test_a_run_named_by_its_folder_does_not_block(call: Cli, store: Store, name: str) -> None:
    """A named pipe in a folder from somebody else is one message."""
    folder = store.runs / BAD.run_id
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert name in call("export", folder, "--to", "out").error or name == "record.json"


def test_a_command_that_no_shell_would_take() -> None:
    """A record that was edited by hand is still exported."""
    assert _command("it's") == "it's"
    assert _command("/opt/bin/spafit-bench run --task mrpc") == "spafit-bench run --task mrpc"


# What cannot be read now is not damaged


def _failing(monkeypatch: pytest.MonkeyPatch, method: str, name: str, number: int) -> None:
    """Let an operation on files of this name fail."""
    real = getattr(Path, method)

    def fails(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == name:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, *args, **options)

    monkeypatch.setattr(Path, method, fails)


@pytest.mark.parametrize("name", ["record.json", "SHA256SUMS"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_record_that_cannot_be_read_now_is_left_as_it_is(
    store: Store, caplog: pytest.LogCaptureFixture, name: str, number: int
) -> None:
    """It may be sound: it is named, is not set aside, and stops no table of the others."""
    with pytest.MonkeyPatch.context() as patch:
        method = "read_bytes" if name == "record.json" else "read_text"
        _failing(patch, method, name, number)
        assert store.records() == []
        assert f"{name} cannot be read ({os.strerror(number)})" in caplog.text
        store.set_damaged_aside(pytest.fail)
        with pytest.raises(UnreadableError, match="left as it is"):
            store.examine(GOOD.run_id, pytest.fail)
    assert store.records() == [GOOD, BAD]


def as_user(user: int, group: int, work: Callable[[], object]) -> str:
    """Return what `work` returns in a fork that belongs to another user of a group."""
    if os.getuid() != 0:
        pytest.skip("needs to become another user")
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.umask(0o002)
            os.setgroups([group])
            os.setgid(user)
            os.setuid(user)
            answer = str(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def open_to_all(tmp_path: Path) -> None:
    """Let other users into a test's folder."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)


def test_a_table_leaves_out_a_record_of_another_user(store: Store, tmp_path: Path) -> None:
    """And `runs` without permission is not `no runs here`."""
    open_to_all(tmp_path)
    (store.runs / BAD.run_id / "record.json").chmod(0o600)
    assert as_user(54322, 54322, lambda: store.records() == [GOOD]) == "True"
    seen = as_user(54322, 54322, lambda: store.survey()[1])
    assert f"{BAD.run_id}/record.json cannot be read (Permission denied)" in seen
    store.runs.chmod(0o700)
    seen = as_user(54322, 54322, store.records)
    assert seen.startswith("UserError")
    assert "results/runs: cannot be read (Permission denied)" in seen


def test_predictions_of_another_user_stop_no_comparison(store: Store, tmp_path: Path) -> None:
    """They count as missing; the other tests are made."""
    open_to_all(tmp_path)
    labels = {"validation": np.array([0, 1])}
    predictions = prediction_rows({"validation": np.eye(2)}, labels, labels)
    folder = store.save(GOOD, {"predictions.parquet": predictions})
    (folder / "predictions.parquet").chmod(0o600)
    path = folder / "predictions.parquet"
    seen = as_user(54322, 54322, lambda: _read_answers(path, GOOD, GOOD.task_facts))
    assert seen == "predictions.parquet cannot be read"


def test_a_snapshot_that_cannot_be_read_now_is_kept(store: Store) -> None:
    """The same command resumes once the device answers."""
    store.keep_snapshot("run", b"state")
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, "read_bytes", "run.snapshot", errno.EIO)
        with pytest.raises(UserError, match=r"cannot be read \(Input/output error\); once it"):
            store.snapshot("run")
    assert store.snapshot("run") == b"state"


def test_a_snapshot_that_cannot_be_removed_costs_no_finished_run(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the next command removes it."""
    store.keep_snapshot("run", b"state")
    (store.root / "unfinished" / ".run.snapshot-abcd1234").touch()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("run.snapshot", ".run.snapshot-abcd1234"):
            _failing(patch, "unlink", name, errno.EIO)
        store.remove_litter("run")
        store.drop_snapshot("run")
    assert "run.snapshot: cannot be removed (Input/output error)" in caplog.text
    store.drop_snapshot("run")
    assert store.snapshot("run") is None


def test_a_run_on_a_device_that_fails(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    """One message, nothing finished is lost, and the same command works once the device does."""
    arguments = ["run", "--task", "mrpc", "--method", "lora", "--precision", "fp32", "--json"]
    arguments += ["--model", str(checkpoint), "--data", str(data), "--epochs", "1"]
    run_id = call(*arguments).json["run_id"]
    store = Store(tmp_path / "results")
    store.keep_snapshot(run_id, b"state")
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, "unlink", f"{run_id}.snapshot", errno.EIO)
        answer = call(*arguments)
        assert (answer.code, answer.json["status"]) == (0, "done")
        assert "cannot be removed (Input/output error)" in answer.err
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, "read_bytes", "record.json", errno.EIO)
        assert "record.json cannot be read (Input/output error)" in call(*arguments).err
    assert call(*arguments).code == 0
    assert not store.has_snapshot(run_id)
    store.keep_snapshot(run_id, b"state")
    shutil.rmtree(store.runs / run_id)
    with pytest.MonkeyPatch.context() as patch:
        _failing(patch, "read_bytes", f"{run_id}.snapshot", errno.EIO)
        assert "run the same command to resume" in call(*arguments).err
    assert store.snapshot(run_id) == b"state"
    assert not (store.root / "set-aside").exists()


# No NaN in JSON


def test_numbers_that_json_does_not_have(store: Store) -> None:
    """They are null in the record, and NaN again when it is read."""
    nan, inf = float("nan"), float("inf")
    odd = GOOD.model_copy(
        update={
            "run_id": "odd",
            "score": nan,
            "metrics": {"validation": {"f1": nan, "accuracy": 0.5}},
            "config": {"train": {"warmup": inf, "list": [-inf]}},
        }
    )
    folder = store.save(odd, {})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    body = json.loads((folder / "record.json").read_text(), parse_constant=refuse)
    assert body["metrics"] == {"validation": {"f1": None, "accuracy": 0.5}}
    assert body["config"] == {"train": {"warmup": None, "list": [None]}}
    again = store.find("odd")
    assert again is not None
    assert again.score is None
    assert str(again.metrics["validation"]) == "{'f1': nan, 'accuracy': 0.5}"
    text = json.dumps({**body, "metrics": {"validation": {"f1": nan}}})
    (folder / "record.json").write_text(text)
    seal(folder)
    assert store.find("odd") is not None, "older records have NaN"


def test_a_record_of_a_task_with_an_infinite_range(store: Store, call: Cli) -> None:
    """Older versions took such a range: the record loads, and every JSON of it is standard."""
    definition = TaskDefinition.model_validate(
        {"name": "length", "text": ["text"], "range": [-1.0, 1.0], "metrics": ["pearson"]}
    )
    run = make_record("stsb").model_copy(
        update={"task": "length", "run_id": "length-run", "task_definition": definition}
    )
    folder = store.save(run, {})
    body = json.loads((folder / "record.json").read_text())
    body["task_definition"]["range"] = [float("-inf"), float("inf")]
    (folder / "record.json").write_text(json.dumps(body))
    seal(folder)
    assert "Infinity" in (folder / "record.json").read_text()
    loaded = store.find("length-run")
    assert loaded is not None
    assert loaded.task_facts.label_range == (float("-inf"), float("inf"))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for command in (("show", "length-run"), ("table",), ("list", "runs")):
        answer = call(*command, "--results", store.root, "--json")
        assert answer.code == 0, answer.err
        json.loads(answer.out, parse_constant=refuse)


# A group shares a folder


def _use(store: Store) -> str:
    """Do everything that changes a results folder; end without releasing a lock."""
    store.check_writable()
    locks = RunLocks(store.root)
    locks.check()
    lock = locks.acquire(GOOD.run_id)
    assert lock is not None
    with lock:
        store.remove_litter(GOOD.run_id)
        store.save(GOOD, {"adapter.safetensors": b"weights"})
        store.keep_snapshot(GOOD.run_id, b"state")
    (store.runs / GOOD.run_id / "record.json").write_text("{}")
    store.set_damaged_aside(lambda _: None)
    store.save(GOOD, {"adapter.safetensors": b"weights"})
    assert remove(store, leftovers(store, ())) == []
    store.keep_snapshot(GOOD.run_id, b"state")
    assert locks.acquire("killed") is not None
    return "done"


def test_two_users_of_a_group_share_a_folder(tmp_path: Path) -> None:
    """With setgid and umask 002 each replaces, cleans and takes over what the other made."""
    open_to_all(tmp_path)
    store, group = Store(tmp_path / "results"), 54321
    store.root.mkdir()
    os.chown(store.root, 0, group)
    store.root.chmod(0o2775)
    for user in (54322, 54323, 54322):
        assert as_user(user, group, partial(_use, store)) == "done"
    for path in store.root.rglob("*"):
        assert path.stat().st_gid == group, path
        assert stat.S_IMODE(path.stat().st_mode) & 0o060 == 0o060, path

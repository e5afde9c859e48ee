"""Damage is found, named, set aside and made good; nothing of it is believed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from spafit_bench.analysis.references import read_references
from spafit_bench.base import checksums
from spafit_bench.base.checksums import SUMS
from spafit_bench.base.errors import DamagedError, UserError
from spafit_bench.base.yaml_files import read_mapping
from spafit_bench.export.restore import Base, restore
from spafit_bench.results.lookup import find_run
from spafit_bench.results.record import SCHEMA_VERSION, RunRecord
from spafit_bench.results.run_folder import read_files, read_record, read_rows
from spafit_bench.results.store import Store
from spafit_bench.training.snapshot import DamagedSnapshot, Snapshot
from tests.conftest import REPOSITORY, Answer, Cli
from tests.support.records import make_record, seal, write_run

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A results folder with two runs."""
    store = Store(tmp_path / "results")
    store.save(make_record(seed=0), {"adapter.safetensors": b"weights"})
    store.save(make_record(seed=1), {})
    return store


def cut(path: Path) -> None:
    """Lose the second half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path) -> None:
    """Change one digit by hand."""
    content = path.read_bytes()
    at = next(n for n in range(len(content) // 2, len(content)) if content[n : n + 1].isdigit())
    path.write_bytes(content[:at] + (b"7" if content[at] != 0x37 else b"8") + content[at + 1 :])


def scramble(path: Path) -> None:
    """Replace by random bytes of the same number."""
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def empty(path: Path) -> None:
    """Keep the name alone."""
    path.write_bytes(b"")


DAMAGES = (cut, edit, scramble, empty, Path.unlink)


@pytest.mark.parametrize("name", ["record.json", SUMS])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_never_believed(
    store: Store, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str
) -> None:
    """It is an error to ask for, is left out of lists with a warning, and is moved, not deleted."""
    bad, good = make_record(seed=0), make_record(seed=1)
    path = store.runs / bad.run_id / name
    damage(path)
    with pytest.raises(DamagedError, match=rf"{bad.run_id}.*sets it aside and repeats it"):
        store.find(bad.run_id)
    with pytest.raises(DamagedError):
        find_run(bad.run_id[:-1], store)
    assert store.records() == [good]
    assert bad.run_id in caplog.text
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    said: list[str] = []
    store.set_damaged_aside(said.append)
    place = store.root / "set-aside" / bad.run_id
    assert len(said) == 1
    assert f"set aside as {place / bad.run_id}" in said[0]
    assert {p.name: p.read_bytes() for p in (place / bad.run_id).iterdir()} == before
    assert bad.run_id in (place / "reason.txt").read_text()
    assert store.find(bad.run_id) is None
    store.rebuild_csv()
    assert good.run_id in (store.root / "results.csv").read_text()
    assert bad.run_id not in (store.root / "results.csv").read_text()


def test_what_is_set_aside_is_kept_beside_what_was_before(store: Store) -> None:
    """The same run may be damaged twice."""
    bad = make_record(seed=0)
    for _ in range(3):
        store.save(bad, {})
        edit(store.runs / bad.run_id / "record.json")
        store.set_damaged_aside(lambda _: None)
    names = [bad.run_id, f"{bad.run_id}.2", f"{bad.run_id}.3"]
    assert sorted(p.name for p in (store.root / "set-aside").iterdir()) == names


def test_a_copied_run_is_checked_on_the_way(store: Store, tmp_path: Path) -> None:
    """Damage is not given a checksum of its own by being copied."""
    record = make_record(seed=0)
    folder, other = store.runs / record.run_id, Store(tmp_path / "other")
    other.save(record, read_files(folder))
    assert other.records() == [record]
    checksums.check_file(other.runs / record.run_id / "adapter.safetensors")
    (folder / "adapter.safetensors").write_bytes(b"heavier")
    with pytest.raises(DamagedError, match=r"adapter\.safetensors was changed after"):
        read_files(folder)


def test_a_folder_under_another_name_is_damage(store: Store) -> None:
    """A copied run does not count twice, and no record names a folder that it is not in."""
    run_id = make_record(seed=0).run_id
    shutil.copytree(store.runs / run_id, store.runs / "copy")
    with pytest.raises(DamagedError, match=f"belongs to another run, {run_id}"):
        store.find("copy")
    assert len(store.records()) == 2


def test_a_run_being_replaced_is_not_taken_for_damaged(store: Store) -> None:
    """Record and checksums are two files; a reader may see one of the old run, one of the new."""
    writer = multiprocessing.get_context("fork").Process(target=_save_for_ever, args=(store,))
    before = store.runs.stat().st_mtime_ns
    writer.start()
    try:
        while store.runs.stat().st_mtime_ns == before and writer.is_alive():
            pass
        for _ in range(300):
            _, bad = store.survey()
            assert not bad, bad[0]
        store.set_damaged_aside(pytest.fail)
    finally:
        writer.kill()
        writer.join()
    assert not (store.root / "set-aside").exists()


def _save_for_ever(store: Store) -> None:
    while True:
        store.save(make_record(seed=0), {})


# Through the command line


RUN = ("run", "--task", "mrpc", "--method", "lora", "--precision", "fp32", "--epochs", "1")


@pytest.fixture
def again(call: Cli, checkpoint: Path, data: Path) -> Callable[[], Answer]:
    """One finished run; calling this asks for the same run again."""
    arguments = (*RUN, "--model", checkpoint, "--data", data, "--max-length", "32")
    assert call(*arguments).code == 0
    return lambda: call(*arguments)


def only_run(tmp_path: Path) -> Path:
    """Return the folder of the only run."""
    [folder] = (tmp_path / "results" / "runs").glob("[!.]*")
    return folder


def results_of(folder: Path) -> dict[str, bytes]:
    """Return the files that hold no times."""
    return {n: (folder / n).read_bytes() for n in ("adapter.safetensors", "predictions.parquet")}


def test_the_same_command_makes_any_damage_good(
    call: Cli, tmp_path: Path, again: Callable[[], Answer]
) -> None:
    """Each file, each kind of damage: named, set aside, and run again to the same bits."""
    folder = only_run(tmp_path)
    expected, aside = results_of(folder), tmp_path / "results" / "set-aside"
    assert "already done" in again().err
    names = ("record.json", "predictions.parquet", "adapter.safetensors")
    cases = [(names[n % 3], damage) for n, damage in enumerate(DAMAGES)]
    for number, (name, damage) in enumerate([*cases, (names[1], edit), (names[2], edit)], start=1):
        damage(folder / name)
        answer = again()
        assert answer.code == 0, answer.err
        assert f"{folder.name}/{name} " in answer.err, (name, damage)
        assert "set aside as results/set-aside/" in answer.err
        assert results_of(folder) == expected
        assert len(list(aside.iterdir())) == number
    assert "already done" in again().err


def test_commands_that_read_say_what_is_damaged(
    call: Cli, tmp_path: Path, again: Callable[[], Answer]
) -> None:
    """A bad record beside a good one: left out with a warning where many are read."""
    arguments = ("--results", "results")
    good = make_record("rte", "lora")
    write_run(tmp_path / "results" / "runs", good)
    folder = only_run_of(tmp_path, "mrpc")
    scramble(folder / "record.json")
    for command in (("table",), ("list", "runs"), ("table", "--json")):
        answer = call(*command, *arguments)
        assert answer.code == 0, answer.err
        assert answer.err.startswith("warning: results/runs/mrpc-"), answer.err
        assert "record.json was changed after it was written" in answer.err
        assert "Traceback" not in answer.err
    asked = (
        ("show", folder.name),
        ("export", folder.name, "--to", "out"),
        ("predict", folder.name, "--text", "a", "--text-pair", "b"),
    )
    for command in asked:
        assert "record.json was changed after it was written" in call(*command, *arguments).error
    many = (("compare", "lora", "full"), ("submit", "--method", "lora", "--out", "x.zip"))
    for command in many:
        answer = call(*command, *arguments)
        assert answer.code == 2
        assert "warning: results/runs/mrpc-" in answer.err
        assert "Traceback" not in answer.err
    assert folder.is_dir(), "only commands that run move anything"
    dry = call(*RUN, "--dry-run", "--preset", "smoke")
    assert dry.code == 0, dry.err


def only_run_of(tmp_path: Path, task: str) -> Path:
    """Return the folder of the only run of a task."""
    [folder] = (tmp_path / "results" / "runs").glob(f"{task}-*")
    return folder


def test_damage_that_leaves_no_trace_is_found_in_use(
    call: Cli, tmp_path: Path, again: Callable[[], Answer]
) -> None:
    """A bit that rots keeps size and time: whoever uses the file finds it, then `run` redoes it."""
    folder = only_run(tmp_path)
    expected = results_of(folder)
    for name, command in (
        ("adapter.safetensors", ("predict", folder.name, "--text", "a", "--text-pair", "b")),
        ("adapter.safetensors", ("export", folder.name, "--to", "out")),
        ("predictions.parquet", ("submit", "--method", "lora", "--out", "x.zip")),
    ):
        path = folder / name
        status = path.stat()
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert "already done" in again().err
        answer = call(*command)
        assert answer.code == 2
        assert f"{name} was changed after it was written" in answer.err
        assert "set aside as" in again().err
        assert results_of(folder) == expected
    assert not (tmp_path / "out").exists()


def test_tables_read_records_alone(
    call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: Callable[[], Answer]
) -> None:
    """Hundreds of adapters are not read to make a table, nor to see that runs are finished."""

    def refuse(path: Path) -> None:
        pytest.fail(f"{path} is read whole")

    monkeypatch.setattr(checksums, "check_file", refuse)
    assert call("table").code == 0
    assert call("list", "runs").code == 0
    assert "already done" in again().err


def test_a_snapshot_of_another_run_is_not_resumed(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    """Renamed by hand it would fit: same model, same shapes, another seed."""
    from tests.running.test_resume import prepared, stopped_after

    run = prepared(checkpoint, data)
    content = stopped_after(run, 2)
    path = tmp_path / "results" / "unfinished" / f"{run.run_id}.snapshot"
    path.parent.mkdir(parents=True)
    other = Snapshot(content.tensors, {**content.facts, "run_id": "other"})
    path.write_bytes(b"".join(other.pieces()))
    train = ("--epochs", "3", "--batch-size", "8", "--max-length", "32", "--lr", "1e-2")
    args = ("--precision", "fp32", "--model", checkpoint, "--data", data, *train)
    answer = call("run", "--task", "mrpc", "--method", "spafit", *args)
    assert answer.code == 0, answer.err
    assert "it belongs to another run" in answer.err
    assert (tmp_path / "results" / "set-aside" / path.name / path.name).is_file()


def test_a_snapshot_that_cannot_be_resumed_is_set_aside(
    call: Cli, tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    """One of another version, whole but without what this one needs: the run starts anew."""
    from tests.running.test_resume import prepared

    run = prepared(checkpoint, data)
    path = tmp_path / "results" / "unfinished" / f"{run.run_id}.snapshot"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(Snapshot({}, {"run_id": run.run_id}).pieces()))
    train = ("--epochs", "3", "--batch-size", "8", "--max-length", "32", "--lr", "1e-2")
    args = ("--precision", "fp32", "--model", checkpoint, "--data", data, *train)
    answer = call("run", "--task", "mrpc", "--method", "spafit", *args)
    assert answer.code == 0, answer.err
    assert "failed after it was resumed" in answer.err
    assert (tmp_path / "results" / "set-aside" / path.name / path.name).is_file()


def test_the_snapshot_of_a_finished_run_does_not_stay(
    tmp_path: Path, again: Callable[[], Answer]
) -> None:
    """A process may be killed after it has saved its run and before it forgets the snapshot."""
    store = Store(tmp_path / "results")
    run_id = only_run(tmp_path).name
    store.keep_snapshot(run_id, b"state")
    assert "already done" in again().err
    assert store.snapshot(run_id) is None


# Schema versions


def test_records_of_version_1_still_load(call: Cli, tmp_path: Path) -> None:
    """It had no checksums; it is read as one of this version, and every command shows it."""
    text = (FIXTURES / "record-1.json").read_text()
    run_id = json.loads(text)["run_id"]
    folder = tmp_path / "results" / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(text)
    record = Store(tmp_path / "results").find(run_id)
    assert record is not None
    assert record.schema_version == SCHEMA_VERSION
    assert record.metrics == json.loads(text)["metrics"]
    assert call("table").code == 0
    assert "show" not in call("show", run_id).err


def test_a_newer_record_says_which_version_is_needed(
    call: Cli, tmp_path: Path, again: Callable[[], Answer]
) -> None:
    """It is not damage: no command moves it, leaves it out or works around it."""
    folder = only_run(tmp_path)
    body = json.loads((folder / "record.json").read_text())
    body["schema_version"], body["novelty"] = SCHEMA_VERSION + 1, 1
    body["environment"]["packages"]["spafit-bench"] = "7.8.9"
    (folder / "record.json").write_text(json.dumps(body))
    seal(folder)
    for answer in (again(), call("table"), call("list", "runs"), call("show", folder.name)):
        assert "written by spafit-bench 7.8.9 (record schema 3; " in answer.error
        assert "upgrade to that version or a later one" in answer.error
    body["schema_version"] = SCHEMA_VERSION
    (folder / "record.json").write_text(json.dumps(body))
    seal(folder)
    assert "another version of spafit-bench wrote it" in call("table").error
    assert folder.is_dir()


# Fuzzing: whatever the bytes, a loader returns something sound or says what is wrong


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Cut, flip, overwrite, repeat or replace."""
    at, length = rng.randrange(len(content) + 1), rng.randrange(1, 40)
    kinds: list[Callable[[], bytes]] = [
        lambda: content[:at],
        lambda: content[at:],
        lambda: content[:at] + rng.randbytes(length) + content[at + length :],
        lambda: content[:at] + content[at : at + length] * 3 + content[at + length :],
        lambda: rng.randbytes(length * 20),
        lambda: content[:at] + rng.choice([b"{", b"[", b'"', b"-1e999", b"null"]) + content[at:],
    ]
    return rng.choice(kinds)()


@pytest.mark.parametrize("version", [1, SCHEMA_VERSION])
def test_no_bytes_break_the_reader_of_records(tmp_path: Path, version: int) -> None:
    """Without checksums, and with checksums that are right: a record or one message."""
    rng = random.Random(version)
    body = json.loads((FIXTURES / "record-1.json").read_text()) | {"schema_version": version}
    content = json.dumps(body).encode()
    path = tmp_path / "record.json"
    outcomes = set()
    for _ in range(400):
        path.write_bytes(mutated(content, rng))
        if version > 1:
            seal(tmp_path)
        try:
            outcomes.add(type(read_record(path)).__name__)
        except UserError as error:
            outcomes.add(str(error).partition(" ")[0].rstrip(":"))
    assert outcomes == {"RunRecord", str(path)}


def test_no_bytes_break_the_readers_of_other_files(tmp_path: Path) -> None:
    """Checksums, predictions, snapshots (with a checksum that is right), YAML."""
    import hashlib

    import numpy as np
    import torch

    from spafit_bench.results.run_folder import prediction_rows

    rng = random.Random(0)
    sums = checksums.sums_of({"record.json": b"1", "adapter.safetensors": b"2"})
    logits = {"validation": np.ones((20, 2), np.float32)}
    values = {"validation": np.zeros(20)}
    rows = prediction_rows(logits, values, values)
    body = Snapshot({"a": torch.zeros(3)}, {"run_id": "x"}).pieces()[1]
    yaml = (REPOSITORY / "configs" / "paper.yaml").read_bytes()
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "predictions.parquet"
    for _ in range(250):
        (tmp_path / SUMS).write_bytes(mutated(sums, rng))
        with suppress(DamagedError):
            checksums.read_sums(tmp_path)
            checksums.check_folder(tmp_path)
        alone.write_bytes(mutated(rows, rng))
        with suppress(DamagedError):
            read_rows(alone, ("index", "prediction"), ("validation",))
        new = mutated(body, rng)
        with suppress(DamagedSnapshot):
            Snapshot.from_bytes(hashlib.sha256(new).hexdigest().encode() + new)
        (tmp_path / "x.yaml").write_bytes(mutated(yaml, rng)[:600])
        for read in (read_mapping, read_references):
            with suppress(UserError):
                read(tmp_path / "x.yaml")


def test_no_bytes_break_the_reader_of_adapters(tmp_path: Path, again: Callable[[], Answer]) -> None:
    """Even with checksums that are right: restored, or one message."""
    store = Store(tmp_path / "results")
    folder = only_run(tmp_path)
    content = (folder / "adapter.safetensors").read_bytes()
    rng = random.Random(0)
    for _ in range(25):
        (folder / "adapter.safetensors").write_bytes(mutated(content, rng))
        seal(folder)
        with suppress(UserError):
            restore(find_run(folder.name, store), Base())


def test_a_damaged_run_found_while_another_process_mends_it(store: Store) -> None:
    """Whoever comes second finds it sound, or gone, and moves nothing."""
    record = make_record(seed=0)
    with pytest.MonkeyPatch.context() as patch:
        real = Store.find

        def find(self: Store, run_id: str) -> RunRecord | None:
            patch.setattr(Store, "find", real)
            raise DamagedError(self.runs / run_id, "looked damaged a moment ago")

        patch.setattr(Store, "find", find)
        assert store.examine(record.run_id, pytest.fail) == record
    assert not (store.root / "set-aside").exists()

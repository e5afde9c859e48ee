"""How a sweep hands out its runs: order, losses, runs that others have, stopping, workers."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from spafit_bench.base.errors import UserError
from spafit_bench.cli.running import _summary
from spafit_bench.cli.views.progress import ProgressView
from spafit_bench.config.sweep import Sweep, narrowed, read_sweep
from spafit_bench.results.record import RunRecord, Status
from spafit_bench.results.store import Store
from spafit_bench.running import driver
from spafit_bench.running.agenda import Agenda
from spafit_bench.running.driver import MOST_LOSSES, drive
from spafit_bench.running.events import (
    Busy,
    Ended,
    Event,
    Hear,
    Lost,
    Refused,
    Started,
    Stepped,
    Warned,
    parse_event,
    warnings_as_events,
)
from spafit_bench.running.executors import Executor, Workers, visible_gpus, worker_environments
from spafit_bench.running.runner import Options
from spafit_bench.training.prepare import PreparedRun
from spafit_bench.training.run import blank_record


def finished(run: PreparedRun, status: Status = "done") -> RunRecord:
    """A record with a score that grows with the learning rate."""
    record = blank_record(run, "2026-01-01T00:00:00+00:00", status)
    metrics = {"validation": {"accuracy": run.config.train.learning_rate}}
    facts = {"metrics": metrics, "score": run.config.train.learning_rate}
    return record.model_copy(update=facts if status == "done" else {"reason": "broken"})


def ends(run: PreparedRun) -> Event:
    """What a run says that goes well."""
    return Ended(run_id=run.run_id, record=finished(run))


@dataclass
class Scripted:
    """An executor whose runs say what a test wants."""

    says: Callable[[PreparedRun], Event] = ends
    room: int = 1
    submitted: list[PreparedRun] = field(default_factory=list)
    waiting: list[PreparedRun] = field(default_factory=list)
    stopped: bool = False
    closed: bool = False

    def has_room(self) -> bool:
        """As many runs at once as `room`."""
        return len(self.waiting) < self.room

    def submit(self, run: PreparedRun) -> None:
        """Remember the run."""
        self.submitted.append(run)
        self.waiting.append(run)

    def poll(self, hear: Hear, timeout_s: float) -> None:
        """Let the last run say something: runs do not end in order."""
        if self.waiting:
            run = self.waiting.pop()
            event = self.says(run)
            if not isinstance(event, Busy):
                hear(Started(run_id=run.run_id, where="box"))
            hear(event)

    def stop(self) -> None:
        """Remember."""
        self.stopped = True

    def close(self) -> None:
        """Remember."""
        self.closed = True


@dataclass
class World:
    """A sweep, a results folder, and what was seen."""

    folder: Path
    settings: dict[str, Any]
    view: ProgressView = field(
        default_factory=lambda: ProgressView("s", console=Console(file=io.StringIO(), width=200))
    )

    def sweep(self, **body: Any) -> Sweep:
        """Read a sweep of mrpc and cola."""
        path = self.folder / "s.yaml"
        whole = {"tasks": ["mrpc", "cola"], "methods": ["bitfit"], "settings": self.settings}
        path.write_text(yaml.safe_dump(whole | body))
        return read_sweep(path, {})

    def agenda(self, **body: Any) -> Agenda:
        """Prepare its runs."""
        return Agenda.of_sweep(self.sweep(**body))

    def run(self, executor: Executor, agenda: Agenda, **options: Any) -> Agenda:
        """Carry it out."""
        store = Store(self.folder / "results")
        stop = options.pop("stop", lambda: False)
        with self.view:
            drive(agenda, store, executor, self.view, Options(**options), stop)
        return agenda

    @property
    def said(self) -> str:
        """Everything that was shown."""
        assert isinstance(self.view.console.file, io.StringIO)
        return self.view.console.file.getvalue()


@pytest.fixture
def world(tmp_path: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Tiny runs; nobody waits for anything."""
    monkeypatch.setattr(driver, "BUSY_S", 0.0)
    return World(
        tmp_path, {"model": str(checkpoint), "data": str(data), "device": "cpu", "limit": 8}
    )


CHOOSE = {"key": "train.learning_rate", "values": [1e-3, 1e-2], "holdout": 0.25}


def of(runs: Sequence[PreparedRun]) -> list[tuple[str, bool, int, float]]:
    """Task, whether it is a trial, seed and learning rate."""
    return [
        (r.task.name, r.config.holdout is not None, r.config.seed, r.config.train.learning_rate)
        for r in runs
    ]


@pytest.mark.parametrize("room", [1, 3])
def test_a_cells_reported_runs_follow_its_trials(world: World, room: int) -> None:
    """With the value that won, and before the trials of later cells wait for a place."""
    executor = Scripted(room=room)
    result = world.run(executor, world.agenda(seeds="0-1", choose=CHOOSE))
    order = of(executor.submitted)
    assert sorted(order) == sorted(
        run
        for task in ("mrpc", "cola")
        for run in (
            (task, True, 0, 1e-3), (task, True, 0, 1e-2), (task, False, 0, 1e-2),
            (task, False, 1, 1e-2),
        )
    )  # fmt: skip
    if room == 1:
        assert [task for task, *_ in order] == ["mrpc"] * 4 + ["cola"] * 4
    assert set(result.chosen.values()) == {1e-2}
    assert (len(result.trials), len(result.finals), len(result.all_records())) == (4, 4, 8)
    assert executor.closed
    assert world.said.count("[8/8]") == 1
    assert "mrpc bitfit seed 0: acc 1.0" in world.said


def test_runs_that_are_the_same_are_one(world: World) -> None:
    """A grid over the rank means nothing to BitFit; what is there already is not repeated."""
    sweep = world.sweep(methods=["bitfit", "lora"], grid={"method.rank": [2, 4]})
    sweep = narrowed(sweep, None, "bitfit", None)
    executor = Scripted(room=4)
    result = world.run(executor, Agenda.of_sweep(sweep))
    assert len(executor.submitted) == 2
    assert [r.task for r in result.all_records()] == ["mrpc", "cola"]
    store = Store(world.folder / "results")
    store.save(finished(executor.submitted[0]), {})
    store.save(finished(executor.submitted[1], "failed"), {})
    for options, expected in (({}, []), ({"retry_failed": True}, ["cola"]), ({"force": True}, 2)):
        again = Scripted()
        world.run(again, Agenda.of_sweep(sweep), **options)
        names = [run.task.name for run in again.submitted]
        assert names == expected or len(names) == expected
    assert "2 of 2 runs are there already, 1 of them failed or diverged" in world.said


def test_the_snapshot_of_a_finished_run_does_not_stay(world: World) -> None:
    """The process that had it was killed between its last two acts."""
    agenda, store = world.agenda(), Store(world.folder / "results")
    run = agenda.expected()[0]
    store.save(finished(run), {})
    (store.root / "unfinished").mkdir()
    store.keep_snapshot(run.run_id, b"state")
    world.run(Scripted(), agenda)
    assert store.snapshot(run.run_id) is None


def test_a_lost_run_is_carried_out_again_and_given_up_in_the_end(world: World) -> None:
    """One that kills its process every time is recorded as failed; the others finish."""
    attempts = Counter[str]()

    def says(run: PreparedRun) -> Event:
        attempts[run.task.name] += 1
        if run.task.name == "mrpc" or attempts["cola"] == 1:
            return Lost(run_id=run.run_id, reason="its process was ended by SIGKILL")
        return ends(run)

    result = world.run(Scripted(says, room=2), world.agenda())
    assert attempts == {"mrpc": MOST_LOSSES, "cola": 2}
    mrpc, cola = result.all_records()
    assert (mrpc.status, cola.status) == ("failed", "done")
    assert mrpc.reason == "given up after 3 attempts: its process was ended by SIGKILL"
    assert Store(world.folder / "results").find(mrpc.run_id) == mrpc
    assert world.said.count("mrpc bitfit seed 0: its process was ended by SIGKILL") == 3
    assert "mrpc bitfit seed 0: failed: given up after 3 attempts" in world.said


def test_a_failed_trial_is_not_chosen_and_stops_nobody(world: World) -> None:
    """Where every trial of a cell fails, that cell has no reported runs, and it is said."""

    def says(run: PreparedRun) -> Event:
        fails = run.task.name == "mrpc" or run.config.train.learning_rate > 5e-3
        return Ended(run_id=run.run_id, record=finished(run, "failed" if fails else "done"))

    result = world.run(Scripted(says), world.agenda(choose=CHOOSE))
    assert {group.task: value for group, value in result.chosen.items()} == {
        "mrpc": None, "cola": 1e-3,
    }  # fmt: skip
    assert [r.task.name for r in result.finals] == ["cola"]
    assert not result.is_whole
    summary = _summary(result, Path("r"), Options(), sweep=True).splitlines()
    assert summary[0].startswith("nothing chosen for bitfit on mrpc: with every value a trial")
    assert summary[1] == "chosen for bitfit on cola: 0.001"
    assert "--retry-failed" in summary[-1]
    assert len(world.view._ended) == len(world.view._work) == 5


def test_a_failed_trial_leaves_a_sweep_whole(world: World) -> None:
    """Of a search over learning rates some diverge; what is reported is all there."""

    def says(run: PreparedRun) -> Event:
        fails = run.config.train.learning_rate > 5e-3
        return Ended(run_id=run.run_id, record=finished(run, "diverged" if fails else "done"))

    result = world.run(Scripted(says), world.agenda(choose=CHOOSE))
    assert any(r.status == "diverged" for r in result.all_records())
    assert result.is_whole
    fails = Scripted(lambda run: Ended(run_id=run.run_id, record=finished(run, "failed")))
    assert not world.run(fails, world.agenda()).is_whole


def test_what_another_process_finished_is_counted_alone(world: World) -> None:
    """Not what this one has carried out."""

    def says(run: PreparedRun) -> Event:
        return Ended(run_id=run.run_id, record=finished(run), found=run.task.name == "cola")

    world.run(Scripted(says), world.agenda())
    assert "1 of 2 runs are there already" in world.said


def test_a_run_that_another_process_has_is_asked_for_again(world: World) -> None:
    """Others go first meanwhile; it is said once who has it."""
    asked = Counter[str]()

    def says(run: PreparedRun) -> Event:
        asked[run.task.name] += 1
        if run.task.name == "mrpc" and asked["mrpc"] < 4:
            return Busy(run_id=run.run_id, owner="process 7 on box")
        return ends(run)

    result = world.run(Scripted(says), world.agenda())
    assert asked == {"mrpc": 4, "cola": 1}
    assert [r.status for r in result.all_records()] == ["done", "done"]
    assert world.said.count("process 7 on box holds it") == 1


def test_stopping_lets_runs_keep_their_state(world: World) -> None:
    """The executor is told once, everything under way is waited for, nothing is recorded."""
    executor = Scripted(lambda run: Lost(run_id=run.run_id, reason="told to stop"), room=2)
    with pytest.raises(KeyboardInterrupt):
        world.run(executor, world.agenda(), stop=lambda: bool(executor.submitted))
    assert executor.stopped
    assert executor.closed
    assert executor.waiting == []
    assert Store(world.folder / "results").records() == []
    assert "the same command resumes" in world.said


def test_a_stop_in_the_moment_of_the_last_loss_is_a_stop(world: World) -> None:
    """Nothing is under way any more then, and the lost run has no record."""
    lost: list[str] = []

    def says(run: PreparedRun) -> Event:
        lost.append(run.run_id)
        return Lost(run_id=run.run_id, reason="told to stop")

    with pytest.raises(KeyboardInterrupt):
        world.run(Scripted(says), world.agenda(tasks=["mrpc"]), stop=lambda: bool(lost))
    assert len(lost) == 1


def test_a_mistake_that_one_run_finds_lets_the_others_keep_their_state(world: World) -> None:
    """They are asked to stop and waited for; then it is said what is to be mended."""
    executor = Scripted(room=2)

    def says(run: PreparedRun) -> Event:
        if executor.stopped:
            return Lost(run_id=run.run_id, reason="told to stop")
        executor.waiting.insert(0, run)  # its process ends a little later
        return Refused(message="the weights are gone")

    executor.says = says
    with pytest.raises(UserError, match="the weights are gone"):
        world.run(executor, world.agenda())
    assert executor.stopped
    assert executor.waiting == []
    assert len(executor.submitted) == 2
    assert Store(world.folder / "results").records() == []


def test_a_worker_of_another_version_is_not_waited_for(world: World, tmp_path: Path) -> None:
    """The package was upgraded after the sweep had started: it hung, as no event could be read."""
    package = tmp_path / "newer" / "spafit_bench"
    (package / "running").mkdir(parents=True)
    for folder in (package, package / "running"):
        (folder / "__init__.py").touch()
    event = {"kind": "ended", "run_id": "x", "record": {"schema_version": 99}}
    said = f"import sys\nprint({json.dumps(event)!r}, flush=True)\nsys.stdin.read()\n"
    (package / "running" / "worker.py").write_text(said)
    newer = [("cpu 1", {"PYTHONPATH": str(package.parent)})]
    workers = Workers(Store(world.folder / "results"), Options(), newer)
    with pytest.raises(UserError, match="another version of spafit-bench"):
        world.run(workers, world.agenda())


def listen(workers: Workers, *kinds: type[Lost] | type[Started]) -> list[Event]:
    """Hear workers until something of each kind has happened."""
    heard: list[Event] = []
    until = time.monotonic() + 60
    while {*kinds} - {type(event) for event in heard} and time.monotonic() < until:
        workers.poll(heard.append, 0.1)
    return heard


def test_workers_refuse_other_runs_and_keep_the_state_of_theirs(world: World) -> None:
    """One has more threads: it would report a run that nobody knows.

    The other is told to stop twice, as by a scheduler that signals all processes.
    """
    endless = world.settings | {"train": {"epochs": 10_000}}  # so that the run cannot end first
    first, second = world.agenda(settings=endless).expected()
    store, threads = Store(world.folder / "results"), torch.get_num_threads()
    environments = [worker_environments(1, [], n)[0] for n in (threads + 1, threads)]
    workers = Workers(store, Options(), environments)
    workers.submit(first)
    workers.submit(second)
    heard = listen(workers, Lost, Started)
    [refused] = [event for event in heard if isinstance(event, Refused)]
    assert f"not {first.run_id}" in refused.message
    assert [event.run_id for event in heard if isinstance(event, Lost)] == [first.run_id]
    assert [event.run_id for event in heard if isinstance(event, Started)] == [second.run_id]
    os.kill(int((store.root / "locks" / second.run_id).read_text().split()[1]), signal.SIGTERM)
    time.sleep(0.2)  # what comes at once counts as one
    workers.stop()
    lost = listen(workers, Lost)[-1]
    workers.close()
    assert isinstance(lost, Lost)
    assert lost.reason == "its process was told to stop"
    assert store.snapshot_path(second.run_id).exists()


@pytest.mark.parametrize(
    ("jobs", "gpus", "expected"),
    [
        (2, [], [("cpu 1", "4", None), ("cpu 2", "4", None)]),
        (3, ["0", "1"], [("gpu 0", "2", "0"), ("gpu 1", "2", "1"), ("gpu 0", "2", "0")]),
        (2, ["2", "GPU-aa"], [("gpu 2", "4", "2"), ("gpu GPU-aa", "4", "GPU-aa")]),
        (16, [], [(f"cpu {n + 1}", "1", None) for n in range(16)]),
    ],
)
def test_workers_divide_the_machine(jobs: int, gpus: list[str], expected: list[Any]) -> None:
    """One GPU each, in turn, and a part of eight threads; one thread at least."""
    found = [
        (name, env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"], env.get("CUDA_VISIBLE_DEVICES"))
        for name, env in worker_environments(jobs, gpus, 8)
    ]
    assert found == [(name, each, each, card) for name, each, card in expected]


def test_gpus_are_named_as_this_process_sees_them() -> None:
    """A scheduler that gave us GPUs 4 and 6 must not find us on 0 and 1."""
    assert visible_gpus(2, None) == ["0", "1"]
    assert visible_gpus(2, "4, 6") == ["4", "6"]
    assert visible_gpus(0, "") == []


def test_events_travel_as_json(world: World) -> None:
    """Also with bytes of a path that no encoding has."""
    record = finished(world.agenda().expected()[0]).model_copy(update={"reason": "d\udcffata"})
    event = Ended(run_id="x", record=record)
    assert parse_event(json.dumps(event.model_dump(mode="json"))) == event
    with pytest.raises(ValueError, match="line 1"):
        parse_event(b'{"kind": "ended", "run_i')


def test_the_view_tells_what_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the work done so far; a run that goes on from a snapshot did not do its first half now."""
    now = 1000.0
    monkeypatch.setattr("spafit_bench.cli.views.progress.time.monotonic", lambda: now)
    runs = world.agenda(seeds="0-3", tasks=["mrpc"]).expected()
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    view = ProgressView("s", ["train.learning_rate"], console=console, _since_s=now)
    with view:
        view.expect(runs)
        assert view.left_s() is None
        view.hear(Started(run_id=runs[0].run_id, where="cpu 1"))
        for step in (50, 75):
            now += 10.0
            view.hear(
                Stepped(
                    run_id=runs[0].run_id, step=step, total_steps=100, loss=0.5, tokens_per_s=10.0
                )
            )
        assert view.left_s() == pytest.approx(3.25 / 0.25 * 20.0)
        picture = "".join(
            segment.text for segment in console.render(view._picture(), console.options)
        )
        assert "s: 0 of 4 done · 1 running" in picture
        (line,) = [line for line in picture.splitlines() if "75 %" in line]
        assert line.split()[:8] == ["cpu", "1", "mrpc", "bitfit", "seed", "0", "lr", "0.001"]
        assert "loss 0.500" in line
        view.hear(ends(runs[0]))
        assert view.left_s() == pytest.approx(3 / 0.5 * 20.0)
        assert view.summary() == "s: 1 of 4 done · 0 running · 20 s · about 2 min left"
    assert max(len(line) for line in picture.splitlines()) <= 80


def test_what_a_worker_warns_of_is_an_event() -> None:
    """Else nobody would hear of it: a worker has no terminal."""
    heard: list[Event] = []
    log = logging.getLogger("spafit_bench.some.module")
    with warnings_as_events(heard.append):
        log.warning("batches stay as they are, in forward passes of %d", 4)
        log.info("of no interest")
        logging.getLogger("torch").warning("not ours")
    log.warning("nobody listens any more")
    assert heard == [Warned(message="batches stay as they are, in forward passes of 4")]

"""Claims on runs, with real processes that race, die, sleep and fork."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import spafit_bench
from spafit_bench.base.errors import UserError
from spafit_bench.results.claims import Claim, Claims

FAST = {"heartbeat_s": 0.2, "stale_after_s": 0.6}

PREAMBLE = """
import os, random, sys, time
from pathlib import Path
from spafit_bench.results.claims import Claims

folder = Path(sys.argv[1])
"""

HOLDER = (
    PREAMBLE
    + """
claims = Claims(folder, heartbeat_s=0.1, stale_after_s=0.6)
held = [claims.take(run_id) for run_id in sys.argv[2:]]
print("holding", all(held), flush=True)
for line in sys.stdin:
    if line == "lost\\n":
        print(*[claim.lost for claim in held], flush=True)
    else:
        claims.close()
        print("closed", flush=True)
"""
)

WORKER = (
    PREAMBLE
    + """
ids = [f"run-{n}" for n in range(int(sys.argv[2]))]
step_s = float(sys.argv[3])
log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def note(what, run_id):
    os.write(log, f"{what} {run_id} {os.getpid()}\\n".encode())
while not (folder / "go").exists():
    time.sleep(0.005)
with Claims(folder) as claims:
    while left := [i for i in ids if not (folder / f"{i}.done").exists()]:
        random.shuffle(left)
        for run_id in left:
            claim = claims.take(run_id)
            if claim is None:
                continue
            with claim:
                if (folder / f"{run_id}.done").exists():
                    continue
                note("start", run_id)
                for _ in range(3):
                    time.sleep(step_s)
                    note("work", run_id)
                (folder / f"{run_id}.done").touch()
                note("end", run_id)
        time.sleep(0.01)
"""
)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a script in a process of its own, without site-packages: it starts fast."""
    command = [sys.executable, "-S", "-c", script, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    where = {**os.environ, "PYTHONPATH": str(Path(spafit_bench.__file__).parents[1])}
    return subprocess.Popen(command, env=where, **pipes)


@contextmanager
def holder(folder: Path, *run_ids: str, script: str = HOLDER) -> Iterator[subprocess.Popen[str]]:
    """Give a process that holds runs."""
    process = start(script, folder, *run_ids)
    try:
        assert process.stdout.readline() == "holding True\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str], what: str) -> str:
    """Send a holder a line and return its answer."""
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def claim_file(folder: Path, run_id: str) -> Path:
    """Return the one file of a claim."""
    [path] = (folder / "claims" / run_id).iterdir()
    return path


def forge(folder: Path, run_id: str, **fields: object) -> Path:
    """Make a claim as another process would have written it, with some fields changed."""
    with Claims(folder) as claims, claims.take(run_id):
        content = json.loads(claim_file(folder, run_id).read_text())
    path = folder / "claims" / run_id / "00c0ffee.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**content, **fields}))
    return path


def set_age(path: Path, age_s: float) -> None:
    """Make a file look as if last renewed so long ago (negative: in the future)."""
    then = time.time() - age_s
    os.utime(path, (then, then))


def take_soon(claims: Claims, run_id: str) -> Claim:
    """Take a run as soon as its owner counts as dead."""
    deadline = time.monotonic() + 20
    while (claim := claims.take(run_id)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return claim


def litter(folder: Path) -> list[str]:
    """Return what is left under claims/."""
    return sorted(path.name for path in folder.glob("claims/**/*"))


def check_log(folder: Path, num_runs: int) -> Counter[str]:
    """Check that a run's owners never overlap; return how often each run was started."""
    owners: dict[str, list[str]] = defaultdict(list)
    starts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for line in (folder / "log").read_text().splitlines():
        what, run_id, pid = line.split()
        if what == "start":
            starts[run_id] += 1
            assert pid not in owners[run_id]
            owners[run_id].append(pid)
        ends[run_id] += what == "end"
        assert owners[run_id][-1] == pid, f"{line}: {owners[run_id][-1]} has taken it over"
    assert set(starts) == {f"run-{n}" for n in range(num_runs)}
    assert all((folder / f"{run_id}.done").exists() for run_id in starts)
    assert max(ends.values()) == 1
    return starts


def test_eight_processes_carry_out_each_of_fifty_runs_once(tmp_path: Path) -> None:
    """Nobody dies: every run is started exactly once, and nothing is left behind."""
    workers = [start(WORKER, tmp_path, 50, 0.002) for _ in range(8)]
    (tmp_path / "go").touch()
    assert [worker.wait(timeout=60) for worker in workers] == [0] * 8
    for worker in workers:
        worker.communicate()
    assert set(check_log(tmp_path, 50).values()) == {1}
    assert not (tmp_path / "claims").exists()


def test_killed_owners_are_taken_over_at_once_and_by_one(tmp_path: Path) -> None:
    """Workers die by kill -9 at random moments: all runs get done, never by two at a time."""
    (tmp_path / "go").touch()
    chance = random.Random(0)
    workers = [start(WORKER, tmp_path, 30, 0.02) for _ in range(4)]
    try:
        for _ in range(10):
            time.sleep(chance.uniform(0.05, 0.25))
            victim = workers.pop(chance.randrange(len(workers)))
            victim.kill()
            victim.communicate()
            workers.append(start(WORKER, tmp_path, 30, 0.02))
        assert [worker.wait(timeout=60) for worker in workers] == [0] * 4
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    starts = check_log(tmp_path, 30)
    assert max(starts.values()) > 1, "no kill hit a run under way"


def test_of_many_that_see_dead_claims_one_gets_each(tmp_path: Path) -> None:
    """Eight processes race for 30 claims of a dead one."""
    with holder(tmp_path, *[f"run-{n}" for n in range(30)]) as dead:
        dead.kill()
        dead.wait()
        assert len(list(tmp_path.glob("claims/*/*.json"))) == 30
        workers = [start(WORKER, tmp_path, 30, 0.001) for _ in range(8)]
        (tmp_path / "go").touch()
        assert [worker.wait(timeout=60) for worker in workers] == [0] * 8
        for worker in workers:
            worker.communicate()
    assert set(check_log(tmp_path, 30).values()) == {1}


def test_a_live_process_keeps_its_run(tmp_path: Path) -> None:
    """Another process gets None, hears whose it is, and gets the run after the release."""
    with holder(tmp_path, "a") as other, Claims(tmp_path, **FAST) as claims:
        assert claims.take("a") is None
        owner = claims.owner("a")
        assert owner.pid == other.pid
        assert f"process {other.pid} on {os.uname().nodename} since 20" in str(owner)
        time.sleep(0.8)
        assert claims.take("a") is None, "its heartbeat has kept it"
        assert ask(other, "lost") == "False"
        assert ask(other, "close") == "closed"
        assert claims.owner("a") is None
        with claims.take("a") as mine:
            assert not mine.lost
            assert claims.take("a") is None, "not twice in one process either"
        assert claims.owner("a") is None


def test_an_owner_that_comes_back_from_a_pause_is_alive(tmp_path: Path) -> None:
    """It was silent for long enough while nobody looked; now it goes on, and keeps its run."""
    with holder(tmp_path, "a") as other, Claims(tmp_path, **FAST) as claims:
        other.send_signal(signal.SIGSTOP)
        assert claims.take("a") is None
        time.sleep(1)
        other.send_signal(signal.SIGCONT)
        assert claims.take("a") is None
        assert ask(other, "lost") == "False"


def test_an_unreaped_zombie_is_dead(tmp_path: Path) -> None:
    """A killed process whose parent has not waited for it has a pid, but no runs."""
    with holder(tmp_path, "a") as other, Claims(tmp_path) as claims:
        os.kill(other.pid, signal.SIGKILL)
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert claims.owner("a") is None
        assert claims.take("a") is not None


def test_a_recycled_pid_is_dead(tmp_path: Path) -> None:
    """A live process of the same pid that started at another time is another process."""
    forge(tmp_path, "a", pid=os.getppid(), started_ticks=1)
    with Claims(tmp_path) as claims:
        assert claims.take("a") is not None


@pytest.mark.parametrize("field", ["host", "boot_id", "pid_namespace"])
def test_a_pid_of_elsewhere_says_nothing(tmp_path: Path, field: str) -> None:
    """A pid that is gone here may live on another machine or in another container."""
    path = forge(tmp_path, "a", pid=2**22 + 1, heartbeat_s=0.2, **{field: "elsewhere"})
    with Claims(tmp_path) as claims:
        assert claims.take("a") is None
        assert claims.owner("a").pid == 2**22 + 1
        set_age(path, 61)
        assert not take_soon(claims, "a").lost, "silent for a minute by the file server's clock"


def test_a_remote_owner_with_a_heartbeat_is_alive_whatever_the_clock_says(tmp_path: Path) -> None:
    """The clock jumped by hours between heartbeats, as after a laptop's sleep: nobody dies."""
    path = forge(tmp_path, "a", host="elsewhere", heartbeat_s=0.4)
    set_age(path, 7200)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            set_age(path, 7200)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with Claims(tmp_path, heartbeat_s=0.2, stale_after_s=1) as claims:
            for _ in range(5):
                assert claims.take("a") is None
                time.sleep(0.3)
    finally:
        stop.set()
        thread.join()


def test_a_silent_owner_from_the_future_is_dead_after_watching(tmp_path: Path) -> None:
    """A time stamp ahead of the server's clock does not keep a claim for ever."""
    set_age(forge(tmp_path, "a", host="elsewhere"), -7200)
    with Claims(tmp_path, **FAST) as claims:
        began = time.monotonic()
        assert not take_soon(claims, "a").lost
        assert time.monotonic() - began >= 0.6


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 300,
        random.Random(1).randbytes(300),
        b"[" * 60000,
        b"[]",
        b'{"pid": 1}',
        b'{"host":"h","pid":-1,"since":"","boot_id":"b","pid_namespace":"","started_ticks":1,'
        b'"heartbeat_s":1}',
        b'{"host":"h","pid":1,"since":"","boot_id":"b","pid_namespace":"","started_ticks":1,'
        b'"heartbeat_s":1' + b"0" * 400 + b"}",
    ],
)
def test_a_damaged_claim_dies_of_silence(tmp_path: Path, content: bytes) -> None:
    """A claim file that a power loss has damaged holds until it has been silent long enough."""
    path = forge(tmp_path, "a")
    path.write_bytes(content)
    with Claims(tmp_path, **FAST) as claims:
        assert claims.take("a") is None
        assert "damaged" in str(claims.owner("a"))
        set_age(path, 10)
        assert not take_soon(claims, "a").lost


def test_a_suspended_owner_sees_that_its_run_is_lost(tmp_path: Path) -> None:
    """It wakes up after the takeover, learns it, and its release leaves the new claim alone."""
    with holder(tmp_path, "a", "b") as other, Claims(tmp_path, **FAST) as claims:
        other.send_signal(signal.SIGSTOP)
        mine = take_soon(claims, "a")
        other.send_signal(signal.SIGCONT)
        assert ask(other, "lost") == "True False"
        assert ask(other, "close") == "closed"
        assert not mine.lost
        assert claims.owner("a").pid == os.getpid()
        assert not take_soon(claims, "b").lost


def test_a_late_removal_of_a_dead_claim_misses_the_new_one(tmp_path: Path) -> None:
    """One that saw a claim dead, and then slept through its takeover, does not take the new one."""
    script = (
        PREAMBLE
        + """
claims = Claims(folder, heartbeat_s=0.1, stale_after_s=0.5)
judge = claims._is_dead
def slow(entry):
    dead = judge(entry)
    print("holding", dead, flush=True)
    sys.stdin.readline()
    claims._is_dead = judge
    return dead
claims._is_dead = slow
print(claims.take("a") is None, flush=True)
"""
    )
    forge(tmp_path, "a", pid=2**22 + 1)
    with holder(tmp_path, script=script) as slow, Claims(tmp_path) as claims:
        mine = claims.take("a")
        assert ask(slow, "go on") == "True"
        assert not mine.lost


def test_a_forked_child_has_no_claims(tmp_path: Path) -> None:
    """It can neither release nor repeat its parent's claim, but take others."""
    script = (
        PREAMBLE
        + """
claims = Claims(folder)
mine = claims.take("a")
child = os.fork()
if child == 0:
    mine.release()
    taken = [claims.take(run_id) is not None for run_id in ("a", "b")]
    print(taken, mine.lost, claims.owner("b").pid == os.getpid(), flush=True)
    claims.close()
    os._exit(0)
os.waitpid(child, 0)
print(mine.lost, claims.take("b") is not None, flush=True)
"""
    )
    output, _ = start(script, tmp_path).communicate(timeout=60)
    assert output.splitlines() == ["[False, True] False True", "False True"]


def test_without_proc_a_gone_pid_is_dead_at_once(tmp_path: Path) -> None:
    """Where there is no /proc (macOS), signal 0 tells."""
    no_proc = (
        "from pathlib import Path\nimport spafit_bench.results.owner\n"
        "spafit_bench.results.owner._PROC = Path('/nonexistent')\n"
    )
    taker = no_proc + PREAMBLE + "print(Claims(folder).take('a') is not None)"
    with holder(tmp_path, "a", script=no_proc + HOLDER) as other:
        assert json.loads(claim_file(tmp_path, "a").read_text())["started_ticks"] is None
        assert start(taker, tmp_path).communicate()[0] == "False\n"
        other.kill()
        other.wait()
        assert start(taker, tmp_path).communicate()[0] == "True\n"


def test_half_made_claims_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """What was never renamed into place goes after a while; fresh ones and other files stay."""
    folder = tmp_path / "claims"
    for name in (".unfinished-old", ".unfinished-new"):
        (folder / name).mkdir(parents=True)
        (folder / name / "token.json").touch()
    (folder / ".DS_Store").touch()
    set_age(folder / ".unfinished-old", 100)
    with Claims(tmp_path) as claims, claims.take("a"):
        pass
    assert litter(tmp_path) == [".DS_Store", ".unfinished-new", "token.json"]


def test_the_claim_of_a_process_killed_at_its_end_does_not_stay(tmp_path: Path) -> None:
    """Its run is finished, so nobody takes it again; whoever closes next removes it."""
    with holder(tmp_path, "done", "going on"):
        with Claims(tmp_path):
            pass
        assert claim_file(tmp_path, "done").is_file(), "its owner lives"
    with Claims(tmp_path):
        pass
    assert not (tmp_path / "claims").exists()


def test_an_empty_folder_is_no_claim(tmp_path: Path) -> None:
    """An owner killed in the middle of its release leaves an empty folder."""
    (tmp_path / "claims" / "a").mkdir(parents=True)
    with Claims(tmp_path) as claims:
        assert claims.owner("a") is None
        assert claims.take("a") is not None


def test_removing_the_claims_by_hand_loses_them(tmp_path: Path) -> None:
    """`lost` is true, and release is quiet."""
    with Claims(tmp_path) as claims, claims.take("a") as mine:
        claim_file(tmp_path, "a").unlink()
        assert mine.lost


def test_an_exception_releases(tmp_path: Path) -> None:
    """Whatever ends the `with` block, the run is free."""
    with Claims(tmp_path) as claims:
        with suppress(KeyboardInterrupt), claims.take("a"):
            raise KeyboardInterrupt
        assert claims.take("a") is not None
    assert not (tmp_path / "claims").exists()


def test_a_folder_that_cannot_be_made_is_the_users_business(tmp_path: Path) -> None:
    """The message names the path."""
    (tmp_path / "results").write_text("a file")
    with Claims(tmp_path / "results") as claims, pytest.raises(UserError, match="results"):
        claims.take("a")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a /proc")
def test_a_read_only_place_is_the_users_business() -> None:
    """Not even root can make a folder in /proc."""
    with Claims(Path("/proc")) as claims, pytest.raises(UserError, match="/proc/claims"):
        claims.take("a")


def test_a_full_disk_is_the_users_business(tmp_path: Path) -> None:
    """A claim that cannot be written whole is not made, and leaves nothing."""
    script = (
        PREAMBLE
        + """
import resource
from spafit_bench.base.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    with Claims(folder) as claims:
        claims.take("a")
except UserError as error:
    print(error)
"""
    )
    output, _ = start(script, tmp_path).communicate(timeout=60)
    assert f"{tmp_path}/claims/" in output
    assert "File too large" in output
    assert litter(tmp_path) == []


@pytest.mark.parametrize("run_id", ["", ".", "..", "a/b", ".hidden"])
def test_a_run_id_is_a_file_name(tmp_path: Path, run_id: str) -> None:
    """Nothing outside claims/ can be touched."""
    with Claims(tmp_path) as claims, pytest.raises(ValueError, match="not a run id"):
        claims.take(run_id)


def test_times_that_kill_the_living_are_refused(tmp_path: Path) -> None:
    """Silence must be longer than the pause between heartbeats."""
    with pytest.raises(ValueError, match="stale_after_s"):
        Claims(tmp_path, heartbeat_s=10, stale_after_s=15)


def test_claims_import_nothing_heavy(tmp_path: Path) -> None:
    """The scripts run without site-packages: the standard library is enough."""
    script = PREAMBLE + "print(Claims(folder).take('a') is not None)"
    assert start(script, tmp_path).communicate()[0] == "True\n"

"""Kill spafit-bench hundreds of times at random moments, and check that nothing was lost.

Several processes carry out one small sweep on one results folder, each until SIGKILL, SIGTERM,
SIGHUP or SIGINT hits it at a random moment; then another takes its place, until the sweep is done,
and the next round begins in a new folder. After each round the folder must be what an undisturbed
sweep leaves: every record whole, the same metrics and the same bytes of predictions and adapters,
`results.csv` the same when made again, and nothing left over.

The command runs in forks of a process that has imported its libraries, so that the signals hit
the work and not the imports; of the first writers of a round, the third and later ones are started
from scratch.

STRESS_KILLS (200), STRESS_WRITERS (3), STRESS_SEED (0) and STRESS_SECONDS (900: no kills after
that) in the environment say how much.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# Read when the libraries are imported; bit-equality is promised for the same number of threads.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SWEEP = """\
preset: smoke
tasks: [mrpc, stsb]
methods: [bitfit, spafit]
settings:
  limit: 48
  train: {epochs: 2, batch_size: 8}
"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ALLOWED = {0, 130, *(-number for number in SIGNALS)}
"""Exit codes: done, interrupted, or killed before a signal could be caught."""


def number(name: str, default: int) -> int:
    """Read a number from the environment."""
    return int(os.environ.get(f"STRESS_{name}", default))


@dataclass
class Writer:
    """A process that carries out the sweep."""

    pid: int
    log: Path
    kill_at_s: float
    signal: signal.Signals

    def ended(self) -> int | None:
        """Return its exit code, None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


@dataclass
class Stress:
    """Everything that rounds share."""

    folder: Path
    rng: random.Random
    num_writers: int
    kills_left: int
    until_s: float
    whole_s: float = 0.0
    """How long the sweep takes undisturbed."""
    codes: Counter[int] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    started: int = 0

    def start(self, results: Path, *, fresh: bool = False) -> Writer:
        """Start the sweep; it will be killed at some moment, maybe before it has achieved much."""
        self.started += 1
        log = self.folder / f"log-{self.started}.txt"
        arguments = ["sweep", str(self.folder / "sweep.yaml"), "--results", str(results)]
        with log.open("wb") as output:
            if fresh:
                command = [sys.executable, "-m", "spafit_bench", *arguments]
                where = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
                pid = subprocess.Popen(command, stdout=output, stderr=output, env=where).pid
            else:
                pid = fork(arguments, output.fileno())
        longest_s = 0.4 * self.whole_s * self.num_writers + (4.0 if fresh else 0.0)
        after_s = self.rng.uniform(0.0, longest_s)
        return Writer(pid, log, time.monotonic() + after_s, self.rng.choice(SIGNALS))

    def undisturbed(self, results: Path) -> None:
        """Carry the sweep out, or the rest of it, without a kill."""
        writer = self.start(results)
        while (code := writer.ended()) is None:
            time.sleep(0.01)
        if code != 0:
            raise SystemExit(f"exit code {code}:\n{writer.log.read_text()}")

    def round(self, results: Path) -> None:
        """Carry the sweep out under fire."""
        writers = [self.start(results, fresh=n > 1) for n in range(self.num_writers)]
        done = False
        while writers:
            time.sleep(0.005)
            for writer in tuple(writers):
                code = writer.ended()
                if code is None:
                    self._fire(writer)
                    continue
                writers.remove(writer)
                self._note(writer, code)
                done |= code == 0
                if not done and self.may_kill():
                    writers.append(self.start(results))

    def may_kill(self) -> bool:
        """Tell whether there are kills and time left."""
        return self.kills_left > 0 and time.monotonic() < self.until_s

    def _fire(self, writer: Writer) -> None:
        if self.may_kill() and time.monotonic() > writer.kill_at_s:
            os.kill(writer.pid, writer.signal)
            self.kills[writer.signal.name] += 1
            self.kills_left -= 1
            writer.kill_at_s = time.monotonic() + 5.0  # then once more

    def _note(self, writer: Writer, code: int) -> None:
        self.codes[code] += 1
        if code not in ALLOWED:
            raise SystemExit(f"exit code {code}:\n{writer.log.read_text()}")


def fork(arguments: list[str], output: int) -> int:
    """Run the command line in a fork of this process; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["spafit-bench", *arguments]
        from spafit_bench.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def essence(results: Path) -> dict[str, tuple[object, ...]]:
    """Return everything about the runs that is not a time; every byte is checked on the way."""
    from spafit_bench.base.checksums import SUMS, check_file, read_sums
    from spafit_bench.results.store import Store

    store = Store(results)
    records, damages = store.survey()
    assert not damages, damages[0]
    found: dict[str, tuple[object, ...]] = {}
    for record in records:
        folder = store.runs / record.run_id
        for name in read_sums(folder) or {}:
            check_file(folder / name)
        files = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json"}
        del files[SUMS]
        state = (record.status, record.metrics, record.evaluations, record.train_tokens)
        found[record.run_id] = (*state, sorted(files.items()))
    return found


def check(results: Path, expected: dict[str, tuple[object, ...]]) -> None:
    """Assert that the folder is what an undisturbed sweep leaves."""
    from spafit_bench.results.store import Store

    found = essence(results)
    assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
    for run_id, value in expected.items():
        assert found[run_id] == value, f"{results}: {run_id} is not what it is undisturbed"
    table = results / "results.csv"
    before = table.read_bytes()
    table.unlink()
    assert Store(results).rebuild_csv().read_bytes() == before
    assert len(before.splitlines()) == 1 + len(expected)
    left = {p.relative_to(results).as_posix() for p in results.rglob("*") if p.is_file()}
    kept = {".lock", "results.csv"} | {n for n in left if n.split("/")[1:2] and _is_run(n, found)}
    assert left == kept, f"{results}: left over: {sorted(left - kept)}"


def _is_run(name: str, found: dict[str, tuple[object, ...]]) -> bool:
    folder, run_id, *_ = name.split("/")
    return folder == "runs" and run_id in found


def import_libraries() -> None:
    """Import what the command imports while it works."""
    import evaluate  # noqa: F401
    import pandas as pd
    import pyarrow.parquet  # noqa: F401
    from transformers import BertForSequenceClassification, BertTokenizer  # noqa: F401

    pd.DataFrame({"a": [1]})


def carry_out(stress: Stress, sweep: str, say: Callable[[str], None]) -> None:
    """Do rounds until there are no kills left.

    Raises:
        AssertionError: something was lost, torn, changed or left over.
    """
    begin_s = time.monotonic()
    (stress.folder / "sweep.yaml").write_text(sweep)
    stress.undisturbed(stress.folder / "expected")
    stress.whole_s = time.monotonic() - begin_s
    expected = essence(stress.folder / "expected")
    assert {state[0] for state in expected.values()} == {"done"}
    rounds = 0
    while stress.may_kill():
        rounds += 1
        results = stress.folder / f"round-{rounds}"
        stress.round(results)
        stress.undisturbed(results)
        check(results, expected)
        say(f"round {rounds}: whole; {sum(stress.kills.values())} kills so far\n")
    kills = ", ".join(f"{count} {name}" for name, count in sorted(stress.kills.items()))
    codes = ", ".join(f"{count} x {code}" for code, count in sorted(stress.codes.items()))
    say(
        f"{sum(stress.kills.values())} kills ({kills}) of {stress.started} processes in {rounds} "
        f"rounds of {len(expected)} runs, {time.monotonic() - begin_s:.0f} s; exit codes {codes}: "
        "every record whole, every metric, prediction and adapter as undisturbed, nothing left\n"
    )


def main() -> None:
    """Stress as the environment says."""
    import_libraries()
    with tempfile.TemporaryDirectory(prefix="stress-") as name:
        stress = Stress(
            folder=Path(name),
            rng=random.Random(number("SEED", 0)),  # noqa: S311 (a seed to repeat it)
            num_writers=number("WRITERS", 3),
            kills_left=number("KILLS", 200),
            until_s=time.monotonic() + number("SECONDS", 900),
        )
        carry_out(stress, SWEEP, _say)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Measure systems on cases in turn and write the results as JSON and a Markdown table.

    python -m benchmarks.bench --model FOLDER --data FOLDER --out benchmarks/results/NAME

Every measurement runs in its own process. Cases and systems alternate in every round, so other work
on the machine affects all of them. A ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cases import PEERS, SYSTEMS, Case
from spafit_bench.base import process

Measurement = dict[str, Any]
STOCK_STEPS = 6
"""Timed steps of the stock peer, which takes many times as long."""
FLOOR_WARM_UP = 40
"""Steps before the floor is timed: a shape's first product, which a step makes, prepares the next
ones, so early shares are of work that comes once a run."""


def case_of(system: str, case: Case) -> Case:
    """Return the case with the number of steps that this system gets."""
    if system == "stock":
        return replace(case, steps=min(case.steps, STOCK_STEPS))
    if system == "floor":
        warm_up = min(FLOOR_WARM_UP, 2 * case.steps)  # of a large model a few steps take minutes
        return replace(case, warm_up=max(case.warm_up, warm_up))
    return case


def measure(system: str, case: Case) -> Measurement:
    """Measure one system on one case in its own process."""
    case = case_of(system, case)
    ours = process.KERNELS if system not in PEERS else {}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", system, json.dumps(asdict(case))],
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | process.OPENMP | ours,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: Measurement = json.loads(done.stdout.splitlines()[-1])
    if not found["times_s"]:
        raise SystemExit(
            f"{case.task} has no batch of {case.batch_size} after {case.warm_up} steps"
        )
    found["train_tokens_per_s"] = sum(found["tokens"]) / sum(found["times_s"])
    if "step_times_s" in found:
        found["share_of_step"] = sum(found["times_s"]) / sum(found["step_times_s"])
    if found.get("eval_time_s"):
        found["eval_tokens_per_s"] = found["eval_tokens"] / found["eval_time_s"]
    found["own_bytes"] = found["peak_memory_bytes"] - found["loaded_bytes"]
    return found


def random_weights(model: str, folder: Path) -> str:
    """Write a checkpoint with random weights if the folder has only a configuration."""
    import shutil

    import transformers

    if any(Path(model).glob("*.safetensors")):
        return model
    config = transformers.AutoConfig.from_pretrained(model)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    for file in Path(model).iterdir():
        if file.name != "config.json":
            shutil.copy(file, folder)
    return str(folder)


def ratio(rounds: list[dict[str, Measurement]], key: str, of: str, to: str) -> float | None:
    """Return the median over the rounds of the ratio of two systems' values."""
    found = [
        r[of][key] / r[to][key] for r in rounds if r.get(of, {}).get(key) and r.get(to, {}).get(key)
    ]
    return statistics.median(found) if found else None


def row(case: Case, rounds: list[dict[str, Measurement]]) -> dict[str, str]:
    """Summarise one case for the table."""

    def shown(value: float | None, pattern: str = "{:.2f}") -> str:
        return "—" if value is None else pattern.format(value)

    def median(
        system: str, key: str = "train_tokens_per_s", unit: float = 1.0, pattern: str = "{:,.0f}"
    ) -> str:
        found = [r[system][key] / unit for r in rounds if key in r.get(system, {})]
        return shown(statistics.median(found) if found else None, pattern)

    key = "train_tokens_per_s"
    return {
        "task": case.task,
        "method": case.method,
        "batch": str(case.batch_size),
        "ours": median("fast"),
        "tuned": median("tuned"),
        "stock": median("stock"),
        "floor": median("floor"),
        "ours / tuned": shown(ratio(rounds, key, "fast", "tuned")),
        "ours / stock": shown(ratio(rounds, key, "fast", "stock")),
        "ours / floor": median("floor", "share_of_step", pattern="{:.0%}"),
        "our evaluation": median("fast", "eval_tokens_per_s"),
        "evaluation / tuned": shown(ratio(rounds, "eval_tokens_per_s", "fast", "tuned")),
        "memory / tuned": shown(ratio(rounds, "peak_memory_bytes", "fast", "tuned"), "{:.0%}"),
        "our own memory, MB": median("fast", "own_bytes", 1e6),
        "own memory / tuned": shown(ratio(rounds, "own_bytes", "fast", "tuned"), "{:.0%}"),
        "whole time / tuned": shown(ratio(rounds, "whole_s", "fast", "tuned"), "{:.0%}"),
    }


def markdown(rows: list[dict[str, str]], facts: dict[str, Any]) -> str:
    """Return the table and a description of the machine."""
    head = list(rows[0])
    lines = [
        f"Training and evaluation in real tokens per second; {facts['rounds']} rounds of "
        f"{facts['steps']} steps. "
        f"{facts['model']}, {facts['machine']}, {facts['threads']} threads, torch "
        f"{facts['torch']}, transformers {facts['transformers']}, peft {facts['peft']}; "
        f"{facts['date']}.",
        "",
        f"    {facts['command']}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(row.values()) + " |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", default="mrpc")
    parser.add_argument("--methods", default="spafit,lora,bitfit,full")
    parser.add_argument("--batch-sizes", default="16,32")
    parser.add_argument("--systems", default="fast,tuned,stock,floor")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eval-examples", type=int, default=400)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pooler", action="store_true", help="every method trains the pooler")
    parser.add_argument("--cuda-graphs", action="store_true", help="of our fast engine, on a GPU")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Measure what the command line says, writing after every case."""
    given = _arguments()
    systems = given.systems.split(",")
    assert set(systems) <= set(SYSTEMS), systems
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = random_weights(given.model, Path(folder))
        cases = [
            Case(
                model,
                given.data,
                task,
                method,
                int(size),
                given.steps,
                eval_examples=given.eval_examples,
                device=given.device,
                pooler=given.pooler,
                cuda_graphs=given.cuda_graphs,
            )
            for task in given.tasks.split(",")
            for method in given.methods.split(",")
            for size in given.batch_sizes.split(",")
        ]
        rounds: list[list[dict[str, Measurement]]] = [[] for _ in cases]
        for number in range(given.rounds):
            for case, found in zip(cases, rounds, strict=True):
                found.append({system: measure(system, case) for system in systems})
                print(
                    f"round {number + 1}: {case.task} {case.method} {case.batch_size}", flush=True
                )
                text = _write(given, model, cases, rounds)
    print(text)


def _write(
    given: argparse.Namespace,
    model: str,
    cases: list[Case],
    rounds: list[list[dict[str, Measurement]]],
) -> str:
    """Write all measurements so far and return the table."""
    measured = [(case, found) for case, found in zip(cases, rounds, strict=True) if found]
    everything = [one for _, found in measured for round_ in found for one in round_.values()]
    facts = _facts(given, everything[0]["threads"])
    body = json.dumps({"facts": facts, "measurements": everything})
    text = markdown([row(case, found) for case, found in measured], facts)
    given.out.with_suffix(".json").write_text(_without_paths(body, given, model))
    given.out.with_suffix(".md").write_text(text)
    return text


def _without_paths(text: str, given: argparse.Namespace, model: str) -> str:
    for path in (model, given.model, given.data):
        text = text.replace(path, Path(path).name if path != model else Path(given.model).name)
    return text


def _facts(given: argparse.Namespace, threads: int) -> dict[str, Any]:
    from spafit_bench.models.numerics import choose_numerics, device_name

    command = " ".join(["python -m benchmarks.bench", *sys.argv[1:]])
    for path in (given.model, given.data):
        command = command.replace(path, Path(path).name)
    return {
        "model": Path(given.model).name,
        "machine": device_name(choose_numerics(given.device, "auto").device),
        "threads": threads,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "peft": version("peft"),
        "date": datetime.now(UTC).date().isoformat(),
        "steps": given.steps,
        "rounds": given.rounds,
        "command": command,
    }


if __name__ == "__main__":
    main()

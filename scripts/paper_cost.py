"""Count what `sweep paper` computes, before anyone rents a GPU for it.

    python scripts/paper_cost.py --model FOLDER --data FOLDER [FOLDER ...]

The script counts the matrix products of training, of dev after every epoch and of test. It leaves
out attention's own products, which are one percent at these lengths. Lengths come from real
training rows: from the first data folder (hub layout) that has the task's train split. The numbers
of rows are GLUE's. Time is not measured: it is the count divided by a card's peak rate for dense
bf16, times the shares of the peak in --shares. Steps of 16 short texts do not keep a card busy, so
a twentieth of the peak is possible and a quarter is good.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

from spafit_bench.base.errors import UserError
from spafit_bench.base.units import duration, human_bytes
from spafit_bench.config.run_config import RunConfig
from spafit_bench.config.sweep import final_configs, read_sweep, sweep_path, trial_configs
from spafit_bench.data.load import Split, load_task_data
from spafit_bench.data.tasks import Task, get_task
from spafit_bench.methods.plan import Plan
from spafit_bench.models.checkpoint import find_checkpoint
from spafit_bench.models.encoding import encode, load_tokenizer
from spafit_bench.running.estimate import Pass, Shape, activation_bytes, state_bytes
from spafit_bench.running.estimate import training_flops_per_token as flops_per_token
from spafit_bench.training.prepare import model_shapes, plan_method

SAMPLE = 2000
"""Rows that are tokenised to learn their length."""
PEAK = {"A100": 312e12, "H100 SXM": 989e12}
"""FLOPs per second, dense bf16, of NVIDIA's data sheets."""


def all_configs() -> list[RunConfig]:
    """Return the runs of `paper.yaml`; the chosen learning rates do not change the cost."""
    sweep = read_sweep(sweep_path("paper"), {})
    trials = trial_configs(sweep)
    held_out = [c for values in trials.values() for configs in values.values() for c in configs]
    anything = {group: next(iter(values)) for group, values in trials.items()}
    return held_out + final_configs(sweep, anything)


class Counter:
    """Counts the cost of runs of one model."""

    def __init__(self, model: str, folders: list[str]) -> None:
        self.checkpoint = find_checkpoint(model, weights=False)
        self.tokenizer = load_tokenizer(self.checkpoint)
        self.shape = Shape.of(self.checkpoint.config)
        self.folders = folders
        self.plans: dict[tuple[str, str], Plan] = {}
        self.lengths: dict[str, float] = {}

    def plan(self, config: RunConfig) -> Plan:
        """Plan what trains, once for each method and task."""
        key = (config.method.name, config.task)
        if key not in self.plans:
            shapes = model_shapes(self.checkpoint, get_task(config.task))
            self.plans[key], _ = plan_method(config.resolved_method(), self.checkpoint, shapes)
        return self.plans[key]

    def tokens(self, task: Task, max_length: int) -> float:
        """Return the mean length of training rows."""
        if task.name not in self.lengths:
            found = [split for folder in self.folders if (split := _train(task, folder))]
            if not found:
                raise SystemExit(f"no --data folder has {task.name}")
            rows = encode(found[0].head(SAMPLE), self.tokenizer, max_length=max_length)
            self.lengths[task.name] = float(rows.lengths.mean())
        return self.lengths[task.name]

    def flops(self, config: RunConfig) -> float:
        """Count a run's training and predictions."""
        task, plan, epochs = get_task(config.task), self.plan(config), config.train.epochs
        held_out = config.holdout or 0.0
        train: float = task.rows["train"] * (1 - held_out) * epochs
        dev: float = sum(n for split, n in task.rows.items() if split.startswith("validation"))
        dev = task.rows["train"] * held_out if held_out else dev
        test = sum(rows for split, rows in task.rows.items() if split.startswith("test"))
        forward = 2 * sum(t.num_parameters for t in plan.tensors if t.place.layer is not None)
        flops = train * flops_per_token(plan) + (dev * epochs + test * (not held_out)) * forward
        return flops * self.tokens(task, config.train.max_length)

    def memory(self, config: RunConfig) -> int:
        """Return the estimated peak GPU memory of a run."""
        at = Pass(config.train.batch_size, config.train.max_length, 2, "fast")
        plan = self.plan(config)
        return state_bytes(plan, at) + activation_bytes(plan, self.shape, at)


def _train(task: Task, folder: str) -> Split | None:
    try:
        return load_task_data(task, folder).splits["train"]
    except UserError:
        return None


def main() -> None:
    """Print a row for each method and the sum."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="config.json and vocabulary are enough")
    parser.add_argument("--data", required=True, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.25])
    given = parser.parse_args()
    counter = Counter(given.model, given.data)
    flops, runs = defaultdict[str, float](float), defaultdict[str, int](int)
    memory, disk = defaultdict[str, int](int), defaultdict[str, int](int)
    for config in all_configs():
        name = config.method.name
        runs[name] += 1
        flops[name] += counter.flops(config)
        memory[name] = max(memory[name], counter.memory(config))
        if config.save_weights != "none":
            disk[name] += 4 * counter.plan(config).trainable_parameters
    low, high = min(given.shares), max(given.shares)
    times = [f"{card}, {high:.0%} to {low:.0%} of its peak" for card in PEAK]
    print("| method | runs | EFLOP | GPU memory | disk | " + " | ".join(times) + " |")
    print("| --- " * (5 + len(times)) + "|")
    for name in [*runs, "all"]:
        done = [name] if name != "all" else list(runs)
        total = sum(flops[n] for n in done)
        hours = " | ".join(
            f"{duration(total / peak / high)} to {duration(total / peak / low)}"
            for peak in PEAK.values()
        )
        cells = f"| {name} | {sum(runs[n] for n in done)} | {total / 1e18:,.2f}"
        cells += f" | {human_bytes(max(memory[n] for n in done))}"
        print(f"{cells} | {human_bytes(sum(disk[n] for n in done))} | {hours} |")
    print()
    lengths = (f"{task} {mean:.1f}" for task, mean in counter.lengths.items())
    print(f"Mean tokens of a training row: {', '.join(lengths)}.")


if __name__ == "__main__":
    main()

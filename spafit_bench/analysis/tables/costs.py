"""The parameters table (counts) and the cost table (time, speed, memory, storage)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from spafit_bench.analysis.tables.cells import (
    Cell,
    Column,
    Measurement,
    ResultTable,
    Row,
    label_notes,
    mean_cell,
    measurement,
    sample_of,
)
from spafit_bench.analysis.tables.settings import RunGroup, Setting, TaskRuns
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import RunRecord

# Parameters


def parameters_table(group: RunGroup) -> ResultTable:
    """Count what each method trains; the head's size, and so the count, differs by task."""
    usual, *others = sizes = _head_sizes(group)
    rows = [
        Row(
            label=group.short(setting.label),
            name=setting.label,
            cells=(
                _count_cell(sizes[usual], runs, lambda run: run.trainable_parameters),
                _count_cell(sizes[usual], runs, lambda run: run.trainable_percent, _short),
                _count_cell(sizes[usual], runs, lambda run: run.base_parameters),
                *(
                    _count_cell(sizes[size], runs, lambda run: run.trainable_parameters)
                    for size in others
                ),
            ),
        )
        for setting, runs in group.rows.items()
    ]
    head, unit = _outputs(usual), "parameters"
    listed = "; ".join(
        f"{_outputs(size)}: {', '.join(task.title for task in tasks)}"
        for size, tasks in sizes.items()
    )
    return ResultTable(
        kind="parameters",
        title=f"Parameters: {group.model}, {group.data}",
        model=group.model,
        data=group.data,
        caption="What each method trains, adapters and classifier included.",
        columns=(
            Column(key="trainable", title="Trainable", subtitle=head, unit=unit),
            Column(key="percent", title="% of base", subtitle=head, unit="%"),
            Column(key="base", title="Base", subtitle=head, unit=unit),
            *(
                Column(
                    key=f"trainable_{size}_outputs",
                    title="Trainable",
                    subtitle=_outputs(size),
                    unit=unit,
                )
                for size in others
            ),
        ),
        rows=tuple(rows),
        notes=(
            *label_notes((row.label for row in group.rows), group),
            f"{listed}.",
            "% of base: trainable parameters over those of the base model with its head; adapters "
            "are not counted in the base.",
        ),
        measurements=tuple(_parameters_measurements(group)),
    )


def size_columns(group: RunGroup) -> tuple[Column, Column]:
    """Head the two columns that a scores table begins with."""
    usual = _outputs(next(iter(_head_sizes(group))))
    return (
        Column(key="trainable", title="Params (M)", subtitle=usual, unit="parameters"),
        Column(key="percent", title="%", subtitle="of base", unit="%"),
    )


def size_cells(group: RunGroup, runs: TaskRuns) -> tuple[Cell, Cell]:
    """Count what a row trains, with the classifier that most tasks have."""
    tasks = next(iter(_head_sizes(group).values()))
    return (
        _count_cell(tasks, runs, lambda run: run.trainable_parameters, lambda n: _short(n / 1e6)),
        _count_cell(tasks, runs, lambda run: run.trainable_percent, _short),
    )


def _head_sizes(group: RunGroup) -> dict[int, list[Task]]:
    """Part the tasks by outputs of their classifier, the size of most tasks first."""
    sizes: dict[int, list[Task]] = defaultdict(list)
    for task in group.tasks:
        sizes[task.num_labels].append(task)
    return dict(sorted(sizes.items(), key=lambda item: (-len(item[1]), item[0])))


def _outputs(size: int) -> str:
    return "1 output" if size == 1 else f"{size} labels"


def _count_cell(
    tasks: Sequence[Task],
    runs: TaskRuns,
    count: Callable[[RunRecord], float],
    text: Callable[[float], str] = "{:,.0f}".format,
) -> Cell:
    """Show a count; runs that disagree show as a range, never as a mean."""
    values = {count(run) for task in tasks for run in runs.get(task.name, ())}
    if not values:
        return Cell()
    low, high = text(min(values)), text(max(values))
    return Cell(
        value=min(values) if len(values) == 1 else None,
        text=low if low == high else f"{low} to {high}",
    )


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _parameters_measurements(group: RunGroup) -> Iterator[Measurement]:
    values: dict[tuple[str, str], Callable[[RunRecord], float]] = {
        ("trainable_parameters", "parameters"): lambda run: run.trainable_parameters,
        ("trainable_percent", "%"): lambda run: run.trainable_percent,
        ("base_parameters", "parameters"): lambda run: run.base_parameters,
    }
    for setting, cells in group.rows.items():
        for task, runs in cells.items():
            for what, value in values.items():
                yield measurement(setting, (task, ""), what, sample_of(runs, value))


# Cost


@dataclass(frozen=True)
class _Quantity:
    """One column of the cost table."""

    key: str
    """A field of the record."""
    title: str
    unit: str
    shown_unit: str
    scale: float = 1

    def of(self, run: RunRecord) -> float | None:
        value: float | None = getattr(run, self.key)
        return value

    def text(self, mean: float) -> str:
        return amount(mean * self.scale)


_QUANTITIES = (
    _Quantity("train_time_s", "Training", "s", "s"),
    _Quantity("train_tokens_per_s", "Train", "tokens/s", "tokens/s"),
    _Quantity("eval_tokens_per_s", "Eval", "tokens/s", "tokens/s"),
    _Quantity("peak_memory_bytes", "Memory", "bytes", "peak MB", 1e-6),
    _Quantity("energy_j", "Energy", "J", "kJ", 1e-3),
    _Quantity("stored_bytes", "Stored", "bytes", "MB", 1e-6),
)


def cost_table(group: RunGroup) -> ResultTable:
    """Compute the mean cost of each method on each task; runs on unlike machines stay apart."""
    machines = {machine_of(run) for run in group.records}
    energy = any(run.energy_j is not None for run in group.records)
    quantities = [q for q in _QUANTITIES if energy or q.key != "energy_j"]
    rows: list[Row] = []
    measurements: list[Measurement] = []
    for task in group.tasks:
        for setting, cells in group.rows.items():
            by_machine: dict[str, list[RunRecord]] = defaultdict(list)
            for run in cells.get(task.name, ()):
                by_machine[machine_of(run)].append(run)
            for machine, runs in by_machine.items():
                place = machine if len(machines) > 1 else ""
                after = f" · {place}" if place else ""
                label = group.short(setting.label) + after
                values = (Cell(value=len(runs), text=str(len(runs))), *_costs(runs, quantities))
                name = setting.label + after
                rows.append(Row(label=label, name=name, group=task.title, cells=values))
                text = ", ".join(filter(None, (setting.difference, place)))
                apart = replace(setting, difference=text)
                measurements += _cost_measurements(apart, task, runs)
    where = f" on {machines.pop()}" if len(machines) == 1 else ""
    return ResultTable(
        kind="cost",
        title=f"Cost: {group.model}, {group.data}",
        model=group.model,
        data=group.data,
        caption=f"Means over n seeds{where}.",
        columns=(
            Column(key="n", title="n", unit="seeds"),
            *(
                Column(key=q.key, title=q.title, subtitle=q.shown_unit, unit=q.unit)
                for q in quantities
            ),
        ),
        rows=tuple(rows),
        notes=(
            *label_notes((row.label for row in group.rows), group),
            *_cost_notes(group, rows, energy=energy),
        ),
        measurements=tuple(measurements),
    )


def machine_of(run: RunRecord) -> str:
    """Name what a run's time depends on: the devices, and on CPUs the threads of each process."""
    environment = run.environment
    several = f" ×{environment.world_size}" if environment.world_size > 1 else ""
    name = environment.device_name + several
    if environment.device.startswith("cuda"):
        return name + ", CUDA graphs" * bool(run.config.get("cuda_graphs"))
    threads = f"{environment.num_threads} thread{'s' * (environment.num_threads != 1)}"
    return f"{name}, {threads}"


def _costs(runs: Sequence[RunRecord], quantities: Sequence[_Quantity]) -> Iterator[Cell]:
    for quantity in quantities:
        cell = mean_cell(sample_of(runs, quantity.of), quantity.text)
        yield replace(cell, aside=f"n={cell.n}" if 0 < cell.n < len(runs) else "")


def amount(value: float) -> str:
    """Write a quantity with about three significant digits and no exponent."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.0995 else f"{value:.3f}"


def _cost_measurements(
    setting: Setting, task: Task, runs: Sequence[RunRecord]
) -> Iterator[Measurement]:
    for quantity in _QUANTITIES:
        if sample := sample_of(runs, quantity.of):
            yield measurement(setting, (task.name, ""), (quantity.key, quantity.unit), sample)


def _cost_notes(group: RunGroup, rows: Sequence[Row], *, energy: bool) -> Iterator[str]:
    yield (
        "Training: steps only, without evaluation and set-up. Tokens: real ones, no padding. "
        "Stored: what a task adds to the shared base model. 1 MB is 1,000,000 bytes."
    )
    if energy:
        yield (
            "Energy: what the machine's processors used while a run trained and predicted, other "
            "programs included; where the CPU has no counters, the GPU alone."
        )
    if any(run.environment.world_size > 1 for run in group.records):
        yield "Memory: that of the first process, if several processes shared a run (×)."
    yield "Spreads are in the CSV and JSON forms."
    if any(cell.value is None for row in rows for cell in row.cells):
        yield "—: not measured."

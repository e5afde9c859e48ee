"""The parameters table (counts) and the cost table (time, speed, memory, storage)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from spafit_bench.analysis.tables.cells import (
    Cell,
    Column,
    Measurement,
    ResultTable,
    Row,
    cell_of,
    measurement,
    sample_of,
    shorten_labels,
)
from spafit_bench.analysis.tables.settings import Cells, Group, Setting
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import RunRecord

# Parameters


def parameters_table(group: Group) -> ResultTable:
    """Count what each method trains; the head's size, and so the count, differs by task."""
    sizes = head_sizes(group)
    usual = next(iter(sizes))
    rows, notes = shorten_labels(
        [
            Row(
                label=setting.label,
                name=setting.label,
                cells=tuple(_count_cells(cells, sizes, usual)),
            )
            for setting, cells in group.rows.items()
        ]
    )
    unit = "parameters"
    columns = [
        Column(key="trainable", title="Trainable", subtitle=_outputs(usual), unit=unit),
        Column(key="percent", title="% of base", subtitle=_outputs(usual), unit="%"),
        Column(key="base", title="Base", subtitle=_outputs(usual), unit=unit),
    ]
    for size in list(sizes)[1:]:
        key = f"trainable_{size}_outputs"
        columns.append(Column(key=key, title="Trainable", subtitle=_outputs(size), unit=unit))
    return ResultTable(
        kind="parameters",
        title=f"Parameters: {group.model}, {group.data}",
        model=group.model,
        data=group.data,
        caption="What each method trains, adapters and classifier included.",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(*notes, *_parameters_notes(sizes)),
        measurements=tuple(_parameters_measurements(group)),
    )


def head_sizes(group: Group) -> dict[int, list[Task]]:
    """Part the tasks by outputs of their classifier, the size of most tasks first."""
    sizes: dict[int, list[Task]] = defaultdict(list)
    for task in group.tasks:
        sizes[task.num_labels].append(task)
    return dict(sorted(sizes.items(), key=lambda item: (-len(item[1]), item[0])))


def size_columns(group: Group) -> tuple[Column, Column]:
    """Head the two columns that a scores table begins with."""
    usual = _outputs(next(iter(head_sizes(group))))
    return (
        Column(key="trainable", title="Params (M)", subtitle=usual, unit="parameters"),
        Column(key="percent", title="%", subtitle="of base", unit="%"),
    )


def size_cells(group: Group, cells: Cells) -> tuple[Cell, Cell]:
    """Count what a row trains, with the classifier that most tasks have."""
    tasks = next(iter(head_sizes(group).values()))
    runs = [run for task in tasks for run in cells.get(task.name, ())]
    return (
        count_cell({run.trainable_parameters for run in runs}, lambda n: _short(n / 1e6)),
        count_cell({run.trainable_percent for run in runs}, _short),
    )


def _outputs(size: int) -> str:
    return "1 output" if size == 1 else f"{size} labels"


def _count_cells(cells: Cells, sizes: Mapping[int, Sequence[Task]], usual: int) -> Iterator[Cell]:
    def runs(size: int) -> list[RunRecord]:
        return [run for task in sizes[size] for run in cells.get(task.name, ())]

    yield count_cell({run.trainable_parameters for run in runs(usual)}, "{:,.0f}".format)
    yield count_cell({run.trainable_percent for run in runs(usual)}, _short)
    yield count_cell({run.base_parameters for run in runs(usual)}, "{:,.0f}".format)
    for size in list(sizes)[1:]:
        yield count_cell({run.trainable_parameters for run in runs(size)}, "{:,.0f}".format)


def count_cell(values: set[int] | set[float], text: Callable[[float], str]) -> Cell:
    """Show a count; runs that disagree show as a range, never as a mean."""
    if not values:
        return Cell()
    low, high = text(min(values)), text(max(values))
    return Cell(
        value=min(values) if len(values) == 1 else None,
        text=low if low == high else f"{low} to {high}",
    )


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _parameters_notes(sizes: Mapping[int, Sequence[Task]]) -> Iterator[str]:
    listed = "; ".join(
        f"{_outputs(size)}: {', '.join(task.title for task in tasks)}"
        for size, tasks in sizes.items()
    )
    yield f"{listed}."
    yield (
        "% of base: trainable parameters over those of the base model with its head; adapters "
        "are not counted in the base."
    )


def _parameters_measurements(group: Group) -> Iterator[Measurement]:
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


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    """One column of the cost table."""

    key: str
    title: str
    unit: str
    shown_unit: str
    scale: float
    of: Callable[[RunRecord], float | None]


_QUANTITIES = (
    _Quantity(
        key="train_time_s",
        title="Training",
        unit="s",
        shown_unit="s",
        scale=1,
        of=lambda run: run.train_time_s,
    ),
    _Quantity(
        key="train_tokens_per_s",
        title="Train",
        unit="tokens/s",
        shown_unit="tokens/s",
        scale=1,
        of=lambda run: run.train_tokens_per_s,
    ),
    _Quantity(
        key="eval_tokens_per_s",
        title="Eval",
        unit="tokens/s",
        shown_unit="tokens/s",
        scale=1,
        of=lambda run: run.eval_tokens_per_s,
    ),
    _Quantity(
        key="peak_memory_bytes",
        title="Memory",
        unit="bytes",
        shown_unit="peak MB",
        scale=1e-6,
        of=lambda run: run.peak_memory_bytes,
    ),
    _Quantity(
        key="energy_j",
        title="Energy",
        unit="J",
        shown_unit="kJ",
        scale=1e-3,
        of=lambda run: run.energy_j,
    ),
    _Quantity(
        key="stored_bytes",
        title="Stored",
        unit="bytes",
        shown_unit="MB",
        scale=1e-6,
        of=lambda run: run.stored_bytes,
    ),
)


def cost_table(group: Group) -> ResultTable:
    """Compute the mean cost of each method on each task; runs on unlike machines stay apart."""
    machines = {_machine(run) for run in group.records}
    quantities = _measured_quantities(group)
    measured: list[tuple[Row, list[Measurement]]] = []
    for task in group.tasks:
        for setting, cells in group.rows.items():
            for machine, runs in _by_machine(cells.get(task.name, ())).items():
                name = setting.label if len(machines) == 1 else f"{setting.label} · {machine}"
                place = "" if len(machines) == 1 else machine
                cells_of_row = _cost_cells(runs, quantities)
                row = Row(label=name, name=name, group=task.title, cells=cells_of_row)
                measured.append((row, list(_cost_measurements(setting, task, runs, place))))
    rows, notes = shorten_labels([row for row, _ in measured])
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
        notes=(*notes, *_cost_notes(group, rows, quantities)),
        measurements=tuple(line for _, lines in measured for line in lines),
    )


def _measured_quantities(group: Group) -> tuple[_Quantity, ...]:
    """Leave out energy where no machine told it."""
    told = any(run.energy_j is not None for run in group.records)
    return tuple(q for q in _QUANTITIES if told or q.key != "energy_j")


def _machine(run: RunRecord) -> str:
    """Name what a run's time depends on: the devices, and on CPUs the threads of each process."""
    environment = run.environment
    several = f" ×{environment.world_size}" if environment.world_size > 1 else ""
    name = environment.device_name + several
    if environment.device.startswith("cuda"):
        return name + ", CUDA graphs" * bool(run.config.get("cuda_graphs"))
    threads = f"{environment.num_threads} thread{'s' * (environment.num_threads != 1)}"
    return f"{name}, {threads}"


def _by_machine(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    machines: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        machines[_machine(run)].append(run)
    return machines


def _cost_cells(runs: Sequence[RunRecord], quantities: Sequence[_Quantity]) -> tuple[Cell, ...]:
    cells = [Cell(value=len(runs), text=str(len(runs)))]
    for quantity in quantities:
        cell = cell_of(sample_of(runs, quantity.of), _scaled(quantity.scale))
        few = f"n={cell.n}" if 0 < cell.n < len(runs) else ""
        cells.append(replace(cell, aside=few))
    return tuple(cells)


def _scaled(scale: float) -> Callable[[float], str]:
    return lambda mean: amount(mean * scale)


def amount(value: float) -> str:
    """Write a quantity with about three significant digits and no exponent."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.0995 else f"{value:.3f}"


def _cost_measurements(
    setting: Setting, task: Task, runs: Sequence[RunRecord], place: str
) -> Iterator[Measurement]:
    text = ", ".join(part for part in (setting.difference, place) if part)
    apart = replace(setting, difference=text)
    for quantity in _QUANTITIES:
        if sample := sample_of(runs, quantity.of):
            yield measurement(apart, (task.name, ""), (quantity.key, quantity.unit), sample)


def _cost_notes(
    group: Group, rows: Sequence[Row], quantities: Sequence[_Quantity]
) -> Iterator[str]:
    yield (
        "Training: steps only, without evaluation and set-up. Tokens: real ones, no padding. "
        "Stored: what a task adds to the shared base model. 1 MB is 1,000,000 bytes."
    )
    if any(quantity.key == "energy_j" for quantity in quantities):
        yield (
            "Energy: what the machine's processors used while a run trained and predicted, other "
            "programs included; where the CPU has no counters, the GPU alone."
        )
    if any(run.environment.world_size > 1 for run in group.records):
        yield "Memory: of the first process, where several shared a run (×)."
    yield "Spreads are in the CSV and JSON forms."
    if any(cell.value is None for row in rows for cell in row.cells):
        yield "—: not measured."

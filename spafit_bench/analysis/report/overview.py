"""The matrix at a glance: which runs there are, how they ended, and which are missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape

from spafit_bench.analysis.report.runs import Anchors
from spafit_bench.analysis.tables.settings import RunGroup, tasks_of
from spafit_bench.results.record import RunRecord

STATES = {
    "done": ("", "done"),
    "collapsed": ("†", "done, but collapsed: every example gets the same prediction"),
    "failed": ("✗", "failed"),
    "diverged": ("∞", "diverged"),
    "interrupted": ("…", "interrupted"),
    "missing": ("?", "missing: most cells of this table have this seed"),
}
"""State of a run -> sign beside its seed, meaning."""
Cell = dict[int, list[RunRecord]]
"""Seed -> its runs."""


def state_of(run: RunRecord) -> str:
    """Say how a run ended: its status, or `collapsed`."""
    return "collapsed" if run.status == "done" and run.collapsed else run.status


def overview(group: RunGroup, anchors: Anchors) -> str:
    """Write tasks by methods, a box per seed."""
    rows = _rows(group)
    titles = {task.name: task.title for task in tasks_of((*group.records, *group.left_out))}
    tasks = list(titles)
    seeds = _usual_seeds([cells.get(task, {}) for cells in rows.values() for task in tasks])
    heads = "".join(
        f'<th scope="col" class="text">{escape(title)}</th>' for title in titles.values()
    )
    lines = [
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{_cell(cells.get(task, {}), seeds, anchors)}</td>" for task in tasks)
        + "</tr>"
        for label, cells in rows.items()
    ]
    used = {state for cells in rows.values() for task in tasks for state in _states(cells, task)}
    if any(set(seeds) - set(cells.get(task, {})) for cells in rows.values() for task in tasks):
        used.add("missing")
    keys = "".join(
        f'<li><span class="seed {state}">0{sign}</span> {escape(meaning)}</li>'
        for state, (sign, meaning) in STATES.items()
        if state in used
    )
    return "\n".join(
        [
            "<h3>At a glance</h3>",
            f'<ul class="keys" aria-label="Signs">{keys}</ul>',
            '<div class="scroll" role="region" tabindex="0" aria-label="Runs by method and task">',
            '<table class="glance"><caption>A box is a run, named by its seed; it leads to the '
            "run.</caption>",
            f'<thead><tr><th scope="col" class="text">Method</th>{heads}</tr></thead>',
            "<tbody>",
            *lines,
            "</tbody></table></div>",
        ]
    )


def _usual_seeds(cells: Sequence[Cell]) -> list[int]:
    """Seeds that half of the cells or more have: they are missed where they lack."""
    counts = Counter(seed for cell in cells for seed in cell)
    return sorted(seed for seed, count in counts.items() if 2 * count >= len(cells))


def _rows(group: RunGroup) -> Mapping[str, Mapping[str, Cell]]:
    """Arrange finished runs by row of the table, others by the row that their method has."""
    rows: dict[str, dict[str, Cell]] = {}
    labels: dict[str, list[str]] = defaultdict(list)
    for setting, cells in group.rows.items():
        labels[setting.method].append(setting.label)
        rows[setting.label] = {
            task: {run.seed: [run] for run in runs} for task, runs in cells.items()
        }
    for run in group.left_out:
        found = labels[run.method]
        label = found[0] if len(found) == 1 else f"{run.method} · no result"
        cell = rows.setdefault(label, {}).setdefault(run.task, {})
        cell.setdefault(run.seed, []).append(run)
    return rows


def _states(cells: Mapping[str, Cell], task: str) -> set[str]:
    return {state_of(run) for runs in cells.get(task, {}).values() for run in runs}


def _cell(cell: Cell, seeds: Sequence[int], anchors: Anchors) -> str:
    boxes = []
    for seed in sorted({*seeds, *cell}):
        for run in cell.get(seed, []):
            state = state_of(run)
            boxes.append(
                f'<a class="seed {state}" href="#{anchors[run]}" '
                f'title="seed {seed}: {STATES[state][1]}">{seed}{STATES[state][0]}</a>'
            )
        if seed not in cell:
            sign, _ = STATES["missing"]
            boxes.append(f'<span class="seed missing" title="seed {seed}: missing">{seed}{sign}'
                         "</span>")  # fmt: skip
    return "".join(boxes)

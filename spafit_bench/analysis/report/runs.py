"""Every run: a line of a table, and all that its record says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from spafit_bench.analysis.report.charts import chart, sparkline
from spafit_bench.analysis.tables.costs import amount
from spafit_bench.analysis.tables.settings import value_text
from spafit_bench.data.load import HOLDOUT
from spafit_bench.results.record import Environment, Evaluation, RunRecord

_HEADS = (
    *("Run", "Task", "Method", "Seed", "LR", "Status", "Score", "Trained", "% of base"),
    *("Training", "Dev score"),
)
_TEXT = {"Run", "Task", "Method", "Status"}
_MOST_EVALUATIONS = 40
Pairs = Sequence[tuple[str, str]]


class Anchors:
    """Names in the page of runs and of the environments that they share."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self._runs = {run.run_id: f"run-{n}" for n, run in enumerate(records, start=1)}
        self.environments: dict[str, Environment] = {}
        """Anchor -> an environment, its command left out."""
        self._of_run: dict[str, str] = {}
        known: dict[str, str] = {}
        for run in records:
            shared = run.environment.model_copy(update={"command": ""})
            key = shared.model_dump_json()
            anchor = known.setdefault(key, f"environment-{len(known) + 1}")
            self.environments[anchor] = shared
            self._of_run[run.run_id] = anchor

    def __getitem__(self, run: RunRecord) -> str:
        return self._runs[run.run_id]

    def environment(self, run: RunRecord) -> str:
        """Anchor of the environment of a run."""
        return self._of_run[run.run_id]


def run_table(records: Sequence[RunRecord], anchors: Anchors) -> str:
    """Write one line per run, with what a reader may filter it by."""
    heads = "".join(
        f'<th scope="col"{" class=text" if name in _TEXT else ""}>{name}</th>' for name in _HEADS
    )
    selects = "".join(
        f'<label>{name}<select data-column="{_HEADS.index(name)}"><option value="">all</option>'
        "</select></label>"
        for name in ("Task", "Method", "Status")
    )
    return "\n".join(
        [
            '<section id="runs"><h2>Runs</h2>',
            '<form class="filters" hidden role="search" aria-label="Filter runs">'
            '<label>Words<input name="words" type="search" placeholder="rte spafit"></label>'
            f'{selects}<output name="count" aria-live="polite"></output></form>',
            '<div class="scroll" role="region" tabindex="0" aria-label="Every run">',
            '<table id="run-table"><caption>LR: learning rate. Score: the chosen evaluation\'s, '
            "times 100. Training: seconds of steps only. Dev score: over the evaluations. A run's "
            "name leads to its whole record.</caption>",
            f"<thead><tr>{heads}</tr></thead><tbody>",
            *(_line(run, anchors) for run in records),
            "</tbody></table></div></section>",
        ]
    )


def status_text(run: RunRecord) -> str:
    """Say how a run ended and what is special about it."""
    facts: list[str] = [run.status]
    facts += ["collapsed"] * (run.collapsed and run.status == "done")
    facts += ["not official data"] * (not run.official_split)
    facts += [] if run.train_limit is None else [f"first {run.train_limit:,} examples"]
    facts += ["best evaluation"] * (run.select == "best")
    facts += ["trial on held-out train"] * (run.holdout is not None)
    return ", ".join(facts)


def _line(run: RunRecord, anchors: Anchors) -> str:
    tone = "warn" if run.collapsed else "ok" if run.status == "done" else "bad"
    values = scores(run)
    curve = sparkline(values, f"{values[0]:.2f} to {values[-1]:.2f}") if values else "—"
    title = run.task_facts.title
    rate = run.config.get("train", {}).get("learning_rate")
    cells = [
        f'<td class="text">{escape(title)}</td>',
        f'<td class="text">{escape(run.method)}</td>',
        f"<td>{run.seed}</td>",
        f"<td>{'—' if rate is None else value_text(rate)}</td>",
        f'<td class="text"><span class="state {tone}">{escape(status_text(run))}</span></td>',
        f"<td>{_percent(run.score)}</td>",
        f"<td>{run.trainable_parameters:,}</td>",
        f"<td>{run.trainable_percent:.3g}</td>",
        f"<td>{'—' if run.train_time_s is None else amount(run.train_time_s)}</td>",
        f'<td data-value="{values[-1] if values else ""}">{curve}</td>',
    ]
    link = f'<a href="#{anchors[run]}">{escape(run.run_id)}</a>'
    return f'<tr><th scope="row">{link}</th>{"".join(cells)}</tr>'


def scores(run: RunRecord) -> list[float]:
    """Score times 100 at each evaluation."""
    task = run.task_facts
    if run.holdout is not None:
        task = replace(task, dev_splits=(HOLDOUT,))
    found = [task.score(e.metrics) for e in run.evaluations]
    return [100 * value for value in found if value is not None]


def _percent(score: float | None) -> str:
    return "—" if score is None else f"{100 * score:.2f}"


def run_details(records: Sequence[RunRecord], anchors: Anchors) -> str:
    """Write everything that the records say, a part per run that opens."""
    return "\n".join(
        [
            '<section id="details"><h2>Each run</h2>',
            *(_details(run, anchors) for run in records),
            "</section>",
        ]
    )


def _details(run: RunRecord, anchors: Anchors) -> str:
    title = f"{run.run_id}: {status_text(run)}"
    score = f", {_percent(run.score)}" if run.score is not None else ""
    parts = [
        _definitions(list(_facts(run))),
        f'<p class="note">Environment: <a href="#{anchors.environment(run)}">'
        f"{escape(run.environment.device_name)}, {escape(run.environment.precision)}</a></p>",
        _curves(run),
        _evaluations(run.evaluations),
        _strata(run),
        "<h3>Configuration</h3>",
        f"<pre>{escape(chr(10).join(settings_lines(run.config)))}</pre>",
        f"<h3>Made by</h3>\n<pre>{escape(run.environment.command)}</pre>",
    ]
    inside = "\n".join(part for part in parts if part)
    return (
        f"<details><summary>{escape(title + score)}</summary>"
        f'<div id="{anchors[run]}">\n{inside}\n</div></details>'
    )


def _facts(run: RunRecord) -> Iterator[tuple[str, str]]:
    if run.reason:
        yield "Reason", run.reason
    for split, metrics in run.metrics.items():
        yield split, ", ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())
    for split, metrics in run.majority.items():
        said = ", ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items())
        yield f"majority class, {split}", said
    for split, found in (run.confusion or {}).items():
        for name, of in found.scores.items():
            said = f"precision {100 * of.precision:.2f}, recall {100 * of.recall:.2f}"
            counts = found.counts[found.classes.index(name)]
            told = ", ".join(f"{n:,} as {c}" for c, n in zip(found.classes, counts, strict=True))
            yield f"{name}, {split}", f"{said}, F1 {100 * of.f1:.2f}; predicted {told}"
    share = f"{run.trainable_percent:.4g} %"
    yield "Trained", f"{run.trainable_parameters:,} of {run.base_parameters:,} ({share})"
    yield "Started", run.started_at
    yield "Wall time", f"{run.wall_time_s:,.1f} s"
    if run.train_tokens_per_s:
        yield "Training", f"{run.train_tokens_per_s:,.0f} tokens/s"
    if run.peak_memory_bytes:
        yield "Peak memory", f"{run.peak_memory_bytes / 1e6:,.0f} MB"
    if run.stored_bytes:
        yield "Stored", f"{run.stored_bytes / 1e6:,.2f} MB"
    yield "Data", f"{run.data.source}, {run.data.official_basis}; {run.data.fingerprint[:16]}"
    yield "Weights", f"{run.model}, {run.weights.architecture}; {run.weights.weights_sha256[:16]}"
    for warning in run.warnings:
        yield "Warning", warning


def _definitions(pairs: Pairs) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl>{rows}</dl>"


def _curves(run: RunRecord) -> str:
    losses = [e.train_loss for e in run.evaluations if e.train_loss is not None]
    named = (("Dev score", scores(run)), ("Training loss", losses))
    drawn = [chart(values, title) for title, values in named if len(values) > 1]
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _evaluations(evaluations: Sequence[Evaluation]) -> str:
    """List the evaluations; of very many, the last ones."""
    if not evaluations:
        return ""
    shown = evaluations[-_MOST_EVALUATIONS:]
    names = [(s, m) for s, found in shown[-1].metrics.items() for m in found]
    columns = ["Epoch", "Step", "Loss", *(f"{split} {metric}" for split, metric in names)]
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    lines = []
    for e in shown:
        values = [e.metrics.get(split, {}).get(metric) for split, metric in names]
        loss = "—" if e.train_loss is None else f"{e.train_loss:.4f}"
        cells = [f"{e.epoch:g}", str(e.step), loss, *(_percent(value) for value in values)]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    left = len(evaluations) - len(shown)
    caption = "Evaluations" + (f", the first {left} left out" if left else "")
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _strata(run: RunRecord) -> str:
    if not run.strata:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{escape(row.stratum)}</th><td class="text">{escape(row.treatment)}'
        f"</td><td>{row.trainable:,}</td><td>{row.parameters:,}</td></tr>"
        for row in run.strata
    )
    return (
        '<div class="scroll"><table><caption>What trained</caption><thead><tr>'
        '<th scope="col" class="text">Layers</th><th scope="col" class="text">Treatment</th>'
        '<th scope="col">Trained</th><th scope="col">Of</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def settings_lines(settings: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Write a configuration with one setting per line; what is unset is left out."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from settings_lines(value, indent + "  ")
        elif value is not None:
            yield f"{indent}{key}: {value}"

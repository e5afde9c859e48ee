"""The README.md of an exported model: what it is, how good, of what data, and how it was made."""

from __future__ import annotations

import shlex
from pathlib import Path, PurePath
from typing import Any

from spafit_bench.base.escaping import markdown, markdown_code, printable
from spafit_bench.data.tasks import Task
from spafit_bench.results.record import RunRecord

HUB_DATA = "nyu-mll/glue"

_HUB_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr"}
"""Names of metrics on the hub, where they are not ours."""


def base_name(record: RunRecord) -> str:
    """Name the base model, without the folder that it was in."""
    name = str(record.config.get("model", record.model))
    return record.model if Path(name).is_dir() or name.startswith(("/", ".", "~")) else name


def is_hub_base(record: RunRecord) -> bool:
    """Tell whether the base model came from the hub."""
    return record.weights.revision is not None


def model_card(record: RunRecord, usage: str, notes: tuple[str, ...] = ()) -> str:
    """Write a model card.

    Args:
        record: the run.
        usage: a section that says how to load this form of export.
        notes: further things that a user should know.

    Returns:
        Markdown that begins with the hub's YAML metadata, `model-index` included.
    """
    import yaml

    task = record.task_facts
    metadata = yaml.safe_dump(_metadata(record, task), sort_keys=False, allow_unicode=True)
    sections = [
        f"# {markdown(f'{base_name(record)}, {task.title}, {record.method}')}",
        _summary(record, task),
        _scores(record, task),
        usage,
        _method(record),
        _provenance(record),
        _caveats(record, task, notes),
    ]
    return f"---\n{metadata}---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(record: RunRecord, task: Task) -> dict[str, Any]:
    tags = ["spafit-bench"]
    if task.in_glue:
        tags.append("glue" if record.official_split else "not-official-glue")
    body: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": tags,
    }
    if is_hub_base(record):
        body["base_model"] = base_name(record)
    if task.in_glue and record.official_split:
        body |= {"language": "en", "datasets": [HUB_DATA]}
    body["metrics"] = [_HUB_METRICS.get(metric, metric) for metric in task.metrics]
    results = [_result(record, task, split) for split in record.metrics]
    body["model-index"] = [{"name": record.run_id, "results": results}]
    return body


def _result(record: RunRecord, task: Task, split: str) -> dict[str, Any]:
    return {
        "task": {"type": "text-classification", "name": task.title},
        "dataset": {
            "type": HUB_DATA if task.in_glue and record.official_split else "other",
            "name": data_name(record, task),
            "config": task.name,
            "split": split,
        },
        "metrics": [
            {
                "type": _HUB_METRICS.get(metric, metric),
                "value": value,
                "name": f"{metric} ({split}, {record.select} evaluation)",
                "verified": False,
            }
            for metric, value in record.metrics[split].items()
        ],
    }


def data_name(record: RunRecord, task: Task) -> str:
    """Name the data honestly: GLUE only where the split is the official one."""
    limited = "" if record.train_limit is None else f", first {record.train_limit} train examples"
    source = PurePath(record.data.source).name or record.data.source
    if not task.in_glue:
        return f"{task.title} ({source}){limited}"
    if record.official_split:
        return f"GLUE {task.title}{limited}"
    return f"{task.title}-shaped data, not official GLUE ({source}){limited}"


def _summary(record: RunRecord, task: Task) -> str:
    outputs = "the classes " + ", ".join(map(markdown_code, task.labels))
    if task.is_regression:
        bounds = " from {:g} to {:g}".format(*task.label_range) if task.label_range else ""
        outputs = f"one score{bounds}"
    columns = " and ".join(map(markdown_code, task.inputs))
    return (
        f"{markdown(f'{base_name(record)} fine-tuned on {data_name(record, task)}')} with "
        f"{markdown_code(record.method)}. "
        f"It takes {columns} and gives {outputs}. Texts were cut to "
        f"{record.config['train']['max_length']} tokens."
    )


def _scores(record: RunRecord, task: Task) -> str:
    official = "the official" if record.official_split else "data that is **not** the official"
    data = f"the dev set of {markdown(data_name(record, task))}"
    if task.in_glue:
        data = f"{official} GLUE split of {task.title} ({markdown(record.data.official_basis)})"
    rows = [
        f"| {markdown(split)} | {markdown(metric)} | {100 * value:.2f} | "
        f"{100 * record.majority.get(split, {}).get(metric, float('nan')):.2f} |"
        for split, values in record.metrics.items()
        for metric, value in values.items()
    ]
    return "\n".join(
        [
            "## Scores",
            "",
            f"On {data}, {record.select} evaluation, times 100, beside a constant prediction.",
            "",
            "| split | metric | this model | majority |",
            "| --- | --- | ---: | ---: |",
            *rows,
        ]
    )


def _method(record: RunRecord) -> str:
    rows = [
        f"| {markdown(row.stratum)} | {markdown_code(row.treatment)} | {row.trainable:,} | "
        f"{row.parameters:,} |"
        for row in record.strata
    ]
    return "\n".join(
        [
            "## Method",
            "",
            markdown_code(record.config["method"]["spec"]),
            "",
            f"{record.trainable_parameters:,} of {record.base_parameters:,} parameters train "
            f"({record.trainable_percent:.3f} %, adapters not in the denominator).",
            "",
            "| stratum | treatment | trainable | parameters |",
            "| --- | --- | ---: | ---: |",
            *rows,
        ]
    )


def _provenance(record: RunRecord) -> str:
    environment, train = record.environment, record.config["train"]
    revision = f", revision {record.weights.revision}" if record.weights.revision else ""
    settings = ", ".join(f"{key} {value}" for key, value in train.items() if value is not None)
    packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    return "\n".join(
        [
            "## How it was made",
            "",
            f"    {printable(' '.join(_command(environment.command).splitlines()))}",
            "",
            f"- Run {markdown_code(record.run_id)}, seed {record.seed}, started "
            f"{markdown(record.started_at)}.",
            f"- Base model {markdown(base_name(record) + revision)}, weights SHA-256 "
            f"`{record.weights.weights_sha256}`.",
            f"- Data SHA-256 `{record.data.fingerprint}`; rows: "
            + ", ".join(f"{markdown(name)} {rows}" for name, rows in record.data.rows.items())
            + ".",
            f"- Training: {markdown(settings)}.",
            f"- {markdown(f'{environment.precision} on {environment.device_name}; {packages}')}.",
        ]
    )


def _command(command: str) -> str:
    """Leave out the folder that the program was in."""
    try:
        words = shlex.split(command)
    except ValueError:  # an edited record: no shell could have run it
        return command
    return shlex.join([PurePath(words[0]).name, *words[1:]]) if words else command


def _caveats(record: RunRecord, task: Task, notes: tuple[str, ...]) -> str:
    lines = list(notes)
    if record.collapsed:
        lines.append("**Collapsed: on a dev set it predicts one constant.**")
    if task.in_glue and not record.official_split:
        lines.append("The data is not official GLUE: never report these scores as GLUE scores.")
    if record.train_limit is not None:
        lines.append(f"Trained on the first {record.train_limit} examples only.")
    if record.select == "best":
        lines.append("The evaluation was chosen on the dev set, so its scores are optimistic.")
    if record.environment.precision != "fp32":
        lines.append(
            f"It was evaluated in {record.environment.precision} and is stored in fp32: outputs "
            "differ by rounding."
        )
    if task.note:
        lines.append(f"About the task: {task.note}.")
    lines += map(markdown, record.warnings)
    lines.append("One seed says little about a method: compare several.")
    return "\n".join(["## What to know", "", *(f"- {line}" for line in lines)])

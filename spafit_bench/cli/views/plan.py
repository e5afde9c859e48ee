"""A plan as a picture: which tensor of which layer is treated how."""

from __future__ import annotations

import io
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spafit_bench.base.escaping import printable
from spafit_bench.base.units import human_bytes
from spafit_bench.methods.architectures import Architecture
from spafit_bench.methods.plan import Plan, PlannedTensor
from spafit_bench.models.checkpoint import Checkpoint
from spafit_bench.models.engines import engine_name
from spafit_bench.running.estimate import Pass, Shape, activation_bytes

_STYLES = {"·": "dim", "b": "cyan", "L": "green", "F": "red"}


BATCH = (32, 128, 2)
"""Examples, tokens each and bytes of an element for the estimate of activation memory."""


def plan_json(plan: Plan, checkpoint: Checkpoint, num_labels: int) -> dict[str, Any]:
    """Return the counts, and every stratum and layer, for machines."""
    batch_size, length, width = BATCH
    at = Pass(batch_size, length, width, engine_name("auto", checkpoint.config, plan))
    return {
        "method": plan.method.name,
        "spec": plan.method.spec,
        "model": checkpoint.short_name,
        "num_labels": num_labels,
        "num_layers": plan.num_layers,
        "trainable_parameters": plan.trainable_parameters,
        "base_parameters": plan.base_parameters,
        "trainable_percent": plan.trainable_percent,
        "stored_bytes": 4 * plan.trainable_parameters,
        "optimizer_bytes": 8 * plan.trainable_parameters,
        "activation_bytes": activation_bytes(plan, Shape.of(checkpoint.config), at),
        "activation_batch": {"batch_size": batch_size, "length": length, "element_bytes": width},
        "engine": at.engine,
        "strata": [
            {
                "stratum": name,
                "treatment": plan.treatment_of(name),
                "parameters": sum(t.num_parameters for t in plan.tensors if t.stratum == name),
                "trainable": sum(t.num_trainable for t in plan.tensors if t.stratum == name),
            }
            for name in plan.stratum_names()
        ],
        "layers": [
            {"layer": layer, "trainable": sum(t.num_trainable for t in _layer(plan, layer))}
            for layer in range(plan.num_layers)
        ],
        "fresh_tensors": list(plan.fresh),
        "warnings": list(plan.warnings),
    }


def _layer(plan: Plan, layer: int) -> list[PlannedTensor]:
    return [tensor for tensor in plan.tensors if tensor.place.layer == layer]


def plan_picture(plan: Plan, checkpoint: Checkpoint, num_labels: int) -> str:
    """Draw the plan for a terminal; the letters carry it where there is no colour."""
    numbers = plan_json(plan, checkpoint, num_labels)
    architecture, model = checkpoint.architecture, checkpoint.short_name
    outputs = "1 output" if num_labels == 1 else f"{num_labels} labels"
    title = f"{plan.method.name} on {model} ({plan.num_layers} layers, {outputs})"
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=sys.stdout.isatty(),
        width=max(80, Console().width),
        highlight=False,
    )
    console.print(Text(printable(title), style="bold"))
    if plan.method.name != plan.method.spec:
        console.print(Text(printable(plan.method.spec)))
    console.print(_grid(plan, architecture))
    console.print(
        "· frozen  b bias trains  L LoRA of the given rank  F trains in full  LN norm",
        style="dim",
    )
    console.print(_strata(numbers["strata"]), soft_wrap=True)
    trainable, base = plan.trainable_parameters, plan.base_parameters
    console.print(
        Text(
            f"trainable {trainable:,} of {base:,} = {plan.trainable_percent:.3f} % "
            "(of the base, without adapters)",
            style="bold",
        )
    )
    console.print(
        f"stored per task   {human_bytes(4 * trainable)} in fp32, {human_bytes(2 * trainable)} in "
        f"bf16\noptimizer state   {human_bytes(numbers['optimizer_bytes'])}\nactivations       "
        f"about {human_bytes(numbers['activation_bytes'])} for {BATCH[0]} x {BATCH[1]} bf16 tokens"
    )
    if architecture.note:
        console.print(Text(f"note: {architecture.note}"))
    return out.getvalue()


def _grid(plan: Plan, architecture: Architecture) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("layer", justify="right")
    names = {"attention_output": "attn.out", "intermediate": "interm."}
    columns = [(names.get(m.name, m.name), m.module) for m in architecture.matrices]
    groups = {"attention": "LN attn", "ffn": "LN ffn"}
    columns += [(groups[n.group], n.module) for n in architecture.norms]
    present = {tensor.place.module for tensor in plan.tensors}
    columns = [column for column in columns if column[1] in present]
    for title, _ in columns:
        table.add_column(title, justify="center")
    table.add_column("trainable", justify="right")
    for layer in range(plan.num_layers):
        tensors = _layer(plan, layer)
        cells = [_cell([t for t in tensors if t.place.module == module]) for _, module in columns]
        count = sum(tensor.num_trainable for tensor in tensors)
        table.add_row(str(layer), *cells, f"{count:,}")
    return table


def _cell(tensors: list[PlannedTensor]) -> Text:
    """Draw what happens to one module of one layer."""
    if not tensors:
        return Text(" ")
    lora = next((t.lora for t in tensors if t.lora), None)
    bias = any(t.trains and t.place.is_bias for t in tensors)
    if all(t.trains for t in tensors):
        mark = "b" if all(t.place.is_bias for t in tensors) else "F"
    elif lora:
        mark = f"L{lora.rank}" + ("+b" if bias else "")
    else:
        mark = "b" if bias else "·"
    return Text(mark, style=_STYLES[mark[0]])


def _strata(rows: list[dict[str, Any]]) -> Text:
    """List the strata, the treatment last because it may be long."""
    lines = [f"{'stratum':<13}{'trainable':>12}{'of':>13}  treatment"]
    for row in rows:
        name = f"layers {row['stratum']}" if row["stratum"][0].isdigit() else row["stratum"]
        counts = f"{row['trainable']:>12,}{row['parameters']:>13,}"
        lines.append(f"{name:<13}{counts}  {row['treatment']}")
    return Text(printable("\n".join(lines)))

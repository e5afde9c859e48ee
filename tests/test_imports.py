"""Who may import whom: the half that computes and the half that reads results stay apart."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import spafit_bench

PACKAGE = Path(spafit_bench.__file__).parent
MEETING = {
    "cli", "command_line", "commands", "executors", "forecast", "launch", "matrix", "progress",
    "ray_executor", "ray_node", "requests", "restore", "run", "sweep_view", "worker",
}  # fmt: skip
"""Where the halves meet: orchestration and views."""
COMPUTES = {
    "adapt", "architectures", "array_cache", "budget", "checkpoint", "config", "data",
    "data_check", "distributed", "doctor", "encoding", "energy", "engines", "environment",
    "estimate", "evaluation", "execute", "forgetting", "fused", "glue_metric", "hub",
    "layer_groups", "libraries", "lora", "memory", "methods", "movement", "native_settings",
    "numerics", "plan", "prefix_cache", "prepare", "ragged", "readers", "snapshot", "sources",
    "stored_weights", "sweep", "sweep_values", "task_files", "tasks", "tensorboard_log",
    "token_cache", "train", "treatments",
}  # fmt: skip
READS = {
    "checksums", "claims", "cleanup", "compare", "compare_inputs", "compare_measure",
    "compare_view", "damage", "durable", "errors", "events", "glue_server", "lookup", "merge",
    "owner", "ray_mailbox", "record", "references", "run_folder", "run_view", "seed_tests",
    "shipped", "stats", "store", "submit", "task_files", "tasks", "treatments", "units",
    "weighted_metrics",
}  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name and parts[0] != "configs":
            found[name] = path
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a module imports when it runs, at any depth; types alone are left out."""
    return frozenset(_names(ast.parse(path.read_text()).body))


def _names(body: list[ast.stmt]) -> list[str]:
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import):
                names += [alias.name for alias in inner.names]
            elif isinstance(inner, ast.ImportFrom) and inner.module:
                assert inner.level == 0, "imports are absolute"
                names += [inner.module, *(f"{inner.module}.{alias.name}" for alias in inner.names)]
    return names


def uses(name: str, forbidden: str) -> bool:
    """Whether a module imports `forbidden` or something below it, itself."""
    return any(
        found == forbidden or found.startswith(f"{forbidden}.")
        for found in imports(modules()[name])
    )


def reached(name: str) -> set[str]:
    """Modules of the package that come with a module, itself included."""
    every, todo = set[str](), [name]
    while todo:
        current = todo.pop()
        if current in every or current not in modules():
            continue
        every.add(current)
        todo += [
            found.removeprefix("spafit_bench.")
            for found in imports(modules()[current])
            if found.startswith("spafit_bench.")
        ]
    return every


@pytest.mark.parametrize("forbidden", ["typer", "rich", "pandas", "spafit_bench.store"])
def test_what_computes_knows_no_output(forbidden: str) -> None:
    """Directly or through other modules."""
    for name in COMPUTES & modules().keys():
        guilty = [inner for inner in reached(name) if uses(inner, forbidden)]
        assert not guilty, f"{name} reaches {forbidden} through {guilty}"


@pytest.mark.parametrize("forbidden", ["torch", "transformers", "tokenizers", "datasets"])
def test_what_reads_results_knows_no_model(forbidden: str) -> None:
    """Tables are made on machines without a deep-learning library."""
    readers = [n for n in modules() if n in READS or n.partition(".")[0] == "tables"]
    assert len(readers) > 8
    for name in readers:
        guilty = [inner for inner in reached(name) if uses(inner, forbidden)]
        assert not guilty, f"{name} reaches {forbidden} through {guilty}"


def test_the_command_line_is_thin() -> None:
    """It imports commands and the values that they take; and nothing imports it."""
    allowed = {
        "__version__", "cli", "commands", "config", "errors", "methods", "native_settings",
        "requests", "restore", "submit", "sweep", "task_files", "tasks", "text_input",
    }  # fmt: skip
    for name in modules():
        if name.partition(".")[0] != "cli":
            assert name == "__main__" or not uses(name, "spafit_bench.cli"), name
            continue
        used = {n.split(".")[1] for n in imports(modules()[name]) if n.startswith("spafit_bench.")}
        assert used <= allowed, (name, used - allowed)


def test_every_module_is_on_a_side() -> None:
    """The lists above are of modules that exist, so that a renamed one is noticed."""
    top = {name.partition(".")[0] for name in modules()}
    assert top >= COMPUTES | READS
    assert top >= MEETING


def test_modules_stay_small() -> None:
    """A module that outgrows 400 lines is two."""
    long = {n: len(p.read_text().splitlines()) for n, p in modules().items()}
    assert {n: count for n, count in long.items() if count > 400} == {}

"""A sweep on a Ray cluster of two nodes, one of which dies in the middle of a run."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from spafit_bench.base.errors import UserError
from spafit_bench.cli.views.progress import ProgressView
from spafit_bench.config.sweep import read_sweep
from spafit_bench.results.run_folder import read_files
from spafit_bench.results.store import Store
from spafit_bench.running.agenda import Agenda
from spafit_bench.running.driver import drive
from spafit_bench.running.events import Evaluated, Event, Started
from spafit_bench.running.executors import Executor, InProcess
from spafit_bench.running.ray_executor import Cluster, RayExecutor, Resources, connect
from spafit_bench.running.runner import Options
from tests.conftest import Cli, clean_environment, write_checkpoint

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Any, Any]]:
    """A cluster of two nodes with one CPU each, and the one that may be killed."""
    pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    import ray
    from ray.cluster_utils import Cluster as LocalCluster

    before, threads = dict(os.environ), torch.get_num_threads()
    os.environ |= clean_environment(HF_HUB_OFFLINE="1", RAY_DISABLE_IMPORT_WARNING="1")
    cluster = LocalCluster(initialize_head=True, head_node_args=NODE)
    try:
        mortal = cluster.add_node(**{k: v for k, v in NODE.items() if k != "include_dashboard"})
        yield cluster, mortal
    finally:
        ray.shutdown()
        cluster.shutdown()
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def connection(nodes: tuple[Any, Any]) -> Cluster:
    """One connection for all tests: every new one starts new workers."""
    return connect(nodes[0].address, Resources(num_cpus=1))


def agenda(folder: Path, model: Path, data: Path, cluster: Cluster | None, **body: Any) -> Agenda:
    """Prepare a sweep of tiny runs."""
    settings = {
        "model": str(model),
        "data": str(data),
        "precision": "fp32",
        "device": "cpu",
        "train": {"epochs": 12, "batch_size": 4, "max_length": 32},
    }
    whole = {"tasks": ["mrpc"], "methods": ["lora"], "settings": settings} | body
    (folder / "s.yaml").write_text(yaml.safe_dump(whole))
    return Agenda.of_sweep(
        read_sweep(folder / "s.yaml", {}), cluster.preparer() if cluster else None
    )


@dataclass
class Watching(ProgressView):
    """A view that does something in the middle of the first run on a node."""

    node: str = ""
    then: Callable[[], None] = lambda: None
    victim: str = ""
    epochs: list[float] = field(default_factory=list)

    def hear(self, event: Event) -> None:
        """Act at the second evaluation: the state of the first has come home by then."""
        super().hear(event)
        if isinstance(event, Started) and event.where.endswith(self.node) and not self.victim:
            self.victim = event.run_id
        if isinstance(event, Evaluated) and event.run_id == self.victim:
            self.epochs.append(event.evaluation.epoch)
            if len(self.epochs) == 2:
                self.then()


def carry_out(runs: Agenda, store: Store, executor: Executor, view: ProgressView) -> None:
    """Carry a sweep out."""
    with view:
        drive(runs, store, executor, view, Options(), lambda: False)


def console() -> Console:
    """A console that writes into a string."""
    return Console(file=io.StringIO(), width=300)


def said(view: ProgressView) -> str:
    """Return what was shown."""
    assert isinstance(view.console.file, io.StringIO)
    return view.console.file.getvalue()


@pytest.mark.ray
def test_nodes_without_the_model_are_left_out(
    connection: Cluster, tmp_path: Path, data: Path
) -> None:
    """One after the other; with none left it is one message that says what a node lacks."""
    model = write_checkpoint(tmp_path / "model")
    runs = agenda(tmp_path, model, data, connection)
    model.rename(tmp_path / "elsewhere")
    store, view = Store(tmp_path / "results"), ProgressView("s", console=console())
    with pytest.raises(UserError, match=r"no node is left for these runs; node .*model") as caught:
        carry_out(runs, store, RayExecutor(connection, store, Options()), view)
    assert str(model) in str(caught.value)
    assert said(view).count("is left out") == 1
    assert store.records() == []


@pytest.mark.ray
def test_a_dead_node_costs_nothing(
    connection: Cluster,
    nodes: tuple[Any, Any],
    tmp_path: Path,
    checkpoint: Path,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Its run goes on elsewhere; trials, choice and files are those of a sweep in this process."""
    cluster, mortal = nodes
    choose = {"key": "train.learning_rate", "values": [1e-3, 1e-2], "holdout": 0.25}
    store = Store(tmp_path / "results")
    node = f"/{mortal.node_id[:4]}"
    view = Watching("s", console=console(), node=node, then=lambda: cluster.remove_node(mortal))
    runs = agenda(tmp_path, checkpoint, data, connection, choose=choose)
    carry_out(runs, store, RayExecutor(connection, store, Options()), view)
    assert "NodeDiedError" in said(view), said(view)
    assert view.epochs.count(1.0) == 1, "it went on from a snapshot, not from the start"
    assert view.epochs[-1] == 12.0
    found = runs.all_records()
    assert [record.status for record in found] == ["done"] * len(found)
    alone = Store(tmp_path_factory.mktemp("alone"))
    here = agenda(tmp_path, checkpoint, data, None, choose=choose)
    executor = InProcess(alone, Options(), lambda: False)
    carry_out(here, alone, executor, ProgressView("s", console=console()))
    assert runs.chosen == here.chosen
    assert len(found) == 2 + (runs.chosen[next(iter(runs.chosen))] is not None)
    for got, want in zip(found, here.all_records(), strict=True):
        assert (got.run_id, got.evaluations) == (want.run_id, want.evaluations)
        assert store.find(got.run_id) == got
        theirs, ours = (read_files(s.runs / got.run_id) for s in (store, alone))
        assert theirs == ours
    assert not list((store.root / "unfinished").iterdir())


def test_ray_that_is_not_there_is_one_message(
    call: Cli, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not installed, nobody at the address, and flags that do not fit."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"tasks": ["mrpc"], "methods": ["lora"]}))
    assert "did you mean 'ray'" in call("sweep", "s.yaml", "--executor", "rya").error
    assert "add --executor ray" in call("sweep", "s.yaml", "--address", "box:6379").error
    flags = ("sweep", "smoke", "--executor", "ray")
    if importlib.util.find_spec("ray"):
        assert "nothing answers there" in call(*flags, "--address", "127.0.0.1:1").error
        assert "nothing answers there" in call(*flags, "--address", "127.0.0.1:x").error
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install '.[ray]'" in call(*flags).error


def test_resources_fit_nodes_whole() -> None:
    """Runs per node, by the scarcer of CPUs and GPUs; one thread at least."""
    node = {"CPU": 16.0, "GPU": 2.0}
    assert Resources(4, 0).times_in(node) == 4
    assert Resources(4, 1).times_in(node) == 2
    assert Resources(1, 0.25).times_in(node) == 8
    assert Resources(1, 1).times_in({"CPU": 16.0}) == 0
    assert Resources(0.5, 0).num_threads == 1
    assert Resources(2.5, 0).num_threads == 2

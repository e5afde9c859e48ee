"""Real runs of tiny random encoders, for tests of what is done with a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizerFast,
    PretrainedConfig,
    RobertaConfig,
)

from spafit_bench.cli.running import prepare_runs
from spafit_bench.config.selection import RunRequest
from spafit_bench.data.tasks import get_task
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store
from spafit_bench.running.agenda import Agenda
from spafit_bench.running.driver import View, drive
from spafit_bench.running.events import Event
from spafit_bench.running.executors import InProcess
from spafit_bench.running.runner import Options
from spafit_bench.training.prepare import PreparedRun
from tests.support.glue_files import write_plain

WORDS = ("the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "mat", "sky", "red", "slow")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def write_checkpoint(path: Path, config: PretrainedConfig | None = None, seed: int = 0) -> Path:
    """Write an encoder in which every tensor, biases included, is random and matters."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    path.mkdir(parents=True)
    (path / "vocab.txt").write_text("\n".join(names))
    BertTokenizerFast(str(path / "vocab.txt"), do_lower_case=False).save_pretrained(path)
    config = config or BertConfig(vocab_size=len(names), **SIZES)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.base_model.save_pretrained(path)
    return path


def roberta_config() -> RobertaConfig:
    """Return a RoBERTa with the tests' vocabulary."""
    return RobertaConfig(vocab_size=5 + len(WORDS), pad_token_id=0, type_vocab_size=2, **SIZES)


def write_data(root: Path, task_name: str, num_rows: int = 12, seed: int = 0) -> Path:
    """Write train and dev sets of random sentences."""
    task, rng = get_task(task_name), np.random.default_rng(seed)

    def row(number: int) -> dict[str, Any]:
        texts = {c: " ".join(rng.choice(WORDS, rng.integers(2, 9))) for c in task.text_columns}
        label = 5 * rng.random() if task.is_regression else number % task.num_labels
        return texts | {"label": round(float(label), 2) if task.is_regression else int(label)}

    splits = ("train", *task.dev_splits)
    write_plain(root, task, {split: [row(n) for n in range(num_rows)] for split in splits}, "csv")
    return root


@dataclass(frozen=True)
class World:
    """A model, data and a results folder."""

    model: Path
    data: Path
    results: Path

    @property
    def store(self) -> Store:
        """The results folder."""
        return Store(self.results)

    def run(self, method: str, task: str = "mrpc", *settings: str, **flags: Any) -> RunRecord:
        """Carry out one run that moves every trained tensor far."""
        train: Mapping[str, Any] = {
            "learning_rate": 0.005,
            "epochs": 2,
            "batch_size": 4,
            "max_length": 24,
            "eval_batch_size": 8,
        }
        base = {
            "model": str(self.model),
            "data": str(self.data),
            "precision": "fp32",
            "device": "cpu",
            "train": train,
        }
        request = RunRequest(task=task, method=method, assignments=settings, flags=base | flags)
        runs = prepare_runs(request)
        (record,) = carry_out(runs, self.store)
        assert record.status == "done", record.reason
        return record


class Silent:
    """A view that shows nothing."""

    def expect(self, runs: Sequence[PreparedRun]) -> None:
        """Ignore."""

    def hear(self, event: Event) -> None:
        """Ignore."""


def carry_out(
    runs: Sequence[PreparedRun], store: Store, view: View | None = None
) -> list[RunRecord]:
    """Carry out runs in this process."""
    agenda, options = Agenda(runs), Options()
    executor = InProcess(store, options, lambda: False)
    drive(agenda, store, executor, view or Silent(), options, lambda: False)
    return agenda.all_records()


def make_world(root: Path, config: PretrainedConfig | None = None) -> World:
    """Write a model and data for four kinds of task."""
    data = root / "data"
    for task in ("mrpc", "cola", "stsb", "mnli"):
        write_data(data, task)
    return World(write_checkpoint(root / "model", config), data, root / "results")

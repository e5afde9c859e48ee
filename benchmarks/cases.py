"""A case: one model, method and task, with the same settings for every system."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_dataset

SYSTEMS = ("fast", "plain", "tuned", "stock", "floor")
"""Ours with either engine; Trainer + peft tuned and as in `run_glue.py`; matrix products alone."""

PEERS = ("tuned", "stock")

TEXTS = {
    "cola": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "rte": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
MAX_LENGTH = 128
LEARNING_RATE = {"full": 5e-5, "bitfit": 1e-3, "lora": 5e-4, "spafit": 5e-4}


@dataclass(frozen=True)
class Case:
    """One comparison."""

    model: str
    """A checkpoint folder, or one with `config.json` and a vocabulary alone: random weights."""
    data: str
    """A folder in the hub's GLUE layout."""
    task: str
    method: str
    batch_size: int
    steps: int
    """Timed steps."""
    warm_up: int = 4
    """Steps before them."""
    eval_examples: int = 400
    seed: int = 0
    device: str = "cpu"
    pooler: bool = False
    """Whether every method trains the pooler, weights and bias."""
    cuda_graphs: bool = False
    """Whether our fast engine replays its launches."""

    @property
    def num_examples(self) -> int:
        """Number of training examples that the steps read."""
        return self.batch_size * (self.steps + self.warm_up)

    def rows(self, split: str, limit: int) -> Dataset:
        """Read the first rows of a split."""
        path = Path(self.data) / self.task / f"{split}-00000-of-00001.parquet"
        rows = load_dataset("parquet", data_files=str(path), split="train")
        return rows.select(range(min(limit, len(rows))))

    @property
    def has_weights(self) -> bool:
        """Whether the checkpoint folder holds weights."""
        return any(Path(self.model).glob("*.safetensors"))

"""What tests share: a tiny random BERT, tiny data, and the command line in two forms."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when the libraries are imported: one thread, and no network whatever a test gets wrong.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest

from spafit_bench.data.tasks import get_task
from tests.support.glue_files import Rows, write_plain

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS = "one two three four red green blue black dog cat bird fish runs sleeps eats sings not the a"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), ".", "?"]
CONFIG = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def bert_tensors(config: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Draw an encoder with pooler and without a head, by NumPy alone."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
    }
    linear = {"pooler.dense": (hidden, hidden)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear[f"{block}.attention.{name}"] = (hidden, hidden)
        linear[f"{block}.intermediate.dense"] = (inner, hidden)
        linear[f"{block}.output.dense"] = (hidden, inner)
        norms += [f"{block}.attention.output.LayerNorm", f"{block}.output.LayerNorm"]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(0, 0.2, shape) for name, shape in shapes.items()}
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(hidden), f"{name}.bias": np.zeros(hidden)}
    return {f"bert.{name}": value.astype(np.float32) for name, value in tensors.items()}


def write_checkpoint(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random BERT checkpoint as on the hub; `changes` go into its configuration."""
    from safetensors.numpy import save_file

    config = CONFIG | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY))
    kind = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    save_file(bert_tensors(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def task_rows(task_name: str, *, train: int = 24, dev: int = 10, seed: int = 0) -> Rows:
    """Make rows of a task: random words, a label that follows from the first one."""
    task = get_task(task_name)
    rng = np.random.default_rng([seed, len(task_name), train])
    words = WORDS.split()
    rows: Rows = {}
    for key in ("train", *task.dev_splits, *(test.key for test in task.test_sets)):
        rows[key] = []
        for _ in range(train if key == "train" else dev):
            texts = [" ".join(rng.choice(words, rng.integers(2, 9))) for _ in task.text_columns]
            number = words.index(texts[0].split()[0])
            label: float = number % 6 if task.is_regression else number % task.num_labels
            rows[key].append(
                dict(zip(task.text_columns, texts, strict=True))
                | {"label": label if key == "train" or key in task.dev_splits else -1}
            )
    return rows


def write_data(root: Path, *tasks: str, kind: str = "jsonl", **sizes: int) -> Path:
    """Write tiny data of the named tasks; return the folder that `--data` takes."""
    for name in tasks:
        write_plain(root, get_task(name), task_rows(name, **sizes), kind)
    return root


WAITS = re.compile(r"(loading|reading) [^:]* \.\.\.")
"""What a command says on a slow machine while it waits."""


@dataclass(frozen=True)
class Answer:
    """What the command line said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be JSON and nothing else."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one message of a user's mistake; exit code 2, no traceback, nothing on stdout."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.out == "", self.out
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if not WAITS.fullmatch(line)]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0].removeprefix("error: ")


Cli = Callable[..., Answer]
MAIN = "import sys; from spafit_bench.cli import main; sys.exit(main())"


def clean_environment(**changes: str) -> dict[str, str]:
    """Return an environment without hub settings, in which the package can be imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | changes


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the cache of whoever runs them."""
    os.environ["SPAFIT_BENCH_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _silent_waits() -> None:
    """The first test of a process waits for torch, on a slow machine so long that it is said."""
    from spafit_bench.cli import output

    output._SILENT_S = 600.0


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT checkpoint; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny-random")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny mrpc, cola, stsb and mnli data; not to be changed."""
    return write_data(tmp_path_factory.mktemp("data"), "mrpc", "cola", "stsb", "mnli")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line as a user has it: a process of its own, in `tmp_path`."""

    def run(*args: object, **env: str) -> Answer:
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *map(str, args)],
            env=clean_environment(**({"HF_HUB_OFFLINE": "1"} | env)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


def call_main(*args: object) -> Answer:
    """Run the command line in this process, where torch is imported once for all tests."""
    from spafit_bench.cli import main

    before, sys.argv = sys.argv, ["spafit-bench", *map(str, args)]
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in this process, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    return call_main

"""The comparison with Trainer and peft: its intervals against scipy, its tables by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from scipy import stats
from torch.utils.data import Sampler

from benchmarks.agreement import arguments, lines, pairs
from benchmarks.agreement_table import Both, interval, table
from benchmarks.cases import Case
from benchmarks.peers import build_model
from spafit_bench.config.selection import RunRequest, run_configs
from spafit_bench.models.encoding import training_batches
from spafit_bench.training import run as execute
from spafit_bench.training.loop import Session, train
from spafit_bench.training.prepare import Preparer
from spafit_bench.training.token_cache import encode_task
from tests.conftest import REPOSITORY, task_rows, write_data
from tests.support.models import Silent, save_checkpoint

ROWS, BATCH, EPOCHS = 48, 8, 2
OURS, THEIRS = [80.0, 82.0, 81.0], [79.0, 84.0, 80.5]


def test_the_interval_of_two_samples_is_welchs() -> None:
    """As scipy's; a constant pair and a single number have none."""
    expected = stats.ttest_ind(OURS, THEIRS, equal_var=False).confidence_interval()
    assert interval([(1.0, OURS), (-1.0, THEIRS)]) == pytest.approx((expected.low, expected.high))
    assert interval([(1.0, [1.0, 1.0]), (-1.0, [2.0, 2.0])]) is None
    assert interval([(1.0, OURS), (-1.0, [80.0])]) is None


def test_the_interval_of_a_mean_over_tasks() -> None:
    """Four samples of equal variance and size: Student's with all their degrees of freedom."""
    terms = [(w / 2, [x + y for y in (-1.0, 0.0, 1.0)]) for w, x in ((1, 5), (1, 3), (-1, 2))]
    terms.append((-0.5, [0.0, 1.0, 2.0]))
    half = stats.t.ppf(0.975, 8) * (4 * 0.25 / 3) ** 0.5
    assert interval(terms) == pytest.approx((2.5 - half, 2.5 + half))


def test_opposite_differences_do_not_cancel_in_the_tables() -> None:
    """One method too high and another too low: the mean is zero, the methods' rows are not."""
    high = Both([81.0, 81.2], [80.0, 80.2], [0.5, 0.5], [0.5, 0.5])
    low = Both([79.0, 79.2], [80.0, 80.2], [0.5, 0.5], [0.5, 0.5])
    text = table({("mrpc", "full"): high, ("mrpc", "lora"): low})
    assert "Mean difference of 2 cells: +0.00" in text
    assert "| full | mrpc | 81.1 | 80.1 | +1.0 |" in text
    assert "| full - lora | mrpc | +2.0 | +0.0 | +2.0 |" in text


class InOurOrder(Sampler[int]):
    """Our batches, epoch after epoch."""

    def __init__(self, split: Any) -> None:
        self.split, self.epoch = split, 0

    def __len__(self) -> int:
        return len(self.split)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([0, self.epoch])
        self.epoch += 1
        yield from np.concatenate(training_batches(self.split, BATCH, rng)).tolist()


def copy_trained(ours: dict[str, torch.Tensor], peer: torch.nn.Module) -> None:
    """Give the peer our fresh tensors: classifier and adapters; the others came from the folder."""
    for name, parameter in peer.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        plain = plain.replace(".modules_to_save.default", "").replace(".default.weight", "")
        if "original_module" not in name:
            parameter.data.copy_(ours[plain])


@pytest.mark.parametrize("method", ["full", "bitfit", "lora", "spafit"])
def test_without_dropout_every_loss_is_trainers(method: str, tmp_path: Path) -> None:
    """Same batches, no dropout, fp32: two epochs of ours and of Trainer and peft, step by step."""
    model = save_checkpoint(
        tmp_path / "bert",
        form="base",
        num_layers=6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    data = write_data(tmp_path / "data", "mrpc", train=ROWS)
    settings = {"learning_rate": 1e-3, "batch_size": BATCH, "epochs": EPOCHS, "max_length": 24}
    flags = {"model": str(model), "data": str(data), "engine": "fast", "precision": "fp32"}
    flags |= {"device": "cpu", "train": settings, "head": {"pooler": "full"}}
    (config,) = run_configs(RunRequest(task="mrpc", method=method, flags=flags))
    prepared = Preparer().prepare(config)
    split = encode_task(prepared)["train"]
    adapted = execute.build_model(prepared)
    fresh = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    session = Session(observer=Silent())
    ours = train(adapted, split, config.train, seed=0, session=session).losses

    peer = build_model(Case(str(model), str(data), "mrpc", method, BATCH, 0, pooler=True))
    copy_trained(fresh, peer)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = task_rows("mrpc", train=ROWS)["train"]
    texts = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
    encoded = tokenizer(*texts, truncation=True, max_length=24)
    theirs: list[float] = []

    class Trainer(transformers.Trainer):
        def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
            return InOurOrder(split)

        def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
            loss = super().training_step(*given, **named)
            theirs.append(float(loss))
            return loss

    record: Any = SimpleNamespace(
        config={"train": vars(config.train)},
        environment=SimpleNamespace(precision="fp32", device="cpu"),
        seed=0,
    )
    Trainer(
        model=peer,
        args=arguments(record, EPOCHS * ROWS // BATCH, str(tmp_path / "trainer")),
        train_dataset=Dataset.from_dict({**encoded, "label": [row["label"] for row in rows]}),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    ).train()
    assert len(ours) == EPOCHS * ROWS // BATCH
    assert ours[-1] != pytest.approx(ours[0], abs=1e-3)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_published_table_follows_from_published_runs() -> None:
    """Every line repeats a run that is there; the table is what `agreement table` prints."""
    path = REPOSITORY / "benchmarks" / "results" / "agreement.jsonl"
    if not path.exists():
        pytest.skip("this checkout has no repetitions")
    cells = pairs(REPOSITORY / "results" / "minilm-l6", path)
    assert sum(len(cell.scores) for cell in cells.values()) == len(lines(path)) > 0
    assert path.with_suffix(".md").read_text(encoding="utf-8") == table(cells)

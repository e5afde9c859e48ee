"""Repeat the runs of a results folder with Trainer and peft, and test whether the scores agree.

    python -m benchmarks.agreement run --results results/minilm-l6 --model FOLDER --data FOLDER
    python -m benchmarks.agreement table --results results/minilm-l6

This module repeats finished runs on official data (CoLA, MRPC, STS-B, RTE; WNLI only if --tasks
names it) with the same settings and other people's code: peft's adapters, Trainer's loop, optimizer
and schedule, bf16 autocast if our run used bf16, and scores by scikit-learn and scipy. A sampler in
this module draws batches as docs/speed.md describes. Weights, rows and the number of trained
parameters must be equal. Each finished repetition is one line of a file and is not repeated.
Several processes may share the file if each has its own seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from datasets import Dataset
from scipy import stats
from sklearn import metrics
from torch.utils.data import Sampler

from benchmarks.agreement_table import Both, Cell, table
from benchmarks.cases import TEXTS, Case
from benchmarks.peers import build_model
from spafit_bench.models.checkpoint import find_checkpoint, fingerprint
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store

Line = dict[str, Any]
POOL_BATCHES = 32


class SimilarLengths(Sampler[int]):
    """Random batches of similar length: pools of 32 batches sorted, the batches then shuffled.

    Trainer's own `group_by_length` leaves the batches of a pool sorted, so the length of texts
    falls steadily and then jumps, again and again within an epoch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size = np.asarray(lengths), batch_size
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = self.rng.permutation(len(self.lengths))
        pool = POOL_BATCHES * self.batch_size
        pools = [order[at : at + pool] for at in range(0, len(order), pool)]
        order = np.concatenate([p[np.argsort(-self.lengths[p], kind="stable")] for p in pools])
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        last = [] if len(batches[-1]) == self.batch_size else [batches.pop()]  # cut at fixed size
        self.rng.shuffle(batches)
        yield from np.concatenate([*batches, *last]).tolist()


class Trainer(transformers.Trainer):
    """Trainer with that sampler."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        assert isinstance(rows, Dataset)
        lengths = [len(ids) for ids in rows["input_ids"]]
        return SimilarLengths(lengths, self.args.per_device_train_batch_size, self.args.seed)


def score(task: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the task's metrics for logits of shape (examples, labels), or (examples, 1)."""
    if task == "stsb":
        values = predictions.squeeze(-1)
        found = {
            "pearson": stats.pearsonr(values, labels).statistic,
            "spearman": stats.spearmanr(values, labels).statistic,
        }  # NaN for a constant, which is scored 0 here as by GLUE's own code
        return {name: float(np.nan_to_num(value)) for name, value in found.items()}
    chosen = predictions.argmax(-1)
    if task == "cola":
        return {"matthews_correlation": float(metrics.matthews_corrcoef(labels, chosen))}
    accuracy = {"accuracy": float(metrics.accuracy_score(labels, chosen))}
    return accuracy | ({"f1": float(metrics.f1_score(labels, chosen))} if task == "mrpc" else {})


def arguments(record: RunRecord, steps: int, folder: str) -> transformers.TrainingArguments:
    """Return Trainer's arguments for the settings of our run."""
    settings = record.config["train"]
    warmup, schedule = settings["warmup"], settings["schedule"]
    return transformers.TrainingArguments(
        output_dir=folder,
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=settings["eval_batch_size"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        warmup_steps=math.ceil(warmup * steps) if warmup < 1 else int(warmup),
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        adam_beta1=settings["adam_beta1"],
        adam_beta2=settings["adam_beta2"],
        adam_epsilon=settings["adam_eps"],
        bf16=record.environment.precision == "bf16",
        fp16=record.environment.precision == "fp16",
        seed=record.seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=record.environment.device == "cpu",
    )


def repeat(record: RunRecord, model: str, data: str) -> Line:
    """Train and score with the settings of one of our runs."""
    settings = record.config["train"]
    case = Case(
        model,
        data,
        record.task,
        record.method,
        settings["batch_size"],
        steps=0,
        seed=record.seed,
        pooler=record.config["head"]["pooler"] == "full",
    )
    weights_sha256, _ = fingerprint(find_checkpoint(model))
    if weights_sha256 != record.weights.weights_sha256:
        raise SystemExit(f"{record.run_id}: made with other weights than {model}")
    transformers.set_seed(record.seed)  # the classifier is drawn before Trainer sets it
    network = build_model(case)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    if trained != record.trainable_parameters:
        raise SystemExit(f"{record.run_id}: {record.trainable_parameters} train, here {trained}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)

    def encode(rows: dict[str, Any]) -> Any:
        texts = (rows[name] for name in TEXTS[case.task])
        return tokenizer(*texts, truncation=True, max_length=settings["max_length"])

    columns = ["label", "input_ids", "token_type_ids", "attention_mask"]
    train, dev = (
        case.rows(split, 10**9).map(encode, batched=True).select_columns(columns)
        for split in ("train", "validation")
    )
    assert record.data.rows["train"] == len(train)
    steps = math.ceil(settings["epochs"] * math.ceil(len(train) / case.batch_size))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=network,
            args=arguments(record, steps, folder),
            train_dataset=train,
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        begin = time.perf_counter()
        train_loss = trainer.train().training_loss
        train_time_s = time.perf_counter() - begin
        predicted = trainer.predict(dev)
    assert trainer.state.global_step == steps
    found = score(record.task, np.asarray(predicted.predictions), np.asarray(dev["label"]))
    return {
        "run_id": record.run_id,
        "task": record.task,
        "method": record.method,
        "seed": record.seed,
        "learning_rate": settings["learning_rate"],
        "metrics": found,
        "score": statistics.fmean(found.values()),
        "train_loss": train_loss,
        "trainable_parameters": trained,
        "steps": steps,
        "train_time_s": round(train_time_s, 1),
        "packages": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def lines(path: Path) -> dict[str, Line]:
    """Return the finished repetitions: name of the repeated run -> line."""
    text = path.read_text() if path.exists() else ""
    return {line["run_id"]: line for line in map(json.loads, text.splitlines())}


def ours(results: Path) -> list[RunRecord]:
    """Return our finished runs on complete official data that report the last evaluation."""
    return [
        record
        for record in Store(results).records()
        if record.status == "done"
        and record.holdout is None
        and record.official_split
        and record.train_limit is None
        and record.select == "last"
        and record.config["train"].get("batch_tokens") is None
        and record.task in TEXTS
    ]


def repeat_all(given: argparse.Namespace) -> None:
    """Repeat the requested runs that have no repetition yet."""
    order = given.tasks.split(",")
    records = [
        record
        for record in ours(given.results)
        if record.task in order
        and record.method in given.methods.split(",")
        and record.seed in map(int, given.seeds.split(","))
    ]
    for record in sorted(records, key=lambda r: (r.seed, order.index(r.task), r.method)):
        if record.run_id in lines(given.out):
            continue
        line = repeat(record, given.model, given.data)
        with given.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        done = f"{record.task} {record.method} seed {record.seed} in {line['train_time_s']} s"
        print(f"{done}: {100 * line['score']:.1f}, ours {100 * _score(record):.1f}", flush=True)


def _score(record: RunRecord) -> float:
    assert record.score is not None, record.run_id  # a finished run has one
    return record.score


def _train_loss(record: RunRecord) -> float:
    """Return the mean training loss over all steps, which is what Trainer reports."""
    ends = [0, *(evaluation.step for evaluation in record.evaluations)]
    losses = [evaluation.train_loss for evaluation in record.evaluations]
    total = sum(
        (end - start) * loss
        for loss, (start, end) in zip(losses, pairwise(ends), strict=True)
        if loss is not None
    )
    return total / ends[-1]


def pairs(results: Path, path: Path) -> dict[Cell, Both]:
    """Pair our runs with their repetitions, for every task and method."""
    found: dict[Cell, Both] = defaultdict(Both)
    repeated = lines(path)
    for record in ours(results):
        if line := repeated.get(record.run_id):
            cell = found[record.task, record.method]
            cell.scores.append(100 * _score(record))
            cell.their_scores.append(100 * line["score"])
            cell.losses.append(_train_loss(record))
            cell.their_losses.append(line["train_loss"])
    return dict(sorted(found.items()))


def main() -> None:
    """Repeat runs, or show the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--results", type=Path, required=True, help="our runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/agreement.jsonl"))
    parser.add_argument("--model", help="the checkpoint folder that our runs had")
    parser.add_argument("--data", help="a folder in the hub's GLUE layout")
    parser.add_argument("--tasks", default="mrpc,stsb,cola,rte")
    parser.add_argument("--methods", default="full,bitfit,lora,spafit")
    parser.add_argument("--seeds", default="0,1,2")
    given = parser.parse_args()
    if given.command == "run":
        repeat_all(given)
    else:
        print(table(pairs(given.results, given.out)), end="")


if __name__ == "__main__":
    main()

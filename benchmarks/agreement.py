"""Repeats the runs of a results folder with Trainer and peft, and says whether the scores agree.

    python -m benchmarks.agreement run --results results/minilm-l6 --model FOLDER --data FOLDER
    python -m benchmarks.agreement table --results results/minilm-l6

Every finished run on official data is repeated with its own settings by other people's code:
peft's adapters, Trainer's loop, optimizer and schedule, batches of like length as ours are (by
Trainer's own sampler, padded to the longest row), bf16 autocast where ours was in bf16, scores by
scikit-learn and scipy. What trains must be the same number of parameters. Finished ones are lines
of a file, and are not repeated; several processes may share it, with other seeds each.
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
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from scipy import stats
from sklearn import metrics

from benchmarks.cases import TEXTS, Case
from benchmarks.peers import build_model
from spafit_bench.record import RunRecord
from spafit_bench.store import Store

Line = dict[str, Any]
Cell = tuple[str, str]
"""Task and method."""
SETTINGS = ("learning_rate", "epochs", "batch_size")
"""What of the settings a repetition must share with a run to be compared with it."""


def score(task: str, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the task's metrics of logits of shape (examples, labels), or (examples, 1)."""
    if task == "stsb":
        values = predictions.squeeze(-1)
        return {
            "pearson": float(stats.pearsonr(values, labels).statistic),
            "spearman": float(stats.spearmanr(values, labels).statistic),
        }
    chosen = predictions.argmax(-1)
    if task == "cola":
        return {"matthews_correlation": float(metrics.matthews_corrcoef(labels, chosen))}
    found = {"accuracy": float(metrics.accuracy_score(labels, chosen))}
    return found | ({"f1": float(metrics.f1_score(labels, chosen))} if task == "mrpc" else {})


def repeat(record: RunRecord, model: str, data: str) -> Line:
    """Train and score with the settings of a run of ours."""
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
    total = math.ceil(settings["epochs"] * math.ceil(len(train) / case.batch_size))
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=network,
            args=transformers.TrainingArguments(
                output_dir=folder,
                num_train_epochs=settings["epochs"],
                per_device_train_batch_size=case.batch_size,
                per_device_eval_batch_size=settings["eval_batch_size"],
                learning_rate=settings["learning_rate"],
                lr_scheduler_type=settings["schedule"],
                warmup_steps=math.ceil(settings["warmup"] * total),
                weight_decay=settings["weight_decay"],
                max_grad_norm=settings["max_grad_norm"],
                adam_beta1=settings["adam_beta1"],
                adam_beta2=settings["adam_beta2"],
                adam_epsilon=settings["adam_eps"],
                train_sampling_strategy="group_by_length",
                bf16=record.environment.precision == "bf16",
                seed=record.seed,
                save_strategy="no",
                eval_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=record.environment.device == "cpu",
            ),
            train_dataset=train,
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        begin = time.perf_counter()
        trainer.train()
        train_time_s = time.perf_counter() - begin
        predicted = trainer.predict(dev)
    found = score(record.task, np.asarray(predicted.predictions), np.asarray(dev["label"]))
    return _key(record) | {
        "metrics": found,
        "score": statistics.fmean(found.values()),
        "trainable_parameters": trained,
        "steps": total,
        "train_time_s": round(train_time_s, 1),
        "packages": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def _key(record: RunRecord) -> Line:
    settings = record.config["train"]
    found = {"task": record.task, "method": record.method, "seed": record.seed}
    return found | {name: settings[name] for name in SETTINGS}


def _same(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("task", "method", "seed", *SETTINGS))


def lines(path: Path) -> list[Line]:
    """Read the finished repetitions."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ours(results: Path) -> list[RunRecord]:
    """Return the finished runs on official data, those that only serve a choice left out."""
    return [
        record
        for record in Store(results).records()
        if record.status == "done"
        and record.holdout is None
        and record.official_split
        and record.task in TEXTS
    ]


def repeat_all(given: argparse.Namespace) -> None:
    """Repeat what the command line asks for, and has not been."""
    records = [
        record
        for record in ours(given.results)
        if record.task in given.tasks.split(",")
        and record.method in given.methods.split(",")
        and record.seed in map(int, given.seeds.split(","))
    ]
    order = given.tasks.split(",")
    for record in sorted(records, key=lambda r: (r.seed, order.index(r.task), r.method)):
        if _same(_key(record)) in map(_same, lines(given.out)):
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


def pairs(results: Path, path: Path) -> Iterator[tuple[Cell, list[float], list[float]]]:
    """Yield the scores of either side of every cell whose settings are the same, times 100."""
    here: dict[Cell, list[float]] = defaultdict(list)
    there: dict[Cell, list[float]] = defaultdict(list)
    repeated = {_same(line): line for line in lines(path)}
    for record in ours(results):
        if line := repeated.get(_same(_key(record))):
            here[record.task, record.method].append(100 * _score(record))
            there[record.task, record.method].append(100 * line["score"])
    for cell in sorted(here):
        yield cell, here[cell], there[cell]


def table(results: Path, path: Path) -> str:
    """Return a Markdown table: mean and sample sd of either side, difference, 95 % interval.

    The interval of a cell is Welch's; that of all cells is Student's over the cells' differences.
    """
    rows, differences = [], []
    for (task, method), here, there in pairs(results, path):
        difference = statistics.fmean(here) - statistics.fmean(there)
        differences.append(difference)
        if len(here) > 1:
            found = stats.ttest_ind(here, there, equal_var=False).confidence_interval()
            interval = f"{found.low:+.1f} to {found.high:+.1f}"
        rows.append(
            f"| {task} | {method} | {len(here)} | {_spread(here)} | {_spread(there)} "
            f"| {difference:+.1f} | {interval if len(here) > 1 else '—'} |"
        )
    head = ["task", "method", "seeds", "ours", "Trainer + peft", "difference", "95 % interval"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *rows]
    if len(differences) > 1:
        overall = stats.ttest_1samp(differences, 0.0).confidence_interval()
        lines += [
            "",
            f"Mean difference of {len(differences)} cells: {statistics.fmean(differences):+.2f}, "
            f"95 % interval {overall.low:+.2f} to {overall.high:+.2f}.",
        ]
    return "\n".join(lines) + "\n"


def _spread(scores: list[float]) -> str:
    mean = statistics.fmean(scores)
    return f"{mean:.1f} ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else f"{mean:.1f}"


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
        print(table(given.results, given.out), end="")


if __name__ == "__main__":
    main()

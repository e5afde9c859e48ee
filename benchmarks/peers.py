"""Trainer + peft, as people use them, on the same data, method and settings as ours."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peft
import torch
import transformers
from datasets import Dataset
from torch import nn

from benchmarks.cases import LEARNING_RATE, MAX_LENGTH, TEXTS, Case

_LAYER = r".*\.layer\.{}\."


def build_model(case: Case) -> nn.Module:
    """Load the encoder and make the parameters of the method trainable.

    SPAFIT is LoRA on the late layers plus biases that we unfreeze by hand. The paper's boundaries
    are scaled to the depth.
    """
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    labels = 1 if case.task == "stsb" else 2
    model: nn.Module = load(case.model, num_labels=labels, dtype=torch.float32)
    model = _adapt(model, case)
    for name, parameter in model.named_parameters():
        if case.pooler and ".pooler.dense." in name:
            parameter.requires_grad = True
    return model


def _adapt(model: nn.Module, case: Case) -> nn.Module:
    depth: int = model.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    if case.method == "full":
        return model
    if case.method == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.endswith(".bias") or name.startswith("classifier")
        return model
    first = round(depth * 10 / 24) if case.method == "spafit" else 0
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type="SEQ_CLS",
            r=64,
            lora_alpha=128,
            target_modules=["query", "key", "value"],
            layers_to_transform=list(range(first, depth)),
        ),
    )
    if case.method == "spafit":
        _unfreeze_biases(model, round(depth * 5 / 24), first, depth)
    return model


def _unfreeze_biases(model: nn.Module, middle: int, late: int, depth: int) -> None:
    layers = dict.fromkeys(range(middle, late), r".*bias")
    layers |= dict.fromkeys(range(late, depth), r"(intermediate|output)\..*bias")
    patterns = [_LAYER.format(layer) + rest for layer, rest in layers.items()]
    for name, parameter in model.named_parameters():
        if any(re.fullmatch(pattern, name) for pattern in patterns) or "pooler.dense.bias" in name:
            parameter.requires_grad = True


@dataclass
class Timer(transformers.TrainerCallback):
    """Time every step and count its real tokens."""

    times_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    started_s: float = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.started_s = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times_s.append(time.perf_counter() - self.started_s)


@dataclass(frozen=True)
class Rows:
    """Tokenised data and its collator."""

    train: Dataset
    validation: Dataset
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]


def encoded_rows(case: Case, clock: Timer, *, tuned: bool) -> Rows:
    """Tokenise the data; `tuned` pads each batch, otherwise every text gets the same length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.model)
    padding: Any = False if tuned else "max_length"
    collator = transformers.DataCollatorWithPadding(tokenizer)
    columns = ["label", "input_ids", "token_type_ids", "attention_mask"]

    def encode(rows: dict[str, Any]) -> Any:
        texts = (rows[name] for name in TEXTS[case.task])
        return tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, padding=padding)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = collator(rows)
        clock.tokens.append(int(batch["attention_mask"].sum()))
        return batch

    def split(name: str, limit: int) -> Dataset:
        return case.rows(name, limit).map(encode, batched=True).select_columns(columns)

    train = split("train", case.num_examples)
    return Rows(train, split("validation", case.eval_examples), collate)


def make_trainer(
    case: Case, clock: Timer, rows: Rows, folder: str, *, tuned: bool
) -> transformers.Trainer:
    """Return a Trainer for the case.

    Args:
        case: model, task and settings.
        clock: records the times of the steps.
        rows: the training data.
        folder: where Trainer may write.
        tuned: batches of like length, bf16, fused AdamW; else the settings of `run_glue.py`.
    """
    steps = case.steps + case.warm_up
    speed: dict[str, Any] = {"bf16": True, "optim": "adamw_torch_fused"} if tuned else {}
    if tuned:
        speed["train_sampling_strategy"] = "group_by_length"
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=case.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=LEARNING_RATE[case.method],
        warmup_steps=round(0.1 * steps),
        weight_decay=0.01,
        seed=case.seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=case.device == "cpu",
        **speed,
    )
    return transformers.Trainer(
        model=build_model(case),
        args=arguments,
        train_dataset=rows.train,
        eval_dataset=rows.validation,
        data_collator=rows.collate,
        callbacks=[clock],
    )

"""Tiny random checkpoints of every supported architecture, and models adapted from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from spafit_bench.data.tasks import get_task
from spafit_bench.methods.method import Method, get_method
from spafit_bench.methods.plan import Plan, make_plan
from spafit_bench.models.adapt import AdaptedModel, adapt
from spafit_bench.models.checkpoint import (
    find_checkpoint,
    fresh_parameters,
    load_model,
    parameter_shapes,
    quiet_transformers,
)
from spafit_bench.models.numerics import Numerics
from spafit_bench.results.record import Evaluation
from spafit_bench.training.loop import Progress

HIDDEN, FEED_FORWARD, POSITIONS = 32, 48, 64
_TEXT = (
    "the a cat dog bird man woman child sees likes hears follows eats small big old young red "
    "house tree river road and or not never always in on under ran sat slept who is was . , ?"
)
WORDS = tuple(_TEXT.split())
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = len(SPECIAL) + len(WORDS)

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_attention_heads": 2,
    "intermediate_size": FEED_FORWARD,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
}
_DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": HIDDEN,
    "n_heads": 2,
    "hidden_dim": FEED_FORWARD,
    "max_position_embeddings": POSITIONS,
}
_DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
_CHANGES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "camembert": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "distilbert": _DISTILBERT,
    "electra": {"embedding_size": 16},
    "deberta-v2": _DEBERTA,
    "modernbert": {
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
}
MODEL_TYPES = tuple(_CHANGES)
"""Every supported `model_type`."""

_FORMS = {
    "base": transformers.AutoModel,
    "mlm": transformers.AutoModelForMaskedLM,
    "pretraining": transformers.AutoModelForPreTraining,
    "classification": transformers.AutoModelForSequenceClassification,
}


class Silent:
    """Hears of training, and says nothing."""

    def on_step(self, progress: Progress) -> None:
        """Ignore it."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Ignore it."""


def tiny_config(
    model_type: str = "bert", *, num_layers: int = 2, num_labels: int = 2, **changes: Any
) -> transformers.PretrainedConfig:
    """Configure a tiny encoder; `changes` are passed on."""
    common = {} if model_type == "distilbert" else _COMMON
    depth = {"n_layers" if model_type == "distilbert" else "num_hidden_layers": num_layers}
    settings = common | _CHANGES[model_type] | depth | changes
    return transformers.AutoConfig.for_model(model_type, **settings, num_labels=num_labels)


def save_checkpoint(
    folder: Path,
    model_type: str = "bert",
    *,
    form: str = "mlm",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Write a random checkpoint with a tokenizer of `WORDS`.

    Args:
        folder: made if it is missing.
        model_type: one of `MODEL_TYPES`.
        form: the model that is saved, `base` (its tensors have no prefix), `mlm`, `pretraining`
            or `classification`.
        dtype: of the stored tensors.
        changes: for `tiny_config`.

    Returns:
        The folder.
    """
    quiet_transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same checkpoint, whatever ran before
        model = _FORMS[form].from_config(tiny_config(model_type, **changes))
    _shake(model)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(folder, segments=getattr(model.config, "type_vocab_size", 0) > 1)
    return folder


@torch.no_grad()
def _shake(model: torch.nn.Module) -> None:
    """Move every tensor off its initial value, so that biases and normalisations matter."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def save_tokenizer(folder: Path, *, segments: bool = True) -> None:
    """Write a WordPiece tokenizer of `WORDS`, cased, with or without `token_type_ids`."""
    ids = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in ids), encoding="utf-8")
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = transformers.BertTokenizer(
        vocab=ids,
        do_lower_case=False,
        model_max_length=POSITIONS - 4,
        model_input_names=[name for name in names if segments or name != "token_type_ids"],
    )
    tokenizer.save_pretrained(folder)


def plan_checkpoint(folder: Path, method: str | Method, *, task: str = "mrpc") -> Plan:
    """Plan a method on a checkpoint."""
    checkpoint = find_checkpoint(str(folder))
    shapes = parameter_shapes(checkpoint, get_task(task))
    chosen = get_method(method) if isinstance(method, str) else method
    fresh = fresh_parameters(checkpoint, list(shapes))
    return make_plan(chosen, checkpoint.architecture, shapes, fresh=fresh)


def build(
    folder: Path,
    method: str | Method,
    *,
    task: str = "mrpc",
    seed: int = 0,
    precision: str = "fp32",
    attention: str = "eager",
    engine: str = "plain",
    device: str = "cpu",
    cache_prefix: bool = False,
) -> AdaptedModel:
    """Load a checkpoint and carry a method out on it."""
    plan = plan_checkpoint(folder, method, task=task)
    model, fresh = load_model(
        find_checkpoint(str(folder)),
        get_task(task),
        seed=seed,
        fresh_pooler=False,
        attention=attention,
    )
    assert fresh == plan.fresh
    numerics = Numerics(torch.device(device), precision)
    prefix_layers = plan.frozen_layers if cache_prefix else 0
    return adapt(
        model, plan, numerics=numerics, seed=seed, engine=engine, prefix_layers=prefix_layers
    )


def random_inputs(batch: int = 4, length: int = 9, *, seed: int = 0) -> dict[str, Tensor]:
    """Draw `input_ids` and `attention_mask` (batch, length); rows have different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(SPECIAL), VOCABULARY, (batch, length), generator=generator)
    mask = (torch.arange(length) < length - torch.arange(batch)[:, None] % 4).long()
    ids[:, 0] = SPECIAL.index("[CLS]")
    return {"input_ids": ids * mask, "attention_mask": mask}

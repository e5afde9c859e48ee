"""Whole models and training against independent references: peft, transformers, plain loops."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from spafit_bench.config.run_config import TrainSettings
from spafit_bench.data.tasks import get_task
from spafit_bench.methods.method import method_names
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.checkpoint import find_checkpoint, load_model
from spafit_bench.models.encoding import EncodedSplit, training_batches
from spafit_bench.training.loop import Session, learning_rate_factor, make_optimizer, train
from tests.support.models import (
    MODEL_TYPES,
    SPECIAL,
    VOCABULARY,
    Silent,
    build,
    random_inputs,
    save_checkpoint,
)

DEPTH = 6  # SPAFIT's groups: layer 0 frozen, layer 1 biases, layers 2-5 LoRA
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def settings(**changes: Any) -> TrainSettings:
    """Training settings of these tests."""
    usual: dict[str, Any] = {
        "learning_rate": 1e-3,
        "epochs": 2,
        "batch_size": 8,
        "max_length": 16,
        "warmup": 0.2,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "adam_eps": 1e-6,
    }
    return TrainSettings(**(usual | changes))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of six layers with a pooler and no dropout."""
    folder = tmp_path_factory.mktemp("bert")
    return save_checkpoint(folder, form="base", num_layers=DEPTH, **NO_DROPOUT)


def plain_bert(folder: Path) -> nn.Module:
    """Load the checkpoint with transformers alone, and the benchmark's head of seed 0."""
    model = transformers.BertForSequenceClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.float32, attn_implementation="eager"
    )
    ours, fresh = load_model(
        find_checkpoint(str(folder)),
        get_task("mrpc"),
        seed=0,
        fresh_pooler=False,
        attention="eager",
    )
    with torch.no_grad():
        for name in fresh:
            model.get_parameter(name).copy_(ours.get_parameter(name))
    return model


def by_hand(*patterns: str) -> Callable[[str], bool]:
    """Choose base parameters by full match of their names."""
    return lambda name: any(re.fullmatch(pattern, name) for pattern in patterns)


LAYER = r"bert\.encoder\.layer"
HEAD = (r"bert\.pooler\.dense\.bias", r"classifier\.(weight|bias)")
SPAFIT_BIASES = (
    rf"{LAYER}\.1\..*\.bias",
    rf"{LAYER}\.[2-5]\.(intermediate\.dense|output\.dense|output\.LayerNorm)\.bias",
)
QKV = ["query", "key", "value"]
SPAFIT = {"r": 64, "lora_alpha": 128, "layers_to_transform": [2, 3, 4, 5]}
REFERENCES: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "spafit": (SPAFIT | {"target_modules": QKV}, by_hand(*SPAFIT_BIASES, *HEAD)),
    "spafit-1-2-ii": (
        SPAFIT
        | {"target_modules": [*QKV, "attention.output.dense"], "layers_to_transform": [3, 4, 5]},
        by_hand(
            rf"{LAYER}\.2\..*\.bias",
            rf"{LAYER}\.[3-5]\.(intermediate\.dense|output\.(dense|LayerNorm))\.bias",
            *HEAD,
        ),
    ),
    "lora": ({"r": 64, "lora_alpha": 128, "target_modules": QKV}, by_hand(HEAD[1])),
    "0-1:frozen;2-5:lora(query+key+value,r=4,alpha=6,rslora)": (
        SPAFIT | {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": QKV},
        by_hand(*HEAD),
    ),
    "0-1:frozen;2-5:lora(intermediate+output,r=4,alpha=6,dora)+bias(layernorm)": (
        SPAFIT
        | {
            "r": 4,
            "lora_alpha": 6,
            "use_dora": True,
            "target_modules": rf"{LAYER}\.[2-5]\.(intermediate|output)\.dense",
            "layers_to_transform": None,
        },
        by_hand(rf"{LAYER}\.[2-5]\..*LayerNorm\.bias", *HEAD),
    ),
}


def peft_twin(
    folder: Path, options: dict[str, Any], chosen: Callable[[str], bool]
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """Build the method with peft and hand-unfrozen parameters; return its trainables by our names.

    Names differ only in peft's wrappers, which are taken off here.
    """
    model = peft.get_peft_model(plain_bert(folder), peft.LoraConfig(**options)).double()
    trainable = {}
    for wrapped, parameter in model.named_parameters():
        name = wrapped.removeprefix("base_model.model.").replace(".base_layer", "")
        name = re.sub(r"(lora_[AB])\.default\.weight$", r"\1", name)
        name = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude")
        parameter.requires_grad_("lora_" in name or chosen(name))
        if parameter.requires_grad:
            trainable[name] = parameter
    return model, trainable


def decayed(parameters: Iterable[nn.Parameter], rate: float) -> list[dict[str, Any]]:
    """Group parameters as the field does: matrices are decayed, vectors are not."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": rate},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("method", REFERENCES)
def test_methods_equal_peft(method: str, bert: Path) -> None:
    """Trained names, logits, gradients and one AdamW step, in float64 to 1e-9.

    The reference is peft's `layers_to_transform` with biases and head unfrozen by hand.
    """
    adapted = build(bert, method)
    adapted.model.double().train()
    reference, theirs = peft_twin(bert, *REFERENCES[method])
    ours = adapted.trainable()
    assert ours.keys() == theirs.keys()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in ours:
            if "lora_B" in name:
                ours[name].normal_(0, 0.2, generator=generator)
            theirs[name].copy_(ours[name])
    inputs, labels = random_inputs(), torch.tensor([0, 1, 1, 0])
    optimizers = (
        make_optimizer(adapted, settings()),
        torch.optim.AdamW(decayed(theirs.values(), 0.1), lr=1e-3, eps=1e-6),
    )
    outputs = []
    for model, optimizer in zip((adapted.model, reference.train()), optimizers, strict=True):
        outputs.append(model(**inputs).logits)
        F.cross_entropy(outputs[-1], labels).backward()
        optimizer.step()
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(outputs[0], outputs[1], **close)
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, **close)
        torch.testing.assert_close(parameter, theirs[name], **close)


def test_bitfit_trains_the_biases_and_the_classifier(bert: Path) -> None:
    """Exactly the parameters called bias, and the classifier's weight (arXiv:2106.10199)."""
    expected = {n for n, _ in plain_bert(bert).named_parameters() if n.endswith(".bias")}
    assert set(build(bert, "bitfit").trainable()) == expected | {"classifier.weight"}


@pytest.mark.parametrize("method", [*method_names(), "all:lora(query,r=2,alpha=4,dora)"])
def test_the_optimizer_has_what_trains_and_nothing_else(method: str, bert: Path) -> None:
    """Each trainable tensor once; matrices are decayed, vectors never."""
    adapted = build(bert, method)
    optimizer = make_optimizer(adapted, settings())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in adapted.trainable().values())
    assert sorted(held) == sorted(id(p) for p in adapted.model.parameters() if p.requires_grad)
    rates = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in adapted.trainable().items():
        is_vector = name.endswith(("bias", "LayerNorm.weight", "lora_magnitude"))
        assert rates[id(parameter)] == (0.0 if is_vector else 0.1), name


def random_split(num_examples: int, *, longest: int = 14) -> EncodedSplit:
    """Draw examples of different lengths with two classes."""
    rng = np.random.default_rng(11)
    lengths = rng.integers(4, longest, num_examples)
    return EncodedSplit(
        input_ids=rng.integers(len(SPECIAL), VOCABULARY, lengths.sum()).astype(np.int32),
        token_type_ids=None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=rng.integers(0, 2, num_examples),
        pad_token_id=0,
    )


def run_training(adapted: AdaptedModel, split: EncodedSplit, given: TrainSettings) -> list[float]:
    """Train without evaluation; return the loss of every step."""
    result = train(adapted, split, given, seed=4, session=Session(observer=Silent()))
    assert result.diverged is None
    return list(result.losses)


def padded(split: EncodedSplit, indices: Iterable[int]) -> tuple[dict[str, Tensor], Tensor]:
    """Pad examples one by one, as a plain loop would."""
    rows = [torch.tensor(split.input_ids[split.offsets[i] : split.offsets[i + 1]]) for i in indices]
    ids = nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True)
    masks = nn.utils.rnn.pad_sequence([torch.ones(len(row)).long() for row in rows], True)
    labels = torch.tensor([int(split.targets[i]) for i in indices])
    return {"input_ids": ids, "attention_mask": masks}, labels


def reference_losses(model: nn.Module, split: EncodedSplit, given: TrainSettings) -> list[float]:
    """Fine-tune with torch's AdamW and transformers' schedule, nothing of the package's loop."""
    batches = []
    for epoch in range(2):  # the documented order: a generator of seed and epoch
        rng = np.random.default_rng([4, epoch])
        batches += training_batches(split, given.batch_size, rng)
    optimizer = torch.optim.AdamW(
        decayed(model.parameters(), given.weight_decay),
        lr=given.learning_rate,
        eps=given.adam_eps,
        foreach=False,
    )
    warmup_steps = round(given.warmup * len(batches))
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, warmup_steps, len(batches))
    losses = []
    model.train()
    for batch in batches:
        inputs, labels = padded(split, batch)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), given.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_full_fine_tuning_equals_a_plain_loop(bert: Path) -> None:
    """Ten steps of `full`, loss by loss to 1e-6, and the weights at the end, in fp32."""
    split = random_split(37)
    adapted = build(bert, "full")
    losses = run_training(adapted, split, settings())
    reference = plain_bert(bert)
    expected = reference_losses(reference, split, settings())
    assert len(losses) == 10
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-6)
    start_of = plain_bert(bert).state_dict()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(adapted.model.get_parameter(name), parameter, rtol=0, atol=1e-5)
        if name.endswith("weight"):  # it does train: nine steps of up to the learning rate
            assert (parameter - start_of[name]).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["full", "spafit"])
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_equal_the_whole_batch(method: str, size: int, bert: Path) -> None:
    """Accumulated gradients give the same losses, also where a batch or a piece is smaller."""
    split = random_split(37)
    whole = run_training(build(bert, method), split, settings())
    pieces = run_training(build(bert, method), split, settings(micro_batch_size=size))
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize(("warmup", "warmup_steps"), [(0, 0), (0.1, 5), (0.25, 13), (7, 7)])
def test_the_schedule_equals_transformers(schedule: str, warmup: float, warmup_steps: int) -> None:
    """Every step's learning rate, warm-up as a fraction (rounded up) or as steps."""
    total = 50
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    if schedule == "linear":
        scheduler = transformers.get_linear_schedule_with_warmup(optimizer, warmup_steps, total)
    else:
        scheduler = transformers.get_constant_schedule_with_warmup(optimizer, warmup_steps)
    given = settings(warmup=warmup, schedule=schedule)
    for step in range(total):
        assert learning_rate_factor(step, total, given) == pytest.approx(
            scheduler.get_last_lr()[0], abs=1e-15
        )
        optimizer.step()
        scheduler.step()


def start(folder: Path, method: str, *, global_seed: int) -> dict[str, Tensor]:
    """Build a method while torch's own generator is somewhere else."""
    torch.manual_seed(global_seed)
    return dict(build(folder, method, seed=3).model.named_parameters())


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_methods_start_alike(model_type: str, tmp_path: Path) -> None:
    """Heads and the adapters that methods share have the same bytes, whatever else was drawn."""
    folder = save_checkpoint(tmp_path, model_type, num_layers=3)
    starts = [start(folder, name, global_seed=number) for number, name in enumerate(method_names())]
    shared = 0
    for one in starts:
        for other in starts:
            for name in one.keys() & other.keys():
                assert torch.equal(one[name], other[name]), name
                shared += "lora_A" in name and one is not other
    assert shared > 0


def test_another_seed_starts_elsewhere(bert: Path) -> None:
    """Head and adapters depend on the seed, and adapters of two matrices differ."""
    one, other = (dict(build(bert, "lora", seed=s).model.named_parameters()) for s in (0, 1))
    layer = "bert.encoder.layer.2.attention.self"
    for name in ("classifier.weight", f"{layer}.query.lora_A"):
        assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[f"{layer}.query.lora_A"], one[f"{layer}.key.lora_A"])


DORA = "0-1:full;2-5:lora(all,r=2,alpha=4,dora)+bias"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [*method_names(), DORA])
def test_what_was_trained_is_all_that_must_be_stored(
    method: str, precision: str, bert: Path
) -> None:
    """A freshly built model with the trained state restored gives the same logits bit for bit."""
    adapted = build(bert, method, precision=precision)
    given = settings(epochs=0.4, learning_rate=1e-2, warmup=0)
    run_training(adapted, random_split(37), given)
    state = adapted.trained_state()
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    again = build(bert, method, precision=precision)
    untouched = logits_of(again)
    again.restore(state)
    assert torch.equal(logits_of(again), logits_of(adapted))
    assert not torch.equal(logits_of(again), untouched)


def logits_of(adapted: AdaptedModel) -> Tensor:
    """Compute logits in evaluation mode, in the run's precision."""
    with torch.no_grad(), adapted.numerics.autocast():
        return adapted.model.eval()(**random_inputs(seed=9)).logits


def test_a_state_is_a_copy(bert: Path) -> None:
    """Training on does not change a state that was taken, as choosing the best one needs."""
    adapted = build(bert, "spafit")
    state = adapted.trained_state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    run_training(adapted, random_split(16), settings(epochs=1))
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    assert not torch.equal(adapted.trainable()["classifier.weight"], kept["classifier.weight"])

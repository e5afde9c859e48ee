"""Every supported encoder, end to end, and the ones that are refused."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812

from spafit_bench.base.errors import UserError
from spafit_bench.config.run_config import TrainSettings
from spafit_bench.data.tasks import get_task
from spafit_bench.methods.architectures import get_architecture, locate
from spafit_bench.methods.method import method_names
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.checkpoint import (
    find_checkpoint,
    fingerprint,
    fresh_parameters,
    load_model,
    model_config,
    parameter_shapes,
    untrained_pooler,
)
from spafit_bench.training.loop import make_optimizer
from tests.support.models import (
    HIDDEN,
    MODEL_TYPES,
    build,
    random_inputs,
    save_checkpoint,
    tiny_config,
)

SETTINGS = TrainSettings(
    learning_rate=1e-2,
    epochs=1,
    batch_size=4,
    max_length=16,
    warmup=0,
    weight_decay=0.01,
    max_grad_norm=1.0,
    adam_eps=1e-6,
)
CUSTOM = "0:lora(ffn,r=2,alpha=4,dora);1:lora(attention,r=3,alpha=6,rslora)"


def digests(adapted: AdaptedModel) -> dict[str, str]:
    """SHA-256 of the bytes of every parameter and buffer."""
    tensors = dict(adapted.model.named_parameters()) | dict(adapted.model.named_buffers())
    return {
        name: sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        for name, tensor in tensors.items()
    }


def step(adapted: AdaptedModel) -> torch.Tensor:
    """Take one optimizer step on random inputs; return the logits before it."""
    optimizer = make_optimizer(adapted, SETTINGS)
    adapted.model.train()
    logits = adapted.model(**random_inputs()).logits
    F.cross_entropy(logits, torch.tensor([0, 1, 1, 0])).backward()
    optimizer.step()
    return logits.detach()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint with a language-model head per architecture."""
    root = tmp_path_factory.mktemp("encoders")
    return {name: save_checkpoint(root / name, name) for name in MODEL_TYPES}


@pytest.mark.parametrize("method", [*method_names(), CUSTOM])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_one_step_moves_what_the_plan_says_and_nothing_else(
    model_type: str, method: str, folders: dict[str, Path]
) -> None:
    """Frozen tensors are bit-identical after a step; each tensor that trains has moved."""
    adapted = build(folders[model_type], method)
    before = digests(adapted)
    step(adapted)
    after = digests(adapted)
    moved = {name for name in before if before[name] != after[name]}
    trainable = set(adapted.trainable())
    assert moved <= trainable
    assert trainable - moved <= still(model_type, adapted)


def still(model_type: str, adapted: AdaptedModel) -> set[str]:
    """Tensors whose gradient is zero in one step, by construction.

    B = 0 keeps lora_A where it is; a key's bias shifts all scores of a row alike, and softmax does
    not see it; rows of unused embeddings do not matter, since each table has used ones.
    """
    names = set(adapted.trainable())
    return {n for n in names if n.endswith("lora_A") or _is_key_bias(model_type, n)}


def _is_key_bias(model_type: str, name: str) -> bool:
    keys = {"distilbert": "k_lin.bias", "deberta-v2": "key_proj.bias"}
    return name.endswith(keys.get(model_type, "self.key.bias"))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_start_is_the_pretrained_encoder(model_type: str, folders: dict[str, Path]) -> None:
    """Adapters change no output before the first step, with either attention implementation."""
    inputs = random_inputs()
    with torch.no_grad():
        for attention in ("eager", "sdpa"):
            plain = build(folders[model_type], "full", attention=attention).model.eval()
            for method in ("lora-ii", "spafit", CUSTOM):
                adapted = build(folders[model_type], method, attention=attention).model.eval()
                torch.testing.assert_close(
                    adapted(**inputs).logits, plain(**inputs).logits, rtol=0, atol=2e-6
                )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_stored_encoder_is_what_is_loaded(model_type: str, folders: dict[str, Path]) -> None:
    """Every tensor that is not fresh has the stored bytes."""
    stored = load_file(folders[model_type] / "model.safetensors")
    model, fresh = load_model(
        find_checkpoint(str(folders[model_type])),
        get_task("rte"),
        seed=0,
        fresh_pooler=False,
        attention="eager",
    )
    for name, parameter in model.named_parameters():
        if name not in fresh:
            torch.testing.assert_close(parameter.detach(), stored[name], rtol=0, atol=0)


DEBERTA_FORMS = {
    "v2-conv": {"conv_kernel_size": 3, "conv_act": "gelu", "position_biased_input": True},
    "separate": {"share_att_key": False},
    "p2c-only": {"share_att_key": False, "pos_att_type": ["p2c"]},
    "v3-old-text": {"pos_att_type": "p2c|c2p", "position_buckets": 256},
    "narrow": {"embedding_size": 16, "type_vocab_size": 2},
    "absolute": {"relative_attention": False, "position_biased_input": True},
}


@pytest.mark.parametrize("form", DEBERTA_FORMS)
def test_forms_of_deberta(form: str, tmp_path: Path) -> None:
    """Convolution, position matrices of their own and v3's options all have their place."""
    save_checkpoint(tmp_path, "deberta-v2", **DEBERTA_FORMS[form])
    for method in ("full", "bitfit", "spafit", "all:lora(all,r=2,alpha=4)+bias"):
        adapted = build(tmp_path, method)
        before = digests(adapted)
        assert torch.isfinite(step(adapted)).all()
        moved = {name for name, digest in digests(adapted).items() if digest != before[name]}
        assert moved <= set(adapted.trainable())


def test_position_matrices_are_adapted_by_name(tmp_path: Path) -> None:
    """DeBERTa's own matrices have names; where they are shared, naming them is an error."""
    save_checkpoint(tmp_path / "own", "deberta-v2", share_att_key=False)
    save_checkpoint(tmp_path / "shared", "deberta-v2")
    line = "all:lora(position_key+position_query,r=2,alpha=4)"
    adapted = build(tmp_path / "own", line)
    assert sum(".lora_A" in name for name in adapted.trainable()) == 4
    with pytest.raises(UserError, match=r"lora\(position_key\) names no matrix"):
        build(tmp_path / "shared", line)


@pytest.mark.parametrize("changes", [{"norm_bias": True}, {"attention_bias": True}])
def test_modernbert_with_biases(changes: dict[str, bool], tmp_path: Path) -> None:
    """Where the configuration asks for biases, BitFit trains them."""
    save_checkpoint(tmp_path, "modernbert", **changes)
    adapted = build(tmp_path, "bitfit")
    inside = [name for name in adapted.trainable() if ".layers." in name]
    assert inside
    assert all(name.endswith(".bias") for name in inside)


def test_every_module_of_a_block_has_its_half() -> None:
    """The two halves of a block share nothing and name every module once."""
    for name in MODEL_TYPES:
        row = get_architecture(name)
        assert row.model_type == name
        modules = [part.module for part in row.block]
        assert len(set(modules)) == len(modules)
        assert {part.group for part in row.block} == {"attention", "ffn"}


def test_places() -> None:
    """A parameter is found by its module path, never by a part of its name."""
    row = get_architecture("bert")
    place = locate("bert.encoder.layer.11.attention.output.LayerNorm.bias", row)
    assert (place.component, place.layer, place.is_bias) == ("layer", 11, True)
    assert locate("bert.pooler.dense.weight", row).component == "pooler"
    assert locate("bert.embeddings.LayerNorm.bias", row).component == "embeddings"
    for wrong in ("bert.poolers.weight", "bert.encoder.layer.x.output.dense.bias", "weight"):
        with pytest.raises(UserError, match="is under no rule of the bert table"):
            locate(wrong, row)


def test_unsupported_encoders_name_the_supported_ones(tmp_path: Path) -> None:
    """ALBERT says why; anything else says that there is no table for it."""
    for config, reason in (
        (transformers.AlbertConfig(), "ALBERT shares one block between all its layers"),
        (transformers.GPT2Config(), "no parameter table for model type 'gpt2'"),
    ):
        config.save_pretrained(tmp_path)
        with pytest.raises(UserError) as error:
            find_checkpoint(str(tmp_path), weights=False)
        assert reason in str(error.value)
        for name in MODEL_TYPES:
            assert name in str(error.value)


FORMS = [
    (name, form)
    for name in MODEL_TYPES
    for form in ("base", "mlm", "pretraining", "classification")
    if (name, form) != ("modernbert", "pretraining")  # transformers has no such model
]


@pytest.mark.parametrize("num_labels", [3, 5])
@pytest.mark.parametrize(("model_type", "form"), FORMS)
def test_fresh_tensors_are_those_that_transformers_misses(
    model_type: str, form: str, num_labels: int, tmp_path: Path
) -> None:
    """Headers alone say what loading will miss; a stored classifier is fresh, fitting or not."""
    folder = save_checkpoint(tmp_path, model_type, form=form, num_labels=num_labels)
    checkpoint, task = find_checkpoint(str(folder)), get_task("mnli")
    names = list(parameter_shapes(checkpoint, task))
    predicted = fresh_parameters(checkpoint, names)
    _, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=model_config(checkpoint, task),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    missing = set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}
    classifier = {n for n in names if locate(n, checkpoint.architecture).component == "classifier"}
    assert set(predicted) == missing | classifier
    model, fresh = load_model(checkpoint, task, seed=3, fresh_pooler=False, attention="eager")
    assert fresh == predicted
    assert model.config.num_labels == 3


def test_a_stored_classifier_is_not_reused(tmp_path: Path) -> None:
    """The classifier depends on the seed alone, whether or not the checkpoint has one."""
    heads = []
    for form in ("base", "classification"):
        save_checkpoint(tmp_path / form, "roberta", form=form)
        heads.append(_head(tmp_path / form, seed=1))
    assert heads[0].keys() == heads[1].keys()
    assert len(heads[0]) == 4
    for name, tensor in heads[0].items():
        assert torch.equal(tensor, heads[1][name])
    other = _head(tmp_path / "base", seed=2)
    assert not torch.equal(other["classifier.dense.weight"], heads[0]["classifier.dense.weight"])


def _head(folder: Path, *, seed: int, fresh_pooler: bool = False) -> dict[str, torch.Tensor]:
    model, fresh = load_model(
        find_checkpoint(str(folder)),
        get_task("mrpc"),
        seed=seed,
        fresh_pooler=fresh_pooler,
        attention="eager",
    )
    return {n: p.detach().clone() for n, p in model.named_parameters() if n in fresh}


def test_the_pooler_is_pretrained_or_fresh(tmp_path: Path) -> None:
    """`head.pooler_init: fresh` draws it from the seed; otherwise a stored one is kept."""
    save_checkpoint(tmp_path, form="base")
    assert set(_head(tmp_path, seed=0)) == {"classifier.weight", "classifier.bias"}
    drawn = _head(tmp_path, seed=0, fresh_pooler=True)
    assert set(drawn) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert not drawn["bert.pooler.dense.bias"].any()
    weight = drawn["bert.pooler.dense.weight"]
    assert weight.shape == (HIDDEN, HIDDEN)
    assert 0.015 < weight.std() < 0.025  # initializer_range is 0.02
    assert abs(weight.mean()) < 0.003
    stored = load_file(tmp_path / "model.safetensors")["pooler.dense.weight"]
    assert not torch.equal(weight, stored)


def test_layer_norms_under_their_old_names(tmp_path: Path) -> None:
    """Gamma and beta of old checkpoints are weight and bias: not fresh, and loaded."""
    save_checkpoint(tmp_path, form="mlm")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert sum("gamma" in name for name in old) > 4
    save_file(old, file, metadata={"format": "pt"})
    checkpoint, task = find_checkpoint(str(tmp_path)), get_task("mrpc")
    model, fresh = load_model(checkpoint, task, seed=0, fresh_pooler=False, attention="eager")
    assert fresh == fresh_parameters(checkpoint, list(parameter_shapes(checkpoint, task)))
    assert not any("LayerNorm" in name for name in fresh)
    name = "bert.encoder.layer.1.output.LayerNorm.bias"
    assert torch.equal(model.get_parameter(name), tensors[name])


def test_half_precision_checkpoints_train_in_fp32(tmp_path: Path) -> None:
    """Stored fp16 is widened on loading, exactly."""
    save_checkpoint(tmp_path, dtype=torch.float16)
    adapted = build(tmp_path, "full")
    assert {p.dtype for p in adapted.model.parameters()} == {torch.float32}
    stored = load_file(tmp_path / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(adapted.model.get_parameter(name), stored[name].float())


def test_in_bf16_only_frozen_matrices_are_narrow(tmp_path: Path) -> None:
    """Whatever trains is fp32 in every precision, vectors and embeddings too."""
    save_checkpoint(tmp_path)
    adapted = build(tmp_path, "spafit", precision="bf16")
    for name, parameter in adapted.model.named_parameters():
        narrow = parameter.dtype == torch.bfloat16
        is_linear = parameter.dim() == 2 and "embeddings" not in name
        assert narrow == (is_linear and not parameter.requires_grad), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_low_precision_is_near_fp32(
    model_type: str, precision: str, folders: dict[str, Path]
) -> None:
    """Every treatment computes and has finite gradients in bf16 and fp16."""
    for method in ("full", "spafit", "all:lora(all,r=2,alpha=4,dora)"):
        exact = build(folders[model_type], method).model.eval()(**random_inputs()).logits
        adapted = build(folders[model_type], method, precision=precision)
        with adapted.numerics.autocast():
            logits = adapted.model.eval()(**random_inputs()).logits
        torch.testing.assert_close(logits.float(), exact, rtol=0, atol=0.02)
        F.cross_entropy(logits.float(), torch.tensor([0, 1, 1, 0])).backward()
        for name, parameter in adapted.trainable().items():
            assert torch.isfinite(parameter.grad).all(), name


def test_an_encoder_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    """Only a classifier may have another shape; elsewhere weights and configuration disagree."""
    save_checkpoint(tmp_path)
    tiny_config(intermediate_size=40).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"intermediate.dense.*shape.*\(48.*\(40"):
        _head(tmp_path, seed=0)


def test_shards_are_read_and_strangers_are_not(tmp_path: Path) -> None:
    """The index says what belongs to a checkpoint; another safetensors file beside it does not."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        save_checkpoint(folder, form="base")
    model = transformers.AutoModel.from_pretrained(cut)
    (cut / "model.safetensors").unlink()
    model.save_pretrained(cut, max_shard_size="20KB")
    assert len(list(cut.glob("model-*.safetensors"))) > 1
    before = fingerprint(find_checkpoint(str(cut)))
    save_file(
        {"classifier.bias": torch.zeros(2), "bert.pooler.dense.bias": torch.zeros(HIDDEN)},
        cut / "adapter.safetensors",
    )
    assert fingerprint(find_checkpoint(str(cut))) == before
    assert not untrained_pooler(find_checkpoint(str(cut)))
    task = get_task("mrpc")
    names = list(parameter_shapes(find_checkpoint(str(cut)), task))
    for folder in (whole, cut):
        fresh = fresh_parameters(find_checkpoint(str(folder)), names)
        assert fresh == ("classifier.weight", "classifier.bias")
    next(cut.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"model-00002.*not in the folder"):
        find_checkpoint(str(cut))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_untrained_pooler_is_noticed(tmp_path: Path, dtype: torch.dtype) -> None:
    """A bias of exactly zero betrays a pooler that nothing ever trained, however it is stored."""
    save_checkpoint(tmp_path, form="base")
    assert not untrained_pooler(find_checkpoint(str(tmp_path)))
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert not untrained_pooler(find_checkpoint(str(tmp_path)))
    tensors["pooler.dense.bias"].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    assert untrained_pooler(find_checkpoint(str(tmp_path)))


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("bert", {"classifier"}),
        ("roberta", {"classifier"}),
        ("deberta-v2", {"pooler", "classifier"}),
    ],
)
def test_without_weights_published_encoders_are_assumed(
    model_type: str, expected: set[str], tmp_path: Path
) -> None:
    """A bare `config.json` is planned as the encoder's published checkpoints would be."""
    tiny_config(model_type).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model_type
    checkpoint = find_checkpoint(str(tmp_path), weights=False)
    names = list(parameter_shapes(checkpoint, get_task("mrpc")))
    fresh = fresh_parameters(checkpoint, names)
    assert {locate(name, checkpoint.architecture).component for name in fresh} == expected

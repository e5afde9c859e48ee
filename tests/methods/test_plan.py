"""Plans: exact counts from formulae, one rule for every parameter, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spafit_bench.base.errors import UserError
from spafit_bench.config.run_config import HeadSettings
from spafit_bench.data.tasks import get_task
from spafit_bench.methods.architectures import get_architecture
from spafit_bench.methods.method import get_method, method_names, parse_method
from spafit_bench.methods.plan import Plan, make_plan
from spafit_bench.models.checkpoint import find_checkpoint, fresh_parameters, parameter_shapes
from spafit_bench.running.estimate import training_flops_per_token
from spafit_bench.training.prepare import plan_method
from tests.conftest import Cli
from tests.support.models import (
    FEED_FORWARD,
    HIDDEN,
    MODEL_TYPES,
    POSITIONS,
    VOCABULARY,
    build,
    plan_checkpoint,
    save_checkpoint,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models" / "bert-large-cased-meta"

# BERT-large-cased (arXiv:1810.04805, section 3; vocabulary of the cased release).
L, H, F, V, P, RANK = 24, 1024, 4096, 28_996, 512, 64
LARGE = {
    "model_type": "bert",
    "vocab_size": V,
    "hidden_size": H,
    "num_hidden_layers": L,
    "num_attention_heads": 16,
    "intermediate_size": F,
    "max_position_embeddings": P,
    "type_vocab_size": 2,
}
EMBEDDINGS = (V + P + 2) * H + 2 * H
BLOCK = 4 * (H * H + H) + (H * F + F) + (F * H + H) + 2 * 2 * H
POOLER = H * H + H
BLOCK_BIASES = 4 * H + F + H + 2 * H
FFN_BIASES = F + H + H
ADAPTER = RANK * (H + H)


def large_counts(num_labels: int) -> dict[str, int]:
    """Trainable parameters of every method on BERT-large-cased, from its dimensions."""
    classifier = (H + 1) * num_labels
    head = H + classifier
    return {
        "full": EMBEDDINGS + L * BLOCK + POOLER + classifier,
        "bitfit": H + L * BLOCK_BIASES + H + classifier,
        "lora": L * 3 * ADAPTER + classifier,
        "lora-ii": L * 4 * ADAPTER + classifier,
        "spafit": 5 * BLOCK_BIASES + 14 * (3 * ADAPTER + FFN_BIASES) + head,
        "spafit-ii": 5 * BLOCK_BIASES + 14 * (4 * ADAPTER + FFN_BIASES) + head,
        "spafit-4-9-i": 5 * BLOCK_BIASES + 14 * (3 * ADAPTER + FFN_BIASES) + head,
        "spafit-4-4-ii": 19 * (4 * ADAPTER + FFN_BIASES) + head,
        "spafit-0-22-i": 22 * BLOCK_BIASES + 3 * ADAPTER + FFN_BIASES + head,
    }


REPRESENTATIVE = {1: "stsb", 2: "mrpc", 3: "mnli"}
"""A task for each number of outputs."""


@lru_cache
def bare_shapes(folder: Path, num_labels: int) -> dict[str, tuple[int, ...]]:
    """Name every parameter of a folder with nothing but a `config.json`."""
    checkpoint = find_checkpoint(str(folder), weights=False)
    return parameter_shapes(checkpoint, get_task(REPRESENTATIVE[num_labels]))


def plan_bare(folder: Path, method: str, num_labels: int = 2) -> Plan:
    """Plan on a folder with nothing but a `config.json`."""
    checkpoint = find_checkpoint(str(folder), weights=False)
    shapes = bare_shapes(folder, num_labels)
    fresh = fresh_parameters(checkpoint, list(shapes))
    return make_plan(get_method(method), checkpoint.architecture, shapes, fresh=fresh)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with BERT-large-cased's configuration."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(LARGE), encoding="utf-8")
    return folder


@pytest.mark.parametrize("num_labels", REPRESENTATIVE)
def test_counts_on_bert_large(large: Path, num_labels: int) -> None:
    """Every method trains exactly what the formulae say, for each number of outputs in GLUE."""
    for method, expected in large_counts(num_labels).items():
        plan = plan_bare(large, method, num_labels)
        assert plan.trainable_parameters == expected, method
        assert plan.base_parameters == large_counts(num_labels)["full"]


def test_the_published_figures(large: Path) -> None:
    """The counts and percentages that SPAFIT's paper prints (arXiv:2405.00201), to its digits."""
    full, one, two = (plan_bare(large, name) for name in ("full", "spafit", "spafit-ii"))
    assert full.trainable_parameters == full.base_parameters == 333_581_314
    assert (one.trainable_parameters, two.trainable_parameters) == (5_650_434, 7_485_442)
    assert f"{two.trainable_percent:.2f}" == "2.24"
    adapters = sum(t.lora.num_parameters(*t.shape) for t in one.tensors if t.lora)
    assert f"{100 * adapters / one.base_parameters:.2f}" == "1.65"
    assert one.num_layers == 24


def test_each_stratum_of_spafit(large: Path) -> None:
    """The parts that the totals are made of."""
    plan = plan_bare(large, "spafit")
    counts = {
        name: sum(t.num_trainable for t in plan.tensors if t.stratum == name)
        for name in plan.stratum_names()
    }
    assert counts == {
        "embeddings": 0,
        "0-4": 0,
        "5-9": 56_320,
        "10-23": 5_505_024 + 86_016,
        "pooler": 1_024,
        "classifier": 2_050,
    }
    assert plan.treatment_of("5-9") == "bias"
    assert plan.treatment_of("classifier") == "full"


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with BERT-large's own config is absent")
def test_counts_on_the_real_configuration() -> None:
    """The published configuration file means the dimensions above."""
    for num_labels in REPRESENTATIVE:
        for method, expected in large_counts(num_labels).items():
            assert plan_bare(SHARED, method, num_labels).trainable_parameters == expected


def test_nine_tasks_have_one_two_or_three_outputs() -> None:
    """The label counts that the tests of counts go through are those of GLUE."""
    names = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    assert [get_task(n).num_labels for n in names] == [2, 2, 2, 1, 2, 3, 2, 2, 2]


@dataclass(frozen=True)
class Layout:
    """What one architecture holds, in terms of H = hidden, F = feed-forward, V, P of `models`."""

    embeddings: int
    embedding_biases: int
    block_weights: int
    block_biases: int
    ffn_biases: int
    query_key_value: int
    """Rows plus columns of the matrices that LoRA (I) adapts in one layer, summed."""
    attention_output: int
    pooler_weights: int = 0
    pooler_biases: int = 0
    pooler_is_stored: bool = True
    encoder: int = 0
    encoder_biases: int = 0
    classifier_dense: int = 0
    unlike: int = 0
    """What the first layer lacks."""


def _layouts() -> dict[str, Layout]:
    h, f, v, p = HIDDEN, FEED_FORWARD, VOCABULARY, POSITIONS
    bert = Layout(
        embeddings=(v + p + 2) * h + 2 * h,
        embedding_biases=h,
        block_weights=4 * h * h + 2 * h * f + 2 * h,
        block_biases=4 * h + f + h + 2 * h,
        ffn_biases=f + h + h,
        query_key_value=3 * (h + h),
        attention_output=h + h,
    )

    def like(**changes: int | bool) -> Layout:
        return Layout(**(vars(bert) | changes))

    roberta = like(embeddings=(v + p + 1) * h + 2 * h, classifier_dense=h * h + h)
    return {
        "bert": like(pooler_weights=h * h, pooler_biases=h),
        "roberta": roberta,
        "camembert": roberta,
        "xlm-roberta": roberta,
        "distilbert": like(embeddings=(v + p) * h + 2 * h, classifier_dense=h * h + h),
        "electra": like(
            embeddings=(v + p + 2) * 16 + 2 * 16,
            embedding_biases=16,
            encoder=16 * h + h,
            encoder_biases=h,
            classifier_dense=h * h + h,
        ),
        "deberta-v2": like(
            embeddings=v * h + 2 * h,
            encoder=2 * 8 * h + 2 * h,
            encoder_biases=h,
            pooler_weights=h * h,
            pooler_biases=h,
            pooler_is_stored=False,
        ),
        "modernbert": Layout(
            embeddings=v * h + h,
            embedding_biases=0,
            block_weights=3 * h * h + h * h + 2 * f * h + f * h + 2 * h,
            block_biases=0,
            ffn_biases=0,
            query_key_value=h + 3 * h,
            attention_output=h + h,
            pooler_weights=h * h + h,
            pooler_is_stored=False,
            encoder=h,
            unlike=h,
        ),
    }


def tiny_counts(model_type: str, num_labels: int, depth: int = 3) -> dict[str, int]:
    """Trainable parameters on a tiny encoder of 3 layers: groups of 1, 0 and 2 (5/24, 10/24)."""
    row, h = _layouts()[model_type], HIDDEN
    classifier = row.classifier_dense + (h + 1) * num_labels
    pooler = row.pooler_weights + row.pooler_biases
    block = row.block_weights + row.block_biases
    body = row.embeddings + row.encoder + depth * block - row.unlike
    bias_head = (row.pooler_biases if row.pooler_is_stored else pooler) + classifier
    frozen_head = (0 if row.pooler_is_stored else pooler) + classifier
    first, second = row.query_key_value, row.query_key_value + row.attention_output
    biases = row.embedding_biases + row.encoder_biases + depth * row.block_biases
    return {
        "full": body + pooler + classifier,
        "bitfit": biases + bias_head,
        "lora": depth * RANK * first + frozen_head,
        "lora-ii": depth * RANK * second + frozen_head,
        "spafit": 2 * (RANK * first + row.ffn_biases) + bias_head,
        "spafit-ii": 2 * (RANK * second + row.ffn_biases) + bias_head,
    }


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_counts_on_every_architecture(model_type: str, tmp_path: Path) -> None:
    """The plan, the adapted model and the formulae agree for every shipped method and output."""
    save_checkpoint(tmp_path, model_type, form="base", num_layers=3)
    for task in ("stsb", "mrpc", "mnli"):
        expected = tiny_counts(model_type, get_task(task).num_labels)
        assert set(expected) == set(method_names())
        for method in method_names():
            plan = plan_checkpoint(tmp_path, method, task=task)
            assert plan.trainable_parameters == expected[method], (method, task)
            assert plan.base_parameters == expected["full"]
    for method in method_names():
        adapted = build(tmp_path, method, task="mnli")
        real = sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
        assert real == expected[method], method


BIAS_SIZES = {
    "all": 7 * HIDDEN + FEED_FORWARD,
    "attention": 5 * HIDDEN,
    "ffn": FEED_FORWARD + 2 * HIDDEN,
    "LayerNorm": 2 * HIDDEN,
    "key": HIDDEN,
    "intermediate": FEED_FORWARD,
    "intermediate.dense.bias": FEED_FORWARD,
    "attention.output.LayerNorm.bias": HIDDEN,
}
MATRIX_SIZES = {
    "query": 2 * HIDDEN,
    "attention_output": 2 * HIDDEN,
    "intermediate": HIDDEN + FEED_FORWARD,
    "output": HIDDEN + FEED_FORWARD,
    "ffn": 2 * (HIDDEN + FEED_FORWARD),
    "attention": 8 * HIDDEN,
    "all": 8 * HIDDEN + 2 * (HIDDEN + FEED_FORWARD),
}
ROWS = {"query": HIDDEN, "intermediate": FEED_FORWARD, "output": HIDDEN, "attention": 4 * HIDDEN}
BLOCK_SIZE = 4 * HIDDEN**2 + 2 * HIDDEN * FEED_FORWARD + 2 * HIDDEN + 7 * HIDDEN + FEED_FORWARD

GROUPS = st.one_of(
    st.just(("frozen", 0)),
    st.just(("full", BLOCK_SIZE)),
    st.sampled_from(sorted(BIAS_SIZES)).map(lambda n: (f"bias({n})", BIAS_SIZES[n])),
    st.tuples(st.sampled_from(sorted(MATRIX_SIZES)), st.integers(1, 9)).map(
        lambda pair: (f"lora({pair[0]},r={pair[1]},alpha=8)", pair[1] * MATRIX_SIZES[pair[0]])
    ),
    st.tuples(st.sampled_from(sorted(ROWS)), st.integers(1, 9)).map(
        lambda pair: (
            f"lora({pair[0]},r={pair[1]},alpha=8,dora)+bias(ffn)",
            pair[1] * MATRIX_SIZES[pair[0]] + ROWS[pair[0]] + BIAS_SIZES["ffn"],
        )
    ),
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of six layers with a pooler."""
    return save_checkpoint(tmp_path_factory.mktemp("bert"), form="base", num_layers=6)


@settings(max_examples=40)
@given(st.lists(GROUPS, min_size=6, max_size=6))
def test_any_groups_have_the_sum_of_their_parts(groups: list[tuple[str, int]]) -> None:
    """Six groups of their own treatment count layer by layer, and the printed plan repeats them."""
    shapes = _six_layers()
    line = ";".join(f"{layer}:{text}" for layer, (text, _) in enumerate(groups))
    row = get_architecture("bert")
    plan = make_plan(parse_method(line), row, shapes, fresh=["classifier.weight"])
    for layer, (_, expected) in enumerate(groups):
        counted = sum(t.num_trainable for t in plan.tensors if t.place.layer == layer)
        assert counted == expected
    assert [t.name for t in plan.tensors] == list(shapes)
    again = make_plan(parse_method(plan.method.spec), row, shapes, fresh=["classifier.weight"])
    assert again.tensors == plan.tensors


def _six_layers() -> dict[str, tuple[int, ...]]:
    h, f = HIDDEN, FEED_FORWARD
    matrices = {
        "attention.self.query": (h, h),
        "attention.self.key": (h, h),
        "attention.self.value": (h, h),
        "attention.output.dense": (h, h),
        "intermediate.dense": (f, h),
        "output.dense": (h, f),
        "attention.output.LayerNorm": (h,),
        "output.LayerNorm": (h,),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(6):
        for module, shape in matrices.items():
            shapes[f"bert.encoder.layer.{layer}.{module}.weight"] = shape
            shapes[f"bert.encoder.layer.{layer}.{module}.bias"] = shape[:1]
    return shapes | {"classifier.weight": (2, h), "classifier.bias": (2,)}


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("all:bias(atention)", "bias(atention) names no bias of a bert layer: did you mean"),
        ("all:bias(attn.Wo.bias)", "names no bias of a bert layer"),
        ("all:lora(quer,r=1,alpha=1)", "lora(quer) names no matrix of a bert layer"),
        ("all:lora(qkv,r=1,alpha=1)", "names no matrix of a bert layer"),
        ("all:lora(query+all,r=1,alpha=1)+lora(key,r=2,alpha=1)", "adapted twice"),
        ("0-9:bias", "valid layers are 0-5"),
        ("0-3:bias;3-5:full", "layer 3 is in two groups"),
    ],
)
def test_what_fits_no_bert_layer_is_refused(line: str, fragment: str) -> None:
    """The pattern is named with the choices."""
    with pytest.raises(UserError) as error:
        make_plan(parse_method(line), get_architecture("bert"), _six_layers())
    assert fragment in str(error.value)


def test_a_parameter_under_no_rule_is_named() -> None:
    """A module that the table does not know is never frozen in silence."""
    row, method = get_architecture("bert"), get_method("full")
    for unknown in ("bert.encoder.layer.0.gate.weight", "bert.prompt.weight", "bert.encoder.norm"):
        with pytest.raises(UserError, match=unknown):
            make_plan(method, row, _six_layers() | {unknown: (4,)})


def test_a_checkpoint_without_part_of_the_encoder_is_refused(bert: Path) -> None:
    """Only tensors of the head may be fresh."""
    checkpoint = find_checkpoint(str(bert))
    shapes = parameter_shapes(checkpoint, get_task("rte"))
    name = "bert.encoder.layer.1.output.dense.weight"
    with pytest.raises(UserError, match=name):
        make_plan(get_method("full"), checkpoint.architecture, shapes, fresh=[name])


def test_fresh_tensors_of_the_head_always_train(tmp_path: Path) -> None:
    """A missing pooler trains in full although the method would freeze it or train its bias."""
    save_checkpoint(tmp_path, form="mlm")
    for method in method_names():
        plan = plan_checkpoint(tmp_path, method)
        head = [t for t in plan.tensors if t.place.component in ("pooler", "classifier")]
        assert {t.name for t in head} == set(plan.fresh)
        assert all(t.trains for t in head)
        assert plan.treatment_of("pooler") == "full"


FRESH = {
    "bert": ("classifier",),
    "roberta": ("classifier.dense", "classifier.out_proj"),
    "camembert": ("classifier.dense", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "classifier"),
    "electra": ("classifier.dense", "classifier.out_proj"),
    "deberta-v2": ("pooler.dense", "classifier"),
    "modernbert": ("head.dense", "head.norm", "classifier"),
}
"""Modules that a bare encoder of each architecture lacks."""


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_head_of_a_bare_encoder_trains(model_type: str, tmp_path: Path) -> None:
    """Whatever starts at random trains in full under every method, by name."""
    save_checkpoint(tmp_path, model_type, form="base")
    for method in method_names():
        plan = plan_checkpoint(tmp_path, method)
        modules = dict.fromkeys(name.rpartition(".")[0] for name in plan.fresh)
        assert set(modules) == set(FRESH[model_type])
        in_full = {t.name for t in plan.tensors if t.trains and t.num_trainable == t.num_parameters}
        assert set(plan.fresh) <= in_full


def test_a_pooler_drawn_anew_trains_in_full(bert: Path) -> None:
    """`head.pooler_init: fresh` makes a stored pooler count as fresh; a stored one stays as is."""
    checkpoint = find_checkpoint(str(bert))
    shapes = parameter_shapes(checkpoint, get_task("mrpc"))
    for method, kept in (("spafit", HIDDEN), ("lora", 0), ("full", HIDDEN**2 + HIDDEN)):
        counts = []
        for fresh_pooler in (False, True):
            head = HeadSettings(pooler_init="fresh" if fresh_pooler else "pretrained")
            plan, _ = plan_method(get_method(method), checkpoint, shapes, head=head)
            counts.append(sum(t.num_trainable for t in plan.tensors if t.stratum == "pooler"))
        assert counts == [kept, HIDDEN**2 + HIDDEN]


def test_an_encoder_without_biases(tmp_path: Path) -> None:
    """Presets warn that no bias trains; a pattern written by hand is an error."""
    save_checkpoint(tmp_path, "modernbert")
    bitfit = plan_checkpoint(tmp_path, "bitfit")
    assert bitfit.trainable_parameters == 2 * HIDDEN + 2
    assert any("0-1:bias matches nothing" in w for w in bitfit.warnings)
    assert any("embeddings:bias matches nothing" in w for w in bitfit.warnings)
    spafit = plan_checkpoint(tmp_path, "spafit")
    assert any("1:bias(ffn) matches nothing" in w for w in spafit.warnings)
    with pytest.raises(UserError, match=r"bias\(ffn\) matches nothing.*no such biases"):
        plan_checkpoint(tmp_path, "all:lora(qkv,r=1,alpha=1)+bias(ffn)")
    assert plan_checkpoint(tmp_path, "all:lora(qkv,r=1,alpha=1)").warnings == (
        "pooler:bias matches nothing: this encoder has no biases there",
    )


def test_a_fused_matrix_is_adapted_whole_or_not(tmp_path: Path) -> None:
    """Query, key and value in one matrix take one pair of factors; a part of it is refused."""
    save_checkpoint(tmp_path, "modernbert")
    together = plan_checkpoint(tmp_path, "all:lora(query+key+value,r=4,alpha=8)")
    assert together.tensors == plan_checkpoint(tmp_path, "all:lora(qkv,r=4,alpha=8)").tensors
    adapted = [t for t in together.tensors if t.lora]
    assert [t.num_trainable for t in adapted] == [4 * (HIDDEN + 3 * HIDDEN)] * 2
    assert "r * (hidden + 3 * hidden)" in get_architecture("modernbert").note
    with pytest.raises(UserError, match=r"query\+key\+value in one matrix.*write qkv"):
        plan_checkpoint(tmp_path, "all:lora(query+value,r=4,alpha=8)")
    gated = plan_checkpoint(tmp_path, "all:lora(intermediate,r=4,alpha=8)")
    assert [t.num_trainable for t in gated.tensors if t.lora] == [
        4 * (HIDDEN + 2 * FEED_FORWARD)
    ] * 2


def test_a_part_that_the_encoder_lacks_is_reported(tmp_path: Path) -> None:
    """A treatment written for a pooler that is not there does not pass in silence."""
    save_checkpoint(tmp_path, "roberta")
    by_hand = plan_checkpoint(tmp_path, "all:bias;pooler:full")
    assert "pooler:full matches nothing: this encoder has no pooler" in by_hand.warnings
    assert plan_checkpoint(tmp_path, "spafit").warnings == ()


def test_gradients_reach_what_all_layers_read(tmp_path: Path) -> None:
    """DeBERTa's relative positions are read in the first layer, whichever layers train."""
    save_checkpoint(tmp_path, "deberta-v2")
    above = plan_checkpoint(tmp_path, "0:frozen;1:full")
    assert (above.first_trained_layer, above.frozen_layers) == (1, 1)
    below = plan_checkpoint(tmp_path, "0:frozen;1:full;encoder:full")
    assert (below.first_trained_layer, below.frozen_layers) == (0, 0)
    head = plan_checkpoint(tmp_path, "0-1:frozen")
    assert (head.first_trained_layer, head.frozen_layers) == (2, 1)
    assert training_flops_per_token(below) > training_flops_per_token(above)


@pytest.mark.parametrize("setting", ["head.pooler=full", "head.pooler_init=fresh"])
def test_settings_of_a_missing_pooler_are_reported(call: Cli, tmp_path: Path, setting: str) -> None:
    """They change nothing, and would stand in the record as if they did."""
    save_checkpoint(tmp_path / "roberta", "roberta")
    answer = call("plan", "--method", "lora", "--model", tmp_path / "roberta", "--set", setting)
    said = "settings of head.pooler change nothing"
    assert (answer.out + answer.err).count(said) == 1, (answer.out, answer.err)


def test_a_pooler_drawn_anew_cannot_be_frozen(call: Cli) -> None:
    """It would have to train to be of any use."""
    settings = ("--set", "head.pooler=frozen", "--set", "head.pooler_init=fresh")
    error = call("run", "--preset", "smoke", "--task", "rte", "--method", "lora", *settings).error
    assert "a pooler drawn anew trains in full" in error


def test_a_method_that_trains_nothing_in_the_layers(call: Cli, tmp_path: Path) -> None:
    """BitFit on an encoder without biases is an error, unless --allow-empty accepts it."""
    save_checkpoint(tmp_path / "model", "modernbert")
    command = ("plan", "--model", "model", "--method")
    error = call(*command, "bitfit").error
    assert "'bitfit': 0-1:bias matches nothing in this encoder" in error
    assert "--allow-empty" in error
    assert call(*command, "bitfit", "--allow-empty", "--json").json["trainable_parameters"] > 0
    for method in ("lora", "spafit", "all:frozen"):
        assert call(*command, method, "--json").json["trainable_parameters"] > 0
    warnings = call(*command, "lora", "--set", "method.rank=8", "--json").json["warnings"]
    assert any("scale becomes 16 instead of 2" in warning for warning in warnings)

"""Ablations: equal budgets, reversed and random strata, boundaries, rank and alpha."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from spafit_bench.base.errors import UserError
from spafit_bench.base.yaml_files import config_folder
from spafit_bench.config.run_config import load_sources, resolve
from spafit_bench.config.selection import RunRequest, run_configs
from spafit_bench.config.sweep import final_configs, read_sweep, sweep_path
from spafit_bench.data.tasks import get_task
from spafit_bench.methods.layer_groups import parse_layers
from spafit_bench.methods.method import (
    Method,
    ablation_names,
    get_method,
    method_names,
    parse_method,
)
from spafit_bench.methods.plan import Plan
from spafit_bench.models.checkpoint import Checkpoint, find_checkpoint
from spafit_bench.training.prepare import model_shapes, plan_method
from tests.conftest import CONFIG, Cli, write_checkpoint
from tests.support.records import make_record, scores

SWEEPS = sorted(path.stem for path in config_folder().glob("ablation-*.yaml"))
DEPTHS = (2, 3, 6, 7, 12, 24, 36, 48)


@cache
def bert_large(depth: int) -> tuple[Checkpoint, dict[str, tuple[int, ...]]]:
    """An encoder of BERT-large's width, as far as a plan needs it."""
    config = CONFIG | {"vocab_size": 28996, "hidden_size": 1024, "num_hidden_layers": depth}
    config |= {"intermediate_size": 4096, "num_attention_heads": 16, "max_position_embeddings": 512}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        checkpoint = find_checkpoint(folder, weights=False)
        return checkpoint, model_shapes(checkpoint, get_task("mrpc"))


def plan_of(name: str, depth: int) -> Plan:
    """Plan a method in such an encoder."""
    checkpoint, shapes = bert_large(depth)
    return plan_method(get_method(name), checkpoint, shapes)[0]


def per_layer(method: Method, depth: int) -> list[str]:
    """The treatment of each layer."""
    found = [""] * depth
    for stratum in method.resolve(depth).strata:
        for layer in parse_layers(stratum.layers, depth):
            found[layer] = str(stratum.treatment)
    return found


def test_variants_are_methods_that_all_leaves_out() -> None:
    """Found by name, not among the paper's methods."""
    assert ablation_names() == ("lora-at-spafit", "spafit-reversed", "spafit-random")
    assert not set(ablation_names()) & set(method_names())
    with pytest.raises(UserError, match="did you mean 'spafit-reversed'"):
        get_method("spafit-revesed")


@pytest.mark.parametrize("depth", DEPTHS)
def test_reversed_strata_mirror_spafit(depth: int) -> None:
    """Layer by layer, at any depth, rounding included."""
    assert per_layer(get_method("spafit-reversed"), depth) == [
        *reversed(per_layer(get_method("spafit"), depth))
    ]


@pytest.mark.parametrize("depth", DEPTHS)
def test_random_strata_deal_the_same_treatments(depth: int) -> None:
    """As many layers of each; the seed decides; written out, it is an ordinary method."""
    method = get_method("spafit-random")
    dealt = per_layer(method, depth)
    assert Counter(dealt) == Counter(per_layer(get_method("spafit"), depth))
    assert dealt == per_layer(get_method("spafit-random"), depth)
    resolved = method.resolve(depth)
    assert resolved.resolve(depth) == resolved
    assert per_layer(parse_method(resolved.spec), depth) == dealt


def test_the_seed_of_the_dealing_matters() -> None:
    """Ten seeds deal 24 layers in ten ways, by a setting."""
    layers = load_sources(preset=None, config=None, assignments=(), flags={})
    found = set()
    for seed in range(10):
        own = (
            *layers[:-1],
            *load_sources(
                preset=None, config=None, assignments=(f"method.shuffle={seed}",), flags={}
            )[1:],
        )
        config = resolve(own, task="mrpc", method="spafit-random", seed=0)
        found.add(config.resolved_method().resolve(24).spec)
    assert len(found) == 10


@pytest.mark.parametrize("name", ["spafit-reversed", "spafit-random"])
@pytest.mark.parametrize("depth", [6, 24])
def test_rearranged_strata_train_exactly_as_much(name: str, depth: int) -> None:
    """Counts of BERT-large's shape and of six layers: the same to the last parameter."""
    assert (
        plan_of(name, depth).trainable_parameters == plan_of("spafit", depth).trainable_parameters
    )


def test_rank_solved_for_a_budget() -> None:
    """On BERT-large's 24 layers: 38 * 147,456 + 2,050 is nearest to 5,650,434."""
    plan = plan_of("lora-at-spafit", 24)
    assert plan.trainable_parameters == 38 * 24 * 3 * 2048 + 2050 == 5_605_378
    assert [(lora.rank, lora.alpha) for lora in plan.method.loras] == [(38, 76)]
    for depth in (1, 2, 6, 12):
        wanted = plan_of("spafit", depth).trainable_parameters
        gap = abs(plan_of("lora-at-spafit", depth).trainable_parameters - wanted)
        assert gap <= depth * 3 * 2048 / 2


def test_plan_says_what_is_left_of_the_difference(call: Cli) -> None:
    """As a warning, in numbers that agree with both plans."""
    ours, theirs = (
        call("plan", "--method", name, "--model", "tiny-bert", "--json").json
        for name in ("lora-at-spafit", "spafit")
    )
    gap = ours["trainable_parameters"] - theirs["trainable_parameters"]
    (note,) = ours["warnings"]
    assert f"trains {ours['trainable_parameters']:,} parameters" in note
    assert f"{abs(gap):,} {'more' if gap > 0 else 'fewer'} than spafit's" in note
    assert f"({100 * gap / theirs['trainable_parameters']:+.2f} %)" in note


def test_overrides_reach_the_target(call: Cli) -> None:
    """A pooler that trains in full does so in both; a smaller rank of the target shrinks ours."""

    def plan(*settings: str, method: str = "lora-at-spafit") -> dict[str, Any]:
        flags = [part for text in settings for part in ("--set", text)]
        return dict(call("plan", "--method", method, "--model", "tiny-bert", "--json", *flags).json)

    assert "1,792 fewer" in plan()["warnings"][0]
    assert "1,664 fewer" in plan("head.pooler=full")["warnings"][0]  # without 128 pooler biases
    small = plan("method.rank=8")
    assert (
        abs(
            small["trainable_parameters"]
            - plan("method.rank=8", method="spafit")["trainable_parameters"]
        )
        <= 4608 / 2
    )


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        ({"matches": "spafit", "strata": [["all", "bias"]]}, "no LoRA rank to adjust"),
        ({"matches": "spafti"}, "did you mean 'spafit'"),
        ({"matches": "lora-at-spafit"}, "it matches another method itself"),
        ({"shuffle": -1}, "a seed, 0 or above"),
        ({"shuffle": "yes"}, "a seed, 0 or above"),
    ],
)
def test_wrong_variants(body: dict[str, Any], fragment: str, tmp_path: Path) -> None:
    """One message that names the file."""
    strata = body.pop("strata", [["all", "lora(query,r=2,alpha=4)"]])
    body["strata"] = [{"layers": layers, "treatment": treatment} for layers, treatment in strata]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(body))
    with pytest.raises(UserError, match=fragment):
        get_method(str(file))


def test_variants_are_read_back(tmp_path: Path) -> None:
    """YAML keeps target and seed."""
    for name in ablation_names():
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(get_method(name).to_yaml_dict()))
        again = get_method(str(file))
        assert (again.matches, again.shuffle) == (
            get_method(name).matches,
            get_method(name).shuffle,
        )


@pytest.mark.parametrize(
    ("name", "depth", "sizes"),
    [
        ("spafit-1of6-3of6-i", 6, [1, 2, 3]),
        ("spafit-1of6-3of6-i", 24, [4, 8, 12]),
        ("spafit-0of6-0of6-i", 6, [0, 0, 6]),
        ("spafit-2of6-2of6-ii", 24, [8, 0, 16]),
        ("spafit-0of24-10of24-i", 24, [0, 10, 14]),
    ],
)
def test_boundaries_as_shares_of_the_depth(name: str, depth: int, sizes: list[int]) -> None:
    """Numbered methods that fit any encoder."""
    counts = Counter(t.partition("(")[0] for t in per_layer(get_method(name), depth))
    assert [counts[key] for key in ("frozen", "bias", "lora")] == sizes


@pytest.mark.parametrize("name", ["spafit-3of6-1of6-i", "spafit-1of6-7of6-i", "spafit-1of0-1of6-i"])
def test_wrong_shares(name: str) -> None:
    """Backwards, beyond the end, over zero."""
    with pytest.raises(UserError, match=r"backwards|at most 1|denominator"):
        get_method(name)


def test_alpha_follows_the_rank() -> None:
    """`alpha_per_rank` keeps the adapters' scale; together with alpha it is refused."""

    def method(*assignments: str) -> Method:
        request = RunRequest(task="mrpc", method="spafit", assignments=assignments)
        return run_configs(request)[0].resolved_method()

    (lora,) = method("method.rank=8", "method.alpha_per_rank=2").loras
    assert (lora.rank, lora.alpha, lora.scaling) == (8, 16, 2)
    (lora,) = method("method.alpha_per_rank=0.5").loras
    assert (lora.rank, lora.alpha) == (64, 32)
    with pytest.raises(UserError, match="one of the two"):
        method("method.alpha=8", "method.alpha_per_rank=2")
    with pytest.raises(UserError, match="no effect: bitfit has no LoRA"):
        run_configs(
            RunRequest(task="mrpc", method="bitfit", assignments=("method.alpha_per_rank=2",))
        )


def test_every_ablation_has_a_sweep() -> None:
    """Ready to run, each resolvable whole; none chooses on the dev set."""
    sizes = {}
    for name in SWEEPS:
        sweep = read_sweep(sweep_path(name), {})
        first = {cell: seeds[:1] for cell, seeds in sweep.seeds.items()}
        configs = final_configs(replace(sweep, tasks=("mrpc",), seeds=first), {})
        sizes[name] = len(configs)
        assert {config.select for config in configs} == {"last"}
    assert sizes == {
        "ablation-alpha": 10, "ablation-boundaries": 21, "ablation-budget": 2,
        "ablation-pooler": 3, "ablation-prefix": 2, "ablation-random": 4, "ablation-rank": 8,
        "ablation-reversed": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ablation-budget", "ablation-random", "ablation-rank"])
def test_a_sweep_runs_and_its_rows_can_be_told_apart(
    name: str, call: Cli, tmp_path: Path, data: Path
) -> None:
    """A shipped sweep on a tiny encoder: every row has its setting, and no more than that."""
    body = yaml.safe_load(sweep_path(name).read_text())
    small = {"train": {"epochs": 1, "batch_size": 8}, "precision": "fp32", "predict_test": False}
    settings = body.get("settings", {}) | small
    if "grid" in body and "method.rank" in body["grid"]:
        body["grid"]["method.rank"] = [1, 2]
    body |= {"tasks": ["mrpc"], "seeds": 0, "settings": settings}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(body))
    write_checkpoint(tmp_path / "deeper", num_hidden_layers=6)
    answer = call("sweep", "own.yaml", "--model", "deeper", "--data", data)
    assert answer.code == 0, answer.err
    table = call("table", "--json").json["tables"][0]
    labels = {
        "ablation-budget": {"spafit", "lora-at-spafit"},
        "ablation-random": {"spafit", *(f"spafit-random · shuffle {n}" for n in range(3))},
        "ablation-rank": {f"{m} · rank {r}" for m in ("spafit", "lora") for r in (1, 2)},
    }
    assert {row["method"] for row in table["rows"] if not row["baseline"]} == labels[name]


def test_an_edited_method_of_one_name_is_told_apart() -> None:
    """Where no setting says the difference, the method itself is written out."""
    records = [make_record(method="mine", config={"method.spec": spec}) for spec in ("a", "b")]
    assert {row.name for row in scores(records).rows if row.is_method} == {
        "mine · spec a", "mine · spec b",
    }  # fmt: skip

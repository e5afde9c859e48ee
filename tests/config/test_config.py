"""Layers of settings: which one wins, what a section means, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from spafit_bench.base.errors import UserError
from spafit_bench.base.yaml_files import config_folder, read_mapping
from spafit_bench.config.reference import configuration_keys
from spafit_bench.config.run_config import RunConfig, load_sources, preset_names, resolve
from spafit_bench.config.selection import RunRequest, parse_seeds, run_configs, split_list
from spafit_bench.data.tasks import TASKS
from spafit_bench.methods.method import method_names
from tests.conftest import Cli


def one(
    tmp_path: Path, text: str = "", *assignments: str, task: str = "mrpc", **request: Any
) -> RunConfig:
    """Resolve one run with a configuration file of the given text."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    request = {"method": "lora", **request}
    (config,) = run_configs(RunRequest(task=task, config=path, assignments=assignments, **request))
    return config


LAYERS: Mapping[str, dict[str, Any]] = {
    "preset": {"preset": "smoke"},
    "config": {"text": "precision: bf16"},
    "set": {"assignments": ("precision=fp16",)},
    "flag": {"flags": {"precision": "auto"}},
}
RESULTS = {"preset": "fp32", "config": "bf16", "set": "fp16", "flag": "auto"}


@pytest.mark.parametrize("strongest", LAYERS)
def test_a_stronger_layer_wins(tmp_path: Path, strongest: str) -> None:
    """Flags, then --set, then --config, then --preset, then the defaults."""
    order = list(LAYERS)
    sources: dict[str, Any] = {}
    for name in order[: order.index(strongest) + 1]:
        sources |= LAYERS[name]
    assignments = sources.pop("assignments", ())
    config = one(tmp_path, sources.pop("text", ""), *assignments, **sources)
    assert config.precision == RESULTS[strongest]
    assert config.train.weight_decay == 0.01  # from the defaults, whatever else is given


def test_a_batch_in_examples_takes_the_place_of_a_weaker_one_in_tokens(tmp_path: Path) -> None:
    """Else --batch-size would have no effect; and the other way round."""
    text = "train: {batch_tokens: 512}\nmethods: {full: {train: {batch_size: 4}}}"
    assert one(tmp_path, text).train.batch_tokens == 512
    assert one(tmp_path, text, method="full").train.batch_tokens is None
    flag = one(tmp_path, text, "train.batch_tokens=999", flags={"train": {"batch_size": 8}})
    assert (flag.train.batch_size, flag.train.batch_tokens) == (8, None)
    flag = one(tmp_path, "train: {batch_size: 4}", flags={"train": {"batch_tokens": 512}})
    assert flag.train.batch_tokens == 512
    both = one(tmp_path, "train: {batch_tokens: 512, batch_size: 4}")
    assert both.train.batch_tokens == 512


def test_the_smoke_preset_needs_no_network(tmp_path: Path) -> None:
    """The package's own model and data."""
    config = one(tmp_path, preset="smoke")
    assert (config.model, config.data, config.precision) == ("tiny-bert", "mini", "fp32")


def test_sections_within_a_file(tmp_path: Path) -> None:
    """A task's section beats the top level, a method family's beats it, the method's own beats."""
    text = """
    train: { epochs: 1, batch_size: 1, max_length: 10, warmup: 0 }
    tasks: { mrpc: { train: { batch_size: 2, max_length: 20, warmup: 1 } } }
    methods:
      lora: { train: { max_length: 30, warmup: 2 } }
      lora-ii: { train: { warmup: 3 } }
    """
    train = one(tmp_path, text, method="lora-ii").train
    assert (train.epochs, train.batch_size, train.max_length, train.warmup) == (1, 2, 30, 3)
    assert one(tmp_path, text, method="lora").train.warmup == 2
    assert one(tmp_path, text, method="spafit").train.max_length == 20
    assert one(tmp_path, text, method="spafit", task="rte").train.max_length == 10


def test_a_weaker_sources_section_loses_to_a_stronger_top_level(tmp_path: Path) -> None:
    """The defaults set mrpc's epochs; a plain `epochs` in a file or a flag overrides them."""
    assert one(tmp_path).train.epochs == 20
    assert one(tmp_path, "train: {epochs: 2}").train.epochs == 2
    assert one(tmp_path, "tasks: {mrpc: {train: {epochs: 2}}}", "train.epochs=5").train.epochs == 5
    assert one(tmp_path, flags={"train": {"epochs": 0.5}}).train.epochs == 0.5


def test_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    """YAML 1.1 takes `1e-3` for text; here it is the number that was meant."""
    assert yaml.safe_load("1e-3") == "1e-3"
    assert one(tmp_path, "train: {learning_rate: 1e-3}").train.learning_rate == 0.001
    assert one(tmp_path, "", "train.learning_rate=1e-3").train.learning_rate == 0.001


def test_a_method_with_settings_in_a_file(tmp_path: Path) -> None:
    """Whether it is named first or last, its overrides stay; a flag renames it alone."""
    text = "method: { name: spafit, rank: 3 }"
    config = one(tmp_path, text, method=None)
    assert (config.method.name, config.method.rank) == ("spafit", 3)
    assert one(tmp_path, text).method.name == "lora"
    for order in (("method=lora", "method.rank=4"), ("method.rank=4", "method=lora")):
        config = one(tmp_path, "", *order, method=None)
        assert (config.method.name, config.method.rank) == ("lora", 4), order
    lora = one(tmp_path, "", "method.rank=4").resolved_method().loras[0]
    assert (lora.rank, lora.alpha) == (4, 128)


def test_lists_in_a_file(tmp_path: Path) -> None:
    """Tasks, methods and seeds that a file names make a matrix; flags replace each."""
    path = tmp_path / "matrix.yaml"
    path.write_text("task: [mrpc, cola]\nmethod: [lora, bitfit]\nseed: [0, 1]")
    configs = run_configs(RunRequest(config=path))
    made = [(c.task, c.method.name, c.seed) for c in configs]
    assert len(made) == 8
    assert made[:3] == [("mrpc", "lora", 0), ("mrpc", "lora", 1), ("mrpc", "bitfit", 0)]
    configs = run_configs(RunRequest(config=path, method="full", seed="7"))
    assert [(c.task, c.method.name, c.seed) for c in configs] == [
        ("mrpc", "full", 7),
        ("cola", "full", 7),
    ]


def test_all_and_duplicates() -> None:
    """`all` is every task and shipped method; what is named twice runs once."""
    configs = run_configs(RunRequest(task="all", method="all", preset="smoke"))
    assert len(configs) == len(TASKS) * len(method_names())
    assert len(run_configs(RunRequest(task="mrpc,mrpc", method="lora,lora", seed="0,0-0"))) == 1


def test_one_line_methods_keep_their_commas() -> None:
    """A comma inside parentheses does not separate methods."""
    assert split_list("all:lora(query+value,r=8,alpha=16),bitfit") == [
        "all:lora(query+value,r=8,alpha=16)",
        "bitfit",
    ]


def test_ranges_of_seeds() -> None:
    """Numbers, lists and ranges; too many are a typing error."""
    assert parse_seeds("3") == [3]
    assert parse_seeds("0-2, 5") == [0, 1, 2, 5]
    for wrong in ("", "a", "-1", "1.5", "2-", "5-1", "0-99999", "1e3"):
        with pytest.raises(UserError, match="--seed"):
            parse_seeds(wrong)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_value_is_a_crash(value: Any) -> None:
    """Whatever YAML can hold, a wrong value is a message."""
    layers = load_sources(
        preset=None, config=None, assignments=(), flags={"train": {"warmup": value}}
    )
    try:
        warmup = resolve(layers, task="mrpc", method="lora", seed=0).train.warmup
    except UserError as error:
        message = str(error)
    else:
        assert not isinstance(value, bool)
        assert warmup >= 0
        return
    assert "train.warmup" in message


def test_the_shipped_files_are_sound() -> None:
    """Every preset resolves for every task and method; every method file reads back."""
    for preset in (None, *preset_names()):
        layers = load_sources(preset=preset, config=None, assignments=(), flags={})
        for task in TASKS:
            for method in method_names():
                config = resolve(layers, task=task, method=method, seed=0)
                assert config.resolved_method().name == method


def test_a_number_of_values_that_yaml_multiplies(tmp_path: Path) -> None:
    """Nested anchors that stand for a billion values are refused at once."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path = tmp_path / "many.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"many.yaml: more than 100000 values"):
        read_mapping(path)


def test_defaults_that_there_are_none_of_are_refused(call: Cli, tmp_path: Path) -> None:
    """A slip in a method's file must not train LoRA at the rate of full fine-tuning."""
    (tmp_path / "mine.yaml").write_text(
        "strata: [{layers: all, treatment: 'lora(query,r=2,alpha=4)'}]\ndefaults: lroa\n"
    )
    error = call("run", "--task", "rte", "--method", "mine.yaml", "--preset", "smoke").error
    assert "defaults: lroa" in error
    assert "did you mean 'lora'" in error


def test_defaults_name_every_method_family() -> None:
    """A shipped method without training defaults of its own would silently have another's."""
    from spafit_bench.methods.method import get_method

    families = {get_method(name).defaults for name in method_names()}
    assert families == set(read_mapping(config_folder() / "defaults.yaml")["methods"])


def test_names_in_another_spelling(tmp_path: Path) -> None:
    """Names of methods and tasks, and well-known names of precisions."""
    config = one(tmp_path, "", "precision=float32", method="LoRA_II", task="SST-2")
    assert (config.method.name, config.task) == ("lora-ii", "sst2")
    assert config.precision == "fp32"
    assert one(tmp_path, "", "precision=32", method="SPAFIT-0-1-II").precision == "fp32"
    assert one(tmp_path, "", "precision=16").precision == "fp16"
    with pytest.raises(UserError, match="did you mean 'lora'"):
        one(tmp_path, method="LORRA")


def test_a_rank_alone_says_what_the_scale_becomes(tmp_path: Path) -> None:
    """Alpha stays at 128, which nobody expects; `alpha=2x` ties it to the rank."""
    [note] = one(tmp_path, "", "method.rank=8").resolved_method().notes
    assert "scale becomes 16 instead of 2" in note
    assert "--set method.alpha=2x" in note
    tied = one(tmp_path, "", "method.rank=8", "method.alpha=2x").resolved_method()
    assert (tied.loras[0].rank, tied.loras[0].alpha, tied.notes) == (8, 16, ())
    assert not one(tmp_path, "", "method.rank=8", "method.alpha=16").resolved_method().notes
    assert not one(tmp_path, "", "method.rank=64").resolved_method().notes
    with pytest.raises(UserError, match=r"method.alpha = 'x2'"):
        one(tmp_path, "", "method.alpha=x2")


def test_every_setting_is_described() -> None:
    """The reference says what each setting means and may be."""
    keys = configuration_keys()
    assert [key.name for key in keys if not (key.meaning and key.values)] == []
    found = {key.name: key for key in keys}
    assert found["train.max_length"].values == "whole number from 8"
    assert found["precision"].values == "auto, fp32, bf16, fp16"
    assert found["save_weights"].default == "best"


def test_the_settings_that_are_shown_are_those_that_a_run_has(call: Cli, tmp_path: Path) -> None:
    """`config show` prints YAML that --config reads back; `config schema` names every setting."""
    flags = ("--task", "mrpc", "--method", "lora", "--preset", "smoke", "--set", "method.rank=4")
    shown = call("config", "show", *flags)
    assert shown.code == 0, shown.err
    (tmp_path / "mine.yaml").write_text(shown.out)
    again = call("config", "show", "--config", "mine.yaml", "--task", "mrpc", "--method", "lora")
    assert again.out == shown.out
    assert yaml.safe_load(shown.out)["method"]["rank"] == 4
    assert "train.learning_rate" in call("config", "schema").out
    assert "train" in call("config", "schema", "--json").json["properties"]

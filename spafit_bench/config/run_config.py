"""The configuration of one run, and how the sources of settings become one.

A later source wins: shipped defaults, `--preset`, `--config`, `--set`, flags. Within one file its
top level comes first, then `tasks: <task>:`, then `methods: <defaults key of the method>:`, then
`methods: <method>:`.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.base.frozen import Frozen, first_problem
from spafit_bench.base.yaml_files import config_folder, parse_yaml, read_mapping
from spafit_bench.data.custom_tasks import find_task, shipped_tasks
from spafit_bench.data.tasks import TASKS
from spafit_bench.methods.method import Method, get_method, method_names
from spafit_bench.methods.treatments import multiple_of_rank, parse_treatment


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):  # YAML reads yes, no, on and off as truth values
        raise ValueError("this must be a number")
    return value


Number = BeforeValidator(_no_truth_value)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Number]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Number]
Share = Annotated[float, Field(ge=0, lt=1), Number]
Count = Annotated[int, Field(ge=1, lt=2**31), Number]
HeadTreatment = Literal["frozen", "bias", "full"]


def known_device(name: str) -> str:
    """Return the name of a device.

    Raises:
        ValueError: it is none, whatever this machine has.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise ValueError("choices: auto, cpu, cuda, cuda:0, cuda:1, ...")
    return name


_PRECISIONS = {
    **{"float32": "fp32", "float": "fp32", "32": "fp32"},
    **{"float16": "fp16", "half": "fp16", "16": "fp16"},
    "bfloat16": "bf16",
}
"""Other names of precisions that users know from other tools."""


class Settings(Frozen):
    """A section of settings; the text under a setting is its description in the reference."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class MethodSettings(Settings):
    """A method by name, with overrides that apply to each of its LoRA treatments."""

    name: str = "spafit"
    """A method's name, YAML file or one-line form."""
    rank: Count | None = None
    """Rank of every adapter."""
    alpha: Positive | None = None
    """A number, or a multiple of the rank such as `2x`."""
    dropout: Share | None = None
    """Dropout on the adapters' input."""
    rslora: bool | None = None
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""
    dora: bool | None = None
    """Decompose weights into magnitude and direction."""
    alpha_per_rank: Positive | None = None
    """Alpha as a multiple of the rank, so that the adapters' scale stays as the rank changes."""
    shuffle: Annotated[int, Field(ge=0), Number] | None = None
    """Seed of a permutation of the treatments over the layers."""
    embeddings: HeadTreatment | None = None
    """What trains in the embeddings; the method decides if it is not given."""

    @model_validator(mode="before")
    @classmethod
    def _alpha_as_multiple(cls, body: Any) -> Any:
        """Read `alpha: 2x` as `alpha_per_rank: 2`."""
        if isinstance(body, dict) and isinstance(body.get("alpha"), str):
            multiple = multiple_of_rank(body["alpha"])
            if multiple is not None:
                return body | {"alpha": None, "alpha_per_rank": multiple}
        return body


class HeadSettings(Settings):
    """What happens on top of the encoder; None leaves it to the method."""

    pooler: HeadTreatment | None = None
    """What trains in the pooler; the method decides if it is not given."""
    pooler_init: Literal["pretrained", "fresh"] = "pretrained"
    """Keep the checkpoint's pooler, or draw a new one from the seed."""

    @field_validator("pooler_init")
    @classmethod
    def _can_learn(cls, pooler_init: str, info: ValidationInfo) -> str:
        if pooler_init == "fresh" and info.data.get("pooler") in ("frozen", "bias"):
            raise ValueError("a pooler drawn anew trains in full; leave out head.pooler")
        return pooler_init


class TrainSettings(Settings):
    """Optimisation of one run."""

    learning_rate: Positive
    """Peak learning rate."""
    epochs: Annotated[Positive, Field(le=10_000)]
    """Passes over train; may be a fraction."""
    batch_size: Count
    """Examples per optimizer step."""
    micro_batch_size: Count | None = None
    """Examples per forward pass; gradients accumulate to `batch_size`. By default the whole."""
    eval_batch_size: Count = 64
    """Examples per forward pass in evaluations."""
    max_length: Annotated[int, Field(ge=8, lt=2**31), Number]
    """Tokens per example at most; longer texts are cut."""
    batch_tokens: Count | None = None
    """Tokens per optimizer step, about, in place of `batch_size`; at least `max_length`. The loss
    of a step stays the mean over its examples."""
    warmup: NonNegative
    """Fraction of all steps if below 1, else a number of steps."""
    schedule: Literal["linear", "constant"] = "linear"
    """After warm-up: decay to zero, or stay."""
    weight_decay: NonNegative
    """Decoupled; never on biases and normalisations."""
    max_grad_norm: Positive
    """Gradients are clipped at this norm."""
    adam_beta1: Share = 0.9
    """AdamW's decay of the mean."""
    adam_beta2: Share = 0.999
    """AdamW's decay of the squares' mean."""
    adam_eps: Positive
    """AdamW's epsilon."""

    @field_validator("batch_tokens")
    @classmethod
    def _holds_any_example(cls, batch_tokens: int | None, info: ValidationInfo) -> int | None:
        longest = info.data.get("max_length")
        if batch_tokens is not None and longest is not None and batch_tokens < longest:
            raise ValueError(f"one example may have more tokens, max_length = {longest}")
        return batch_tokens


WITHOUT_EFFECT = frozenset(
    {
        *("model", "revision", "data", "split", "offline", "device"),
        *("predict_test", "save_weights", "measure_forgetting", "cache", "cuda_graphs"),
        "allow_empty",
    }
)
"""Settings of `RunConfig` that do not change what a run computes: where its inputs are (their
content is hashed), where it computes, and what is kept of it. They are not part of a run's name, do
not part rows of tables, and may differ between two attempts at one result."""

_ALWAYS_IN_NAMES = frozenset(
    {
        *("seed", "precision", "engine", "limit", "holdout", "select"),
        *("train.micro_batch_size", "train.eval_batch_size", "train.schedule"),
        *("train.adam_beta1", "train.adam_beta2", "head.pooler_init"),
    }
)
"""Settings that runs' names contain even at their defaults, as they always have. This list does
not grow: any other setting, and so each new one, enters only where it differs from its default."""


class RunConfig(Settings):
    """Everything that one run needs to know."""

    task: str
    """A task's name or YAML file; see `list tasks`."""
    method: MethodSettings = MethodSettings()
    """The method and overrides of it."""
    model: str = "bert-large-cased"
    """Hub name, checkpoint folder, or tiny-bert."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    data: str = "hub"
    """hub, mini, or a folder."""
    split: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of train, of each class alike, that becomes dev if the folder has no dev set."""
    offline: bool = False
    """Never ask the hub."""
    cache: bool = True
    """Keep tokenised text for later runs, in the user's cache folder."""
    cache_prefix: bool = False
    """Compute the output of the frozen first layers once and cache it, without their dropout."""
    cuda_graphs: bool = False
    """On a GPU, record the steps of each batch shape and replay them."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the order of examples, of dropout and of what is drawn."""
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        BeforeValidator(lambda name: _PRECISIONS.get(str(name).lower(), name)),
    ] = "auto"
    """Of matrix products; auto: bf16 where the hardware has it, else fp32."""
    device: Annotated[str, AfterValidator(known_device)] = "auto"
    """auto, cpu, cuda or cuda:i."""
    engine: Literal["auto", "fast", "plain"] = "auto"
    """How logits are computed: fused and without padding, or by the model as it was written."""
    limit: Count | None = None
    """Train on the first so many examples; dev stays whole."""
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of train that is held out and evaluated on instead of dev, to choose settings."""
    select: Literal["last", "best"] = "last"
    """Report the last evaluation or the best (optimistic)."""
    predict_test: bool = True
    """Predict the test sets at the end."""
    save_weights: Literal["all", "best", "none"] = "best"
    """Adapters kept: of every evaluation, of the chosen one, or none."""
    measure_forgetting: bool = False
    """Record how far the encoder moved from the pretrained one; changes nothing else."""
    allow_empty: bool = False
    """Allow a method that trains nothing in the layers (BitFit on a model without biases)."""
    head: HeadSettings = HeadSettings()
    """What happens on top of the encoder."""
    train: TrainSettings
    """Optimisation."""

    def resolved_method(self) -> Method:
        """Return the method with the overrides of `method` and `head` applied.

        Raises:
            UserError: unknown method, or LoRA settings for a method without LoRA.
        """
        parts = {"embeddings": self.method.embeddings, "pooler": self.head.pooler}
        chosen = {part: parse_treatment(text) for part, text in parts.items() if text}
        keys = ("rank", "alpha", "dropout", "rslora", "dora", "alpha_per_rank", "shuffle")
        settings = {key: getattr(self.method, key) for key in keys}
        method = get_method(self.method.name)
        return method.overridden({k: v for k, v in settings.items() if v is not None}, chosen)

    def settings_in_name(self) -> dict[str, Any]:
        """Return the settings that a run's name is computed from, as JSON.

        Those of `method`, and `head.pooler`, are left out: the resolved method states them.
        """
        hidden = {*WITHOUT_EFFECT, "method"}
        changed = self.model_dump(mode="json", exclude=hidden, exclude_defaults=True)
        named: dict[str, Any] = {}
        for key, value in self.model_dump(mode="json", exclude=hidden).items():
            if not isinstance(value, dict):
                if key in changed or key in _ALWAYS_IN_NAMES:
                    named[key] = value
                continue
            kept = changed.get(key, {})
            named[key] = {
                k: v for k, v in value.items() if k in kept or f"{key}.{k}" in _ALWAYS_IN_NAMES
            }
        named["head"].pop("pooler", None)
        if named["head"].keys() == {"pooler_init"}:  # as names have always been written
            named["head"] = self.head.pooler_init
        return named


@dataclass(frozen=True)
class SettingsSource:
    """One source of settings."""

    where: str
    """Named in messages."""
    body: Mapping[str, Any]


_SECTIONS = ("tasks", "methods")


def load_sources(
    *, preset: str | None, config: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]
) -> tuple[SettingsSource, ...]:
    """Collect and check every source of settings, weakest first.

    Args:
        preset: name of a file in `configs/presets`.
        config: a YAML file.
        assignments: `key=value` texts of `--set`, keys with dots.
        flags: nested settings from the command line.

    Raises:
        UserError: an unreadable file or an unknown key, with the nearest match.
    """
    sources = [_file_source(config_folder() / "defaults.yaml", "defaults")]
    if preset is not None:
        if preset not in preset_names():
            raise UserError(f"unknown preset {preset!r}: {nearest(str(preset), preset_names())}")
        sources.append(_file_source(config_folder() / "presets" / f"{preset}.yaml", preset))
    if config is not None:
        sources.append(_file_source(config, str(config)))
    sources += [_assignment_source(text) for text in assignments]
    sources.append(SettingsSource("the command line", flags))
    return tuple(sources)


def preset_names() -> tuple[str, ...]:
    """Names that `--preset` takes."""
    return tuple(sorted(path.stem for path in (config_folder() / "presets").glob("*.yaml")))


def _file_source(path: Path, where: str) -> SettingsSource:
    body = read_mapping(path)
    check_settings(body, where)
    return SettingsSource(where, body)


def check_settings(body: Any, where: str) -> None:
    """Refuse unknown keys in settings with `tasks:` and `methods:` sections.

    Raises:
        UserError: an unknown key, with the nearest match.
    """
    if not isinstance(body, dict):
        raise UserError(f"{where}: must be a mapping of settings, not {body!r:.60}")
    for key, value in body.items():
        if key in _SECTIONS:
            _check_section(key, value, where)
        else:
            _check_key(RunConfig, key, value, where, "")


def _check_section(section: str, value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {section!r} must be a mapping from names to settings")
    for name, settings in value.items():
        known = (*TASKS, *shipped_tasks())
        is_file = str(name).endswith((".yaml", ".yml"))
        if section == "tasks" and name not in known and not is_file:
            raise UserError(f"{where}: unknown task {str(name)!r}: {nearest(str(name), known)}")
        if not isinstance(settings, dict):
            raise UserError(f"{where}: {section}.{name} must be a mapping of settings")
        for key, inner in settings.items():
            if chosen_by(key, inner):
                raise UserError(
                    f"{where}: {section}.{name}.{key} cannot be set there; use its own flag"
                )
            _check_key(RunConfig, key, inner, where, f"{section}.{name}.")


def chosen_by(key: str, value: Any) -> str | None:
    """Name the flag that chooses what a setting would: a task, a seed, a method by name."""
    names = key != "method" or not isinstance(value, dict) or "name" in value
    return key if key in ("task", "seed", "method") and names else None


def check_method_sections(sources: Sequence[SettingsSource], methods: Sequence[str]) -> None:
    """Refuse a section of `methods:` that is neither of a known method nor of a requested one.

    Raises:
        UserError: with the nearest match.
    """
    names = [*method_names(), *methods]
    known = dict.fromkeys([*names, *(get_method(name).defaults for name in names)])
    for source in sources:
        for name in source.body.get("methods", {}):
            if name not in known:
                raise UserError(
                    f"{source.where}: methods.{name}: no such method: {nearest(str(name), known)}"
                )


def _check_key(model: type[BaseModel], key: Any, value: Any, where: str, path: str) -> None:
    """Refuse a key that the model does not have, at any depth."""
    choices = list(model.model_fields)
    if key not in choices:
        raise UserError(
            f"{where}: unknown key {path + str(key)!r}: {_meant(str(key), choices, path)}"
        )
    inner = section_of(model.model_fields[key].annotation)
    if inner is MethodSettings and isinstance(value, str | list) and not path:
        return
    if inner is not None:
        if not isinstance(value, dict):
            raise UserError(f"{where}: {path}{key} must be a mapping of settings, not {value!r}")
        for inner_key, inner_value in value.items():
            _check_key(inner, inner_key, inner_value, where, f"{path}{key}.")


def _meant(key: str, choices: Sequence[str], path: str) -> str:
    """Say what a key may have been meant to be: one further down first, then its neighbours."""
    if path:
        return nearest(key, choices)
    for section in choices:
        inner = section_of(RunConfig.model_fields[section].annotation)
        if inner is not None and key in inner.model_fields:
            return f"did you mean {f'{section}.{key}'!r}?"
    return nearest(key, (*choices, *_SECTIONS))


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the type of a section of settings; None for a single setting."""
    for candidate in typing.get_args(annotation) or (annotation,):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _assignment_source(text: str) -> SettingsSource:
    key, equals, value = text.partition("=")
    where = f"--set {text}"
    if not equals or not key.strip():
        raise UserError(f"{where}: write key=value, e.g. --set method.rank=8")
    return assignment(key.strip(), parse_yaml(value, where), where)


def assignment(key: str, value: Any, where: str) -> SettingsSource:
    """Return one setting as a source.

    Args:
        key: with dots, e.g. `train.learning_rate`.
        value: as YAML reads it.
        where: named in messages.

    Raises:
        UserError: no such setting.
    """
    if key.partition(".")[0] in _SECTIONS:
        raise UserError(f"{where}: sections are for files; set the key itself, e.g. train.epochs=3")
    for part in reversed(key.split(".")):
        value = {part: value}
    for first, inner in value.items():
        if first in ("task", "seed"):
            raise UserError(f"{where}: use --{first}")
        _check_key(RunConfig, first, inner, where, "")
    return SettingsSource(where, value)


def resolve(sources: Sequence[SettingsSource], *, task: str, method: str, seed: int) -> RunConfig:
    """Merge the sources into the configuration of one run.

    Raises:
        UserError: a value of the wrong type or out of range, naming the key and its source.
    """
    own = SettingsSource(f"the file of {task}", {"train": find_task(task).train})
    check_settings(own.body, own.where)
    family = get_method(method).defaults
    families = {name: None for source in sources for name in source.body.get("methods", {})}
    if family not in families:
        raise UserError(f"method {method}: defaults: {family}: {nearest(family, families)}")
    merged: dict[str, Any] = {}
    given_by: dict[str, str] = {}
    sections = dict.fromkeys((("tasks", task), ("methods", family), ("methods", method)))
    for source in (sources[0], own, *sources[1:]):
        _merge(merged, _without_names(source.body), given_by, source.where)
        for section, name in sections:
            settings = source.body.get(section, {}).get(name, {})
            _merge(merged, settings, given_by, f"{source.where}, {section}.{name}")
    merged |= {"task": task, "seed": seed, "method": merged.get("method", {}) | {"name": method}}
    given_by |= {"seed": "--seed"}
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        key, problem = first_problem(error)
        raise UserError(f"{given_by.get(key, 'configuration')}: {problem}") from None


def _merge(
    into: dict[str, Any],
    settings: Mapping[str, Any],
    sources: dict[str, str],
    where: str,
    path: str = "",
) -> None:
    """Merge settings into `into`, section by section; note in `sources` where each value is from.

    `path` is the dotted name of the section, ending in a dot.
    """
    if path == "train." and "batch_size" in settings:
        into.pop("batch_tokens", None)  # the size of a batch is given in one of the two
    for key, value in settings.items():
        if isinstance(value, dict):
            section = into.setdefault(key, {})
            if not isinstance(section, dict):
                section = into[key] = {}
            _merge(section, value, sources, where, f"{path}{key}.")
        else:
            into[key] = value
            sources[f"{path}{key}"] = where


def _without_names(body: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out sections and what is chosen elsewhere; `method: lora` names one, no settings."""
    top = {key: value for key, value in body.items() if key not in (*_SECTIONS, "task", "seed")}
    if not isinstance(top.get("method", {}), dict):
        del top["method"]
    return top

"""What a fine-tuning method is: an ordered list of layer groups, each with a treatment.

Full fine-tuning, BitFit (arXiv:2106.10199), LoRA (arXiv:2106.09685) and SPAFIT (arXiv:2405.00201)
are presets of this one mechanism, in `configs/methods/*.yaml`. A method of your own is another
YAML file, or one line:

    0-4:frozen;5-9:bias;10-23:lora(query+key+value,r=64,alpha=128)+bias(ffn)

Layer groups are `A-B` (both ends included, counted from 0), `A`, `all`, or half-open fractions of
the depth such as `5/24..10/24`, which scale with the encoder (rounded half to even).
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from spafit_bench.base.errors import UserError, known_name, nearest
from spafit_bench.base.yaml_files import config_folder, read_mapping
from spafit_bench.methods.layer_groups import parse_layers, range_text
from spafit_bench.methods.treatments import BIAS, FROZEN, FULL, Lora, Treatment, parse_treatment

PARTS = ("embeddings", "encoder", "pooler", "classifier")


@dataclass(frozen=True)
class Stratum:
    """A group of layers under one treatment."""

    layers: str
    """As written; `Method.resolve` turns it into explicit layers."""
    treatment: Treatment

    def __str__(self) -> str:
        return f"{self.layers}:{self.treatment}"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A stratified fine-tuning method."""

    name: str
    strata: tuple[Stratum, ...]
    embeddings: Treatment = FROZEN
    encoder: Treatment = FROZEN
    """Encoder-wide tensors of no single layer (see `architectures.py`)."""
    pooler: Treatment = BIAS
    classifier: Treatment = FULL
    description: str = ""
    source: str = ""
    defaults: str = ""
    """The key under `methods:` of a configuration file whose training defaults apply."""
    shuffle: int | None = None
    """Seed of a permutation of the treatments over the layers; None keeps the groups together."""
    matches: Method | None = None
    """A method whose trainable parameters this one is to have; its rank is solved for that."""
    notes: tuple[str, ...] = ()
    """What a user should know about settings that changed the method."""
    is_preset: bool = False
    """A pattern of a preset may match nothing in some encoder; one written by hand may not."""

    @property
    def spec(self) -> str:
        """The method in one line; parts that have their default are left out."""
        parts = [str(stratum) for stratum in self.strata]
        for part in PARTS:
            treatment = getattr(self, part)
            if treatment != getattr(Method, part):
                parts.append(f"{part}:{treatment}")
        return ";".join(parts)

    @property
    def loras(self) -> tuple[Lora, ...]:
        """Every LoRA treatment, in order of the strata."""
        return tuple(lora for stratum in self.strata for lora in stratum.treatment.loras)

    def resolve(self, num_layers: int) -> Method:
        """Return the method with explicit layers for an encoder of the given depth.

        Raises:
            UserError: layers overlap, are left out or are out of range.
        """
        owners: dict[int, Stratum] = {}
        strata = []
        for stratum in self.strata:
            try:
                layers = parse_layers(stratum.layers, num_layers)
            except UserError as error:
                raise UserError(f"method {self.name!r}: {error}") from None
            for layer in layers:
                if layer in owners:
                    raise UserError(
                        f"method {self.name!r}: layer {layer} is in two groups, "
                        f"{owners[layer].layers!r} and {stratum.layers!r}"
                    )
                owners[layer] = stratum
            if layers:
                strata.append(Stratum(range_text(layers), stratum.treatment))
        missing = [layer for layer in range(num_layers) if layer not in owners]
        if missing:
            raise UserError(
                f"method {self.name!r} leaves out layer {missing[0]} of an encoder of "
                f"{num_layers} layers; say what happens to each of 0-{num_layers - 1}"
            )
        if self.shuffle is not None:
            strata = _shuffled([owners[n].treatment for n in range(num_layers)], self.shuffle)
        return replace(self, strata=tuple(strata), shuffle=None)

    def with_lora(self, **changes: Any) -> Method:
        """Return the method with fields of every LoRA treatment replaced."""
        return self._with_loras(lambda lora: replace(lora, **changes))

    def overridden(self, settings: Mapping[str, Any], parts: Mapping[str, Treatment]) -> Method:
        """Return the method, and the one that it matches, with settings and parts replaced.

        Args:
            settings: fields of LoRA (for a method that has it), `alpha_per_rank`, `shuffle`.
            parts: treatments of what is around the layers.

        Raises:
            UserError: both alpha and alpha_per_rank.
        """
        fields = {k: v for k, v in settings.items() if k not in ("alpha_per_rank", "shuffle")}
        method = self.with_lora(**fields) if fields else self
        if not {"alpha", "alpha_per_rank"} & settings.keys():
            method = replace(method, notes=_scale_notes(self.loras, method.loras))
        if "alpha_per_rank" in settings:
            if "alpha" in settings:
                raise UserError("method.alpha and method.alpha_per_rank: give one of the two")
            method = method.with_scaling(settings["alpha_per_rank"])
        target = self.matches and self.matches.overridden(settings, parts)
        changed: dict[str, Any] = {"shuffle": settings.get("shuffle", self.shuffle), **parts}
        return replace(method, matches=target, **changed)

    def with_scaling(self, alpha_per_rank: float) -> Method:
        """Return the method with every alpha at a multiple of its rank."""
        return self._with_loras(lambda lora: replace(lora, alpha=alpha_per_rank * lora.rank))

    def with_rank(self, rank: int) -> Method:
        """Return the method with every LoRA treatment at one rank; alpha / rank stays."""
        return self._with_loras(
            lambda lora: replace(lora, rank=rank, alpha=lora.alpha / lora.rank * rank)
        )

    def _with_loras(self, change: Callable[[Lora], Lora]) -> Method:
        strata = []
        for stratum in self.strata:
            loras = tuple(map(change, stratum.treatment.loras))
            strata.append(replace(stratum, treatment=replace(stratum.treatment, loras=loras)))
        return replace(self, strata=tuple(strata))

    def to_yaml_dict(self) -> dict[str, Any]:
        """Return the method as the content of a YAML file that `get_method` reads back."""
        body: dict[str, Any] = {"name": self.name}
        for key in ("description", "source", "defaults"):
            if getattr(self, key):
                body[key] = getattr(self, key)
        if self.shuffle is not None:
            body["shuffle"] = self.shuffle
        if self.matches is not None:
            body["matches"] = self.matches.name
        body["strata"] = [
            {"layers": stratum.layers, "treatment": str(stratum.treatment)}
            for stratum in self.strata
        ]
        return body | {part: str(getattr(self, part)) for part in PARTS}


def _scale_notes(before: Sequence[Lora], after: Sequence[Lora]) -> tuple[str, ...]:
    """Say how another rank changes the scale of adapters whose alpha stays."""
    notes = [
        f"method.rank = {new.rank} leaves alpha at {new.alpha:g}: the adapters' scale becomes "
        f"{new.scaling:.3g} instead of {old.scaling:.3g}; to keep alpha / rank add "
        f"--set method.alpha={old.alpha / old.rank:g}x"
        for old, new in zip(before, after, strict=True)
        if new.rank != old.rank
    ]
    return tuple(dict.fromkeys(notes))


def _shuffled(treatments: Sequence[Treatment], seed: int) -> list[Stratum]:
    """Permute treatments over the layers; neighbours of one treatment are one group."""
    order = list(treatments)
    random.Random(seed).shuffle(order)  # noqa: S311 - an experiment's seed, no secret
    strata, start = [], 0
    for treatment, alike in itertools.groupby(order):
        end = start + len(list(alike))
        strata.append(Stratum(range_text(range(start, end)), treatment))
        start = end
    return strata


def parse_method(text: str) -> Method:
    """Read a method in its one-line form.

    Raises:
        UserError: not in the grammar; the message quotes the part that is wrong.
    """
    strata: list[Stratum] = []
    parts: dict[str, Any] = {}
    for item in filter(None, (piece.strip() for piece in text.split(";"))):
        where, colon, treatment = (piece.strip() for piece in item.partition(":"))
        if not colon:
            raise UserError(f"{item!r} is not LAYERS:TREATMENT, e.g. 0-4:frozen")
        if where in PARTS:
            if where in parts:
                raise UserError(f"method {text!r} treats {where!r} twice")
            parts[where] = _part_treatment(where, treatment)
        else:
            parse_layers(where, 10**6)  # the grammar is checked here, the range against a model
            strata.append(Stratum(where, parse_treatment(treatment)))
    if not strata:
        raise UserError(f"method {text!r} has no layer group, e.g. all:bias")
    method = replace(Method(name="", strata=tuple(strata)), **parts)
    return replace(method, name=method.spec, defaults=_defaults_like(method))


def _part_treatment(part: str, text: str) -> Treatment:
    treatment = parse_treatment(text)
    if treatment.loras or treatment.biases not in ((), ("all",)):
        raise UserError(f"{part}: {text!r} is not possible there; choices: frozen, bias, full")
    if part == "classifier" and treatment != FULL:
        raise UserError(f"classifier: {text!r} would leave random outputs; it is always full")
    return treatment


def _defaults_like(method: Method) -> str:
    """Training defaults for a method written by hand: those of the preset most like it."""
    if any(stratum.treatment.full for stratum in method.strata):
        return "full"
    return "lora" if method.loras else "bitfit"


def method_names() -> tuple[str, ...]:
    """Names of the shipped methods, in the order of tables."""
    return _names_in(config_folder() / "methods")


def ablation_names() -> tuple[str, ...]:
    """Names of the shipped variants that take a method apart; `all` leaves them out."""
    return _names_in(config_folder() / "methods" / "ablations")


def _names_in(folder: Path) -> tuple[str, ...]:
    names = (path.stem for path in folder.glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: (_body(name)["order"], name)))


def known_method(text: str) -> str:
    """Return a shipped method's name as the package writes it; `LoRA` means `lora`.

    One-line forms and the names of files are returned as they are.
    """
    if ":" in text or text.endswith((".yaml", ".yml")):
        return text
    return known_name(text, (*method_names(), *ablation_names())).lower()


def get_method(text: str) -> Method:
    """Return the method that `text` names.

    Args:
        text: a shipped name, a numbered form such as `spafit-4-9-i` or (in shares of the depth)
            `spafit-1of6-3of6-i`, the path of a YAML file, or the one-line form.

    Raises:
        UserError: no such method; the message has the nearest match.
    """
    if ":" in text and not text.endswith((".yaml", ".yml")):
        return parse_method(text)
    if text.endswith((".yaml", ".yml")):
        return _from_yaml(Path(text), is_preset=False)
    known = (*method_names(), *ablation_names())
    if text in known:
        return _from_yaml(_preset_path(text), is_preset=True)
    for name in method_names():
        if numbered := _numbered(name, text):
            return numbered
    forms = [
        body["numbered_as"] for name in method_names() if "numbered_as" in (body := _body(name))
    ]
    raise UserError(f"unknown method {text!r}: {nearest(text, (*known, *forms))}")


def _preset_path(name: str) -> Path:
    folder = config_folder() / "methods"
    own = folder / f"{name}.yaml"
    return own if own.exists() else folder / "ablations" / f"{name}.yaml"


def _body(name: str) -> dict[str, Any]:
    return _shipped_body(_preset_path(name))


@cache
def _shipped_body(path: Path) -> dict[str, Any]:
    return read_mapping(path)


def _numbered(preset: str, text: str) -> Method | None:
    """Match `text` against the preset's numbered form and set its boundaries.

    N1, N2, ... are the last layers (inclusive, from 0) of the groups in order; the last group takes
    the rest. N1 = N2 leaves out the second group. `1of6` instead ends a group at a sixth of the
    depth, whatever that is; `0of6` leaves the first group out.
    """
    form = _body(preset).get("numbered_as")
    if form is None:
        return None
    base = _from_yaml(_preset_path(preset), is_preset=True)
    if match := re.fullmatch(re.sub(r"N\d+", r"(\\d{1,4}of\\d{1,4})", form), text):
        shares = [share.replace("of", "/") for share in match.groups()]
        groups = zip(base.strata, ["", *shares], [*shares, ""], strict=True)
        strata = [replace(stratum, layers=f"{a}..{b}") for stratum, a, b in groups]
        for stratum in strata:
            parse_layers(stratum.layers, 10**6)
        return replace(base, name=text, strata=tuple(strata))
    match = re.fullmatch(re.sub(r"N\d+", r"(\\d{1,4})", form), text)
    if match is None:
        return None
    ends = [int(number) for number in match.groups()]
    if ends != sorted(ends):
        raise UserError(f"method {text!r}: boundaries must not decrease ({form}, N1 <= N2)")
    strata, start = [], 0
    for stratum, end in zip(base.strata, ends, strict=False):
        if end >= start:
            strata.append(replace(stratum, layers=range_text(range(start, end + 1))))
        start = end + 1
    strata.append(replace(base.strata[-1], layers=f"{start}-last"))
    return replace(base, name=text, strata=tuple(strata))


_FACTS = ("name", "description", "source", "defaults", "numbered_as", "order")
_KEYS = (*_FACTS, "strata", *PARTS, "shuffle", "matches")


def _from_yaml(path: Path, *, is_preset: bool) -> Method:
    body = read_mapping(path)
    for key in body:
        if key not in _KEYS:
            raise UserError(f"{path}: unknown key {key!r}; {nearest(str(key), _KEYS)}")
    rows = body.get("strata")
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: 'strata' must be a list of layer groups with treatments")
    strata = []
    for row in rows:
        if not isinstance(row, dict) or set(row) != {"layers", "treatment"}:
            raise UserError(f"{path}: a stratum has exactly 'layers' and 'treatment', not {row!r}")
        parse_layers(str(row["layers"]), 10**6)
        strata.append(Stratum(str(row["layers"]).strip(), parse_treatment(row["treatment"])))
    parts: dict[str, Any] = {p: _part_treatment(p, body[p]) for p in PARTS if p in body}
    method = Method(name=str(body.get("name", path.stem)), strata=tuple(strata))
    return replace(
        replace(method, **parts),
        description=str(body.get("description", "")),
        source=str(body.get("source", "")),
        defaults=str(body.get("defaults", _defaults_like(method))),
        shuffle=_seed(body.get("shuffle"), path),
        matches=_target(body.get("matches"), method, path),
        is_preset=is_preset,
    )


def _seed(value: Any, path: Path) -> int | None:
    if value is None or (type(value) is int and value >= 0):
        return value
    raise UserError(f"{path}: shuffle = {value!r}: a seed, 0 or above")


def _target(name: Any, method: Method, path: Path) -> Method | None:
    """Return the method whose number of trainable parameters a file asks for."""
    if name is None:
        return None
    if not method.loras:
        raise UserError(
            f"{path}: matches = {name}: there is no LoRA rank to adjust; add a LoRA treatment"
        )
    target = get_method(str(name))
    if target.matches is not None:
        raise UserError(
            f"{path}: matches = {name}: it matches another method itself; name one that does not"
        )
    return target

"""What a fine-tuning method is: an ordered list of layer groups, each with a treatment.

Full fine-tuning, BitFit (arXiv:2106.10199), LoRA (arXiv:2106.09685) and SPAFIT (arXiv:2405.00201)
are presets of this one mechanism, in `configs/methods/*.yaml`. A method of your own is another
YAML file, or one line:

    0-4:frozen;5-9:bias;10-23:lora(query+key+value,r=64,alpha=128)+bias(ffn)

Layer groups are `A-B` (both ends included, counted from 0), `A`, `all`, or half-open fractions of
the depth such as `5/24..10/24`, which scale with the encoder (rounded half to even).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from spafit_bench.errors import UserError, nearest
from spafit_bench.shipped import config_folder, read_yaml
from spafit_bench.treatments import BIAS, FROZEN, FULL, Lora, Treatment, parse_treatment

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
                strata.append(Stratum(_range_text(layers), stratum.treatment))
        missing = [layer for layer in range(num_layers) if layer not in owners]
        if missing:
            raise UserError(
                f"method {self.name!r} leaves out layer {missing[0]} of an encoder of "
                f"{num_layers} layers; say what happens to each of 0-{num_layers - 1}"
            )
        return replace(self, strata=tuple(strata))

    def with_lora(self, **changes: Any) -> Method:
        """Return the method with fields of every LoRA treatment replaced."""
        strata = []
        for stratum in self.strata:
            loras = tuple(replace(lora, **changes) for lora in stratum.treatment.loras)
            strata.append(replace(stratum, treatment=replace(stratum.treatment, loras=loras)))
        return replace(self, strata=tuple(strata))

    def to_yaml_dict(self) -> dict[str, Any]:
        """Return the method as the content of a YAML file that `get_method` reads back."""
        body: dict[str, Any] = {"name": self.name}
        for key in ("description", "source", "defaults"):
            if getattr(self, key):
                body[key] = getattr(self, key)
        body["strata"] = [
            {"layers": stratum.layers, "treatment": str(stratum.treatment)}
            for stratum in self.strata
        ]
        return body | {part: str(getattr(self, part)) for part in PARTS}


def parse_layers(text: str, num_layers: int) -> range:
    """Turn a layer group into explicit layers of an encoder.

    Args:
        text: `A-B`, `A`, `A-last`, `all`, or `F..G` with fractions of the depth, either end open.
        num_layers: depth of the encoder.

    Raises:
        UserError: not a layer group, or out of range; the message names the valid range.
    """
    text = text.strip()
    if text == "all":
        return range(num_layers)
    if match := re.fullmatch(r"(?:(\d+)/(\d+))?\.\.(?:(\d+)/(\d+))?", text):
        return _scaled(match, num_layers)
    if not (match := re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}|last))?", text)):
        raise UserError(f"{text!r} is not a layer group; write 0-4, 7, 5-last, all or 5/24..10/24")
    first = int(match[1])
    last = max(first, num_layers - 1) if match[2] == "last" else int(match[2] or first)
    if first > last:
        raise UserError(f"layers {text!r} run backwards; write {last}-{first}")
    if match[2] == "last" and first >= num_layers:
        raise UserError(
            f"the last group would begin at layer {first}, beyond the {num_layers} layers of this "
            f"encoder: its first layer is at most {num_layers - 1}"
        )
    if last >= num_layers:
        raise UserError(
            f"layers {text!r} do not fit an encoder of {num_layers} layers: "
            f"valid layers are 0-{num_layers - 1}"
        )
    return range(first, last + 1)


def _scaled(match: re.Match[str], num_layers: int) -> range:
    shares = []
    for numerator, denominator, default in ((match[1], match[2], 0), (match[3], match[4], 1)):
        if denominator is not None and int(denominator) == 0:
            raise UserError(f"layers {match[0]!r}: a fraction over zero")
        share = (
            Fraction(default) if numerator is None else Fraction(int(numerator), int(denominator))
        )
        if share > 1:
            raise UserError(f"layers {match[0]!r}: a fraction of the depth is at most 1")
        shares.append(share)
    if shares[0] > shares[1]:
        raise UserError(f"layers {match[0]!r} run backwards; write {shares[1]}..{shares[0]}")
    ends = [round(share * num_layers) for share in shares]
    return range(ends[0], ends[1])


def _range_text(layers: range) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"


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
    names = (path.stem for path in (config_folder() / "methods").glob("*.yaml"))
    return tuple(sorted(names, key=lambda name: (_body(name)["order"], name)))


def get_method(text: str) -> Method:
    """Return the method that `text` names.

    Args:
        text: a shipped name, a numbered form such as `spafit-4-9-i`, the path of a YAML file, or
            the one-line form.

    Raises:
        UserError: no such method; the message has the nearest match.
    """
    if ":" in text and not text.endswith((".yaml", ".yml")):
        return parse_method(text)
    if text.endswith((".yaml", ".yml")):
        return _from_yaml(Path(text), is_preset=False)
    if text in method_names():
        return _from_yaml(_preset_path(text), is_preset=True)
    for name in method_names():
        if numbered := _numbered(name, text):
            return numbered
    forms = [
        body["numbered_as"] for name in method_names() if "numbered_as" in (body := _body(name))
    ]
    raise UserError(f"unknown method {text!r}: {nearest(text, (*method_names(), *forms))}")


def _preset_path(name: str) -> Path:
    return config_folder() / "methods" / f"{name}.yaml"


def _body(name: str) -> dict[str, Any]:
    return _shipped_body(_preset_path(name))


@cache
def _shipped_body(path: Path) -> dict[str, Any]:
    return read_yaml(path)


def _numbered(preset: str, text: str) -> Method | None:
    """Match `text` against the preset's numbered form and set its boundaries.

    N1, N2, ... are the last layers (inclusive, from 0) of the groups in order; the last group takes
    the rest. N1 = N2 leaves out the second group.
    """
    form = _body(preset).get("numbered_as")
    if form is None:
        return None
    match = re.fullmatch(re.sub(r"N\d+", r"(\\d{1,4})", form), text)
    if match is None:
        return None
    base = _from_yaml(_preset_path(preset), is_preset=True)
    ends = [int(number) for number in match.groups()]
    if ends != sorted(ends):
        raise UserError(f"method {text!r}: boundaries must not decrease ({form}, N1 <= N2)")
    strata, start = [], 0
    for stratum, end in zip(base.strata, ends, strict=False):
        if end >= start:
            strata.append(replace(stratum, layers=_range_text(range(start, end + 1))))
        start = end + 1
    strata.append(replace(base.strata[-1], layers=f"{start}-last"))
    return replace(base, name=text, strata=tuple(strata))


_KEYS = ("name", "description", "source", "defaults", "numbered_as", "order", "strata", *PARTS)


def _from_yaml(path: Path, *, is_preset: bool) -> Method:
    body = read_yaml(path)
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
        is_preset=is_preset,
    )

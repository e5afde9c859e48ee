"""Exactly what a method trains in a model, parameter by parameter, before anything is trained.

`make_plan` needs only names and shapes, so it works on a model built on the meta device, without
weights. `adapt.py` carries the same plan out on a real model: there is one place that decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.methods.architectures import Architecture, Place, locate
from spafit_bench.methods.method import PARTS, Method
from spafit_bench.methods.treatments import FULL, Lora, Treatment

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter name -> shape of the sequence-classification model, in its own order."""


@dataclass(frozen=True)
class PlannedTensor:
    """What happens to one parameter of the base model."""

    name: str
    shape: tuple[int, ...]
    place: Place
    stratum: str
    """`0-4` for a layer group, or `embeddings`, `encoder`, `pooler`, `classifier`."""
    trains: bool
    lora: Lora | None
    """The adapter on this matrix, whose own weight stays frozen."""

    @property
    def num_parameters(self) -> int:
        """Elements of the base tensor."""
        return prod(self.shape)

    @property
    def num_trainable(self) -> int:
        """Elements that train, the adapter's included."""
        adapter = self.lora.num_parameters(self.shape[1], self.shape[0]) if self.lora else 0
        return adapter + (self.num_parameters if self.trains else 0)


@dataclass(frozen=True)
class Plan:
    """Every parameter of a model under exactly one rule."""

    method: Method
    """Resolved: layers are explicit."""
    num_layers: int
    tensors: tuple[PlannedTensor, ...]
    fresh: tuple[str, ...]
    """Tensors without pretrained values; those of the head train whatever the method says."""
    warnings: tuple[str, ...]

    @property
    def base_parameters(self) -> int:
        """Parameters of the base model, classifier included, adapters not."""
        return sum(tensor.num_parameters for tensor in self.tensors)

    @property
    def trainable_parameters(self) -> int:
        """Parameters that train, adapters included."""
        return sum(tensor.num_trainable for tensor in self.tensors)

    @property
    def trainable_percent(self) -> float:
        """Trainable over base parameters, adapters not counted in the denominator."""
        return 100 * self.trainable_parameters / self.base_parameters

    @property
    def first_trained_layer(self) -> int:
        """The first layer through which gradients flow; the depth if there is none."""
        training = [tensor.place for tensor in self.tensors if tensor.num_trainable]
        if any(place.component in ("embeddings", "encoder") for place in training):
            return 0
        layers = (place.layer for place in training if place.layer is not None)
        return min(layers, default=self.num_layers)

    @property
    def frozen_layers(self) -> int:
        """Layers, counted from the first, that lie below everything that trains.

        At most all but the last: what comes after it is no longer a token's own.
        """
        return min(self.first_trained_layer, self.num_layers - 1)

    def stratum_names(self) -> tuple[str, ...]:
        """Return the strata in the order of the data's flow."""
        layers = tuple(stratum.layers for stratum in self.method.strata)
        order = ("embeddings", *sorted(layers, key=lambda text: int(text.split("-")[0])))
        order += ("encoder", "pooler", "classifier")
        present = {tensor.stratum for tensor in self.tensors}
        return tuple(name for name in order if name in present)

    def treatment_of(self, stratum: str) -> str:
        """Say what is done to a stratum, in the grammar of `treatments.py`."""
        for row in self.method.strata:
            if row.layers == stratum:
                return str(row.treatment)
        trains = {t.trains for t in self.tensors if t.stratum == stratum}
        return "full" if trains == {True} else str(getattr(self.method, stratum))


def make_plan(
    method: Method,
    architecture: Architecture,
    shapes: Shapes,
    *,
    fresh: Iterable[str] = (),
) -> Plan:
    """Decide what happens to every parameter.

    Args:
        method: as named or written; resolved here for the depth of the model.
        architecture: the row of the model's type.
        shapes: every parameter of the sequence-classification model.
        fresh: parameters that the checkpoint does not have.

    Raises:
        UserError: layers that do not fit, a pattern that matches nothing, a parameter under no
            rule, or a fresh tensor outside the head (the checkpoint is not an encoder of this
            type).
    """
    places = {name: locate(name, architecture) for name in shapes}
    num_layers = 1 + max((p.layer for p in places.values() if p.layer is not None), default=-1)
    method = method.resolve(num_layers)
    fresh = tuple(fresh)
    _check_fresh(fresh, places)
    owners, warnings = _layer_rules(method, architecture, shapes, places)
    warnings[:0] = method.notes
    warnings += _idle_parts(method, places)
    tensors = []
    for name, shape in shapes.items():
        place = places[name]
        if place.layer is not None:
            stratum, trains, lora = owners[name]
        else:
            stratum, lora = place.component, None
            treatment = FULL if name in fresh else getattr(method, place.component)
            trains = treatment.full or (bool(treatment.biases) and place.is_bias)
        tensors.append(PlannedTensor(name, tuple(shape), place, stratum, trains, lora))
    return Plan(method, num_layers, tuple(tensors), fresh, tuple(warnings))


def check_layers_train(plan: Plan) -> None:
    """Refuse a method that is meant to train something in the layers, and trains nothing there.

    Raises:
        UserError: so it is, e.g. BitFit on an encoder without biases.
    """
    wanted = [row for row in plan.method.strata if not row.treatment.is_frozen]
    if wanted and not any(t.num_trainable for t in plan.tensors if t.place.layer is not None):
        raise UserError(
            f"method {plan.method.name!r}: {wanted[0]} matches nothing in this encoder, so only "
            "what is around the layers would train; choose another method, or give --allow-empty"
        )


def _check_fresh(fresh: Iterable[str], places: Mapping[str, Place]) -> None:
    for name in fresh:
        if places[name].component not in ("pooler", "classifier"):
            raise UserError(
                f"the checkpoint has no {name!r}: it does not hold a complete encoder of this type"
            )


def _idle_parts(method: Method, places: Mapping[str, Place]) -> list[str]:
    """Report parts around the layers whose treatment finds nothing to train."""
    idle = []
    for part in PARTS:
        treatment: Treatment = getattr(method, part)
        found = [place for place in places.values() if place.component == part]
        if not found and not method.is_preset and treatment != getattr(Method, part):
            idle.append(f"{part}:{treatment} matches nothing: this encoder has no {part}")
        if found and treatment.biases and not any(place.is_bias for place in found):
            idle.append(f"{part}:{treatment} matches nothing: this encoder has no biases there")
    return idle


Rule = tuple[str, bool, Lora | None]


def _layer_rules(
    method: Method, architecture: Architecture, shapes: Shapes, places: Mapping[str, Place]
) -> tuple[dict[str, Rule], list[str]]:
    """Decide every parameter inside the blocks: (stratum, trains, adapter)."""
    rules: dict[str, Rule] = {}
    warnings: list[str] = []
    for stratum in method.strata:
        first, _, last = stratum.layers.partition("-")
        layers = range(int(first), int(last or first) + 1)
        names = [n for n, p in places.items() if p.layer is not None and p.layer in layers]
        trained = _trained(stratum.treatment, architecture, places, names)
        adapted = _adapted(stratum.treatment, architecture, {places[n].module for n in names})
        warnings += _unmatched(method, stratum.layers, stratum.treatment, trained)
        for name in names:
            lora = adapted.get(places[name].module) if places[name].leaf == "weight" else None
            if lora and len(shapes[name]) != 2:
                raise UserError(f"LoRA adapts matrices, and {name!r} has shape {shapes[name]}")
            rules[name] = (stratum.layers, name in trained[1], lora)
    return rules, warnings


Trained = tuple[dict[str, set[str]], set[str]]
"""Pattern -> parameters that it trains, and all of them."""


def _trained(
    treatment: Treatment,
    architecture: Architecture,
    places: Mapping[str, Place],
    names: Iterable[str],
) -> Trained:
    names = list(names)
    if treatment.full:
        return {}, set(names)
    matches = {}
    for pattern in treatment.biases:
        modules = _bias_modules(pattern, architecture)
        matches[pattern] = {n for n in names if places[n].is_bias and places[n].module in modules}
    return matches, set().union(*matches.values())


def _bias_modules(pattern: str, architecture: Architecture) -> set[str]:
    """Resolve a bias pattern to the modules whose bias it means."""
    rows = architecture.block
    if pattern.lower() == "layernorm":  # however it is spelt
        pattern = "layernorm"
    sets = {
        "all": {row.module for row in rows},
        "attention": {row.module for row in rows if row.group == "attention"},
        "ffn": {row.module for row in rows if row.group == "ffn"},
        "layernorm": {row.module for row in architecture.norms},
    }
    for matrix in architecture.matrices:
        sets[matrix.name] = {matrix.module}
    for row in rows:
        sets[f"{row.module}.bias"] = {row.module}
    if pattern not in sets:
        raise UserError(
            f"bias({pattern}) names no bias of a {architecture.model_type} layer: "
            f"{nearest(pattern, sets)}"
        )
    return sets[pattern]


def _unmatched(method: Method, layers: str, treatment: Treatment, trained: Trained) -> list[str]:
    """Report bias patterns that train nothing, in an encoder without biases."""
    empty = [pattern for pattern, found in trained[0].items() if not found]
    if not empty:
        return []
    problem = f"{layers}:{Treatment(biases=tuple(empty))} matches nothing"
    if method.is_preset or empty == ["all"] == list(treatment.biases):
        return [f"{problem}: this encoder has no such biases, so none train there"]
    raise UserError(f"method {method.name!r}: {problem}: this encoder has no such biases")


def _adapted(
    treatment: Treatment, architecture: Architecture, modules: set[str]
) -> dict[str, Lora]:
    """Resolve LoRA treatments to the modules they adapt, of those that the layers have."""
    present = replace(
        architecture, matrices=tuple(m for m in architecture.matrices if m.module in modules)
    )
    adapted: dict[str, Lora] = {}
    for lora in treatment.loras:
        names = _expand(lora.matrices, present)
        for matrix in present.matrices:
            wanted = [name for name in (matrix.name, *matrix.fuses) if name in names]
            if not wanted:
                continue
            if matrix.name not in wanted and set(wanted) != set(matrix.fuses):
                raise UserError(
                    f"{lora}: {architecture.model_type} holds {'+'.join(matrix.fuses)} in one "
                    f"matrix; adapt all of them (write {matrix.name}) or none"
                )
            if matrix.module in adapted:
                raise UserError(f"treatment {treatment}: {wanted[0]!r} is adapted twice")
            adapted[matrix.module] = replace(lora, matrices=(matrix.name,))
    return adapted


def _expand(names: Iterable[str], architecture: Architecture) -> set[str]:
    groups = {
        "attention": {m.name for m in architecture.matrices if m.group == "attention"},
        "ffn": {m.name for m in architecture.matrices if m.group == "ffn"},
        "all": {m.name for m in architecture.matrices},
    }
    single = {name for m in architecture.matrices for name in (m.name, *m.fuses)}
    found: set[str] = set()
    for name in names:
        if name not in groups and name not in single:
            raise UserError(
                f"lora({name}) names no matrix of a {architecture.model_type} layer: "
                f"{nearest(name, (*single, *groups))}"
            )
        found |= groups.get(name, {name})
    return found

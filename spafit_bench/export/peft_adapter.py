"""Write a trained model as an adapter of the PEFT library, without needing that library.

PEFT's `LoraConfig` has one rank for all matrices, and trains all biases or none. So we write a
stratified method in full: every adapted matrix by its name, other ranks and alphas as patterns, and
fully trained modules as `modules_to_save`. Trained biases need `bias="all"`; the file contains only
the trained ones, and PEFT keeps the base model's values for the others.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spafit_bench.base.errors import UserError
from spafit_bench.methods.architectures import Architecture
from spafit_bench.methods.plan import Plan
from spafit_bench.methods.treatments import Lora
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.adapters import LoraLinear

PREFIX = "base_model.model."
"""PEFT's prefix of the names of the base model's modules."""


@dataclass(frozen=True)
class PeftAdapter:
    """The content of an adapter folder."""

    config: dict[str, Any]
    """`adapter_config.json`, without the base model's name."""
    tensors: dict[str, Tensor]
    """`adapter_model.safetensors`, fp32 on the CPU."""
    notes: tuple[str, ...]
    """How further training of this adapter would differ. Its outputs are the same."""


def make_peft_adapter(adapted: AdaptedModel, architecture: Architecture) -> PeftAdapter:
    """Convert a model's adapters, biases and fully trained modules to PEFT's form.

    Args:
        adapted: restored, on the CPU in fp32.
        architecture: of its encoder.

    Raises:
        UserError: the method has no adapter.
    """
    plan = adapted.plan
    loras = _adapted_modules(plan)
    if not loras:
        raise UserError(
            f"--format peft: {plan.method.name} has no LoRA adapter, which PEFT needs; use "
            "--format delta (only what was trained) or --format merged (a plain checkpoint)"
        )
    whole = _whole_modules(plan, architecture)
    biases = _single_biases(plan, whole)
    config, notes = _lora_config(loras)
    config |= {
        "bias": "all" if biases else "none",
        "target_modules": sorted(loras),
        "modules_to_save": whole,
    }
    if biases:
        notes.append("every bias trains, not only the method's: PEFT has no finer choice")
    with torch.no_grad():
        tensors = _adapter_tensors(adapted.model, loras, dora=config["use_dora"])
        tensors |= _plain_tensors(adapted.model, whole, biases, loras)
    return PeftAdapter(
        config=_FIXED | config,
        tensors={n: t.detach().float().cpu().clone().contiguous() for n, t in tensors.items()},
        notes=tuple(notes),
    )


_FIXED: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "SEQ_CLS",
    "inference_mode": True,
    "init_lora_weights": True,
    "fan_in_fan_out": False,
}


def _adapted_modules(plan: Plan) -> dict[str, Lora]:
    return {t.name.removesuffix(".weight"): t.lora for t in plan.tensors if t.lora is not None}


def _whole_modules(plan: Plan, architecture: Architecture) -> list[str]:
    """List the modules that trained in full; the classifier as a whole, as PEFT wraps it.

    PEFT itself always wraps what is called `classifier`; a module inside it must not be wrapped
    again.
    """
    modules: dict[str, None] = dict.fromkeys(architecture.classifier)
    for tensor in plan.tensors:
        module, _, leaf = tensor.name.rpartition(".")
        if tensor.place.component != "classifier" and tensor.trains and leaf != "bias":
            modules[module] = None
    return list(modules)


def _single_biases(plan: Plan, whole: list[str]) -> list[str]:
    """List the trained biases of modules that are otherwise frozen."""
    inside = tuple(f"{module}." for module in whole)
    return [t.name for t in plan.tensors if t.trains and not t.name.startswith(inside)]


def _lora_config(loras: dict[str, Lora]) -> tuple[dict[str, Any], list[str]]:
    """Describe every adapter: the most common rank and alpha, and patterns for the others.

    PEFT applies rsLoRA, DoRA and dropout to all adapters or none. Where adapters differ, rsLoRA's
    factor becomes a part of alpha. A plain adapter beside DoRA adapters becomes a DoRA adapter with
    the norm of its adapted matrix as magnitude.
    """
    notes = []
    patterned = len({(lora.rank, lora.alpha, lora.rslora) for lora in loras.values()}) > 1
    rslora = not patterned and all(lora.rslora for lora in loras.values())
    alphas = {
        path: lora.alpha if rslora or not lora.rslora else lora.alpha * math.sqrt(lora.rank)
        for path, lora in loras.items()
    }
    rank = Counter(lora.rank for lora in loras.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    doras = {lora.dora for lora in loras.values()}
    if len(doras) > 1:
        notes.append("every adapter trains as DoRA, also those of plain LoRA")
    dropouts = {lora.dropout for lora in loras.values()}
    if len(dropouts) > 1:
        notes.append("adapters have no dropout: PEFT has one rate for all, the method several")
    config = {
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropouts.pop() if len(dropouts) == 1 else 0.0,
        "rank_pattern": {path: lora.rank for path, lora in loras.items() if lora.rank != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "use_rslora": rslora,
        "use_dora": any(doras),
    }
    return config, notes


def _adapter_tensors(model: nn.Module, loras: dict[str, Lora], *, dora: bool) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in loras:
        module = model.get_submodule(path)
        assert isinstance(module, LoraLinear), path
        tensors[f"{PREFIX}{path}.lora_A.weight"] = module.lora_A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = module.lora_B
        if dora:
            magnitude = module.lora_magnitude
            tensors[f"{PREFIX}{path}.lora_magnitude_vector.weight"] = (
                module.adapted_weight().norm(dim=1) if magnitude is None else magnitude
            )
    return tensors


def _plain_tensors(
    model: nn.Module, whole: list[str], biases: list[str], loras: dict[str, Lora]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in whole:
        state = model.get_submodule(path).state_dict()
        tensors |= {f"{PREFIX}{path}.{name}": tensor for name, tensor in state.items()}
    for name in biases:
        path = name.removesuffix(".bias")
        inner = f"{path}.base_layer.bias" if path in loras else name
        tensors[PREFIX + inner] = model.get_parameter(name)
    return tensors

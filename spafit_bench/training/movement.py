"""How far training moved the parameters from their pretrained values, layer by layer.

For each group of parameters: the norm of the change, and the norm of the pretrained values. The
change of an adapter is that of the matrix it adapts, s B A (with DoRA: what merging would change),
so that methods can be compared.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from safetensors import SafetensorError
from torch import Tensor

from spafit_bench.methods.architectures import Architecture, Place
from spafit_bench.models.adapt import AdaptedModel
from spafit_bench.models.adapters import LoraLinear
from spafit_bench.models.checkpoint import Checkpoint, stored_tensors
from spafit_bench.results.record import Movement

Movements = dict[str, dict[str, Movement]]


@torch.no_grad()
def measure_movement(adapted: AdaptedModel, checkpoint: Checkpoint) -> Movements | None:
    """Compare a trained model with the stored weights that it started from.

    Args:
        adapted: after training.
        checkpoint: where it started. Its tensors are read one by one to save memory.

    Returns:
        `embeddings`, `pooler`, `encoder` and layers from `0` -> kind of parameter (`attention` and
        `ffn` matrices, `bias`, `norm` gains, `weight` outside the layers) -> norms. Tensors that
        were drawn from the seed have no pretrained value and are left out. None where the stored
        weights can no longer be read: that does not fail a finished run.
    """
    plan = adapted.plan
    places = {t.name: t.place for t in plan.tensors if t.name not in plan.fresh}
    squares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0] * 2))
    try:
        for name, pretrained in stored_tensors(checkpoint, list(places)):
            place = places[name]
            where = place.component if place.layer is None else str(place.layer)
            sums = squares[where][_kind(place, checkpoint.architecture)]
            sums[0] += _square(_change(adapted, name, pretrained))
            sums[1] += _square(pretrained)
    except (OSError, SafetensorError):
        return None
    return {
        where: {
            kind: Movement(change=_short(change), pretrained=_short(pretrained))
            for kind, (change, pretrained) in sorted(kinds.items())
        }
        for where, kinds in sorted(squares.items(), key=lambda item: _place_order(item[0]))
    }


def _kind(place: Place, architecture: Architecture) -> str:
    if place.is_bias:
        return "bias"
    if place.layer is None:
        return "weight"
    groups = {matrix.module: matrix.group for matrix in architecture.matrices}
    return groups.get(place.module, "norm")


def _change(adapted: AdaptedModel, name: str, pretrained: Tensor) -> Tensor | None:
    """Return what training added to a tensor; None for nothing."""
    path, _, leaf = name.rpartition(".")
    module = adapted.model.get_submodule(path)
    if leaf == "weight" and isinstance(module, LoraLinear):
        return _adapter_change(module)
    parameter = adapted.model.get_parameter(name)
    return parameter.float().cpu() - pretrained if parameter.requires_grad else None


def _adapter_change(module: LoraLinear) -> Tensor:
    """Return s B A, or with DoRA merged minus frozen weight, in fp32 whatever W is kept in."""
    update = module.scaling * (module.lora_B @ module.lora_A)
    if module.lora_magnitude is None:
        return update
    frozen = module.weight.float()
    adapted = frozen + update
    return adapted * (module.lora_magnitude / adapted.norm(dim=1)).unsqueeze(1) - frozen


def _square(tensor: Tensor | None) -> float:
    if tensor is None:
        return 0.0
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _short(square: float) -> float:
    """Take the root, to the digits that a record needs."""
    return float(f"{square**0.5:.6g}")


def _place_order(where: str) -> tuple[int, int]:
    if where.isdigit():
        return 1, int(where)
    return (0, 0) if where == "embeddings" else (2, len(where))

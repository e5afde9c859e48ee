"""What a checkpoint's files hold, read without making a model of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spafit_bench.base.errors import UserError
from spafit_bench.methods.architectures import locate
from spafit_bench.models.checkpoint import Checkpoint, unreadable_weights, weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TENSORS_AT_ONCE = 16
"""A layer of BERT. What was read of a mapped file takes memory as long as the file is open."""


def fresh_parameters(checkpoint: Checkpoint, names: list[str]) -> tuple[str, ...]:
    """Return the parameters without pretrained values, reading no weights.

    The classifier always is: one that is stored has learnt some other task, and methods can be
    compared only if they start alike. Anything else is where the stored weights lack it; in a
    folder without weights (a bare `config.json`), where published encoders lack it.
    """
    from safetensors import SafetensorError, safe_open

    row = checkpoint.architecture
    components = {name: locate(name, row).component for name in names}
    always = {"classifier"}
    files = weight_files(checkpoint.path)
    if not files:
        always |= set() if row.pooler_is_pretrained else {"pooler"}
        return tuple(name for name in names if components[name] in always)
    stored: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                stored |= {_modern(key) for key in tensors.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise unreadable_weights(file, error) from None
    # A bare encoder is stored without the prefix of its own name (`bert.`, `model.`, ...).
    return tuple(
        n
        for n in names
        if components[n] in always or (n not in stored and n.partition(".")[2] not in stored)
    )


def stored_tensors(
    checkpoint: Checkpoint, names: Sequence[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read pretrained values one by one, in fp32 on the CPU.

    Args:
        checkpoint: where the weights are.
        names: parameters of the model that are not fresh.

    Raises:
        OSError, SafetensorError: a file cannot be read.
    """
    from safetensors import safe_open

    # A bare encoder is stored without the prefix of its own name (`bert.`, `model.`, ...).
    wanted = {name.partition(".")[2]: name for name in names} | {name: name for name in names}
    for file in weight_files(checkpoint.path):
        with safe_open(file, framework="pt") as tensors:
            stored = {key: wanted.get(_modern(key)) for key in tensors.keys()}  # noqa: SIM118
        keys = [key for key, name in stored.items() if name]
        for first in range(0, len(keys), _TENSORS_AT_ONCE):
            with safe_open(file, framework="pt") as tensors:
                for key in keys[first : first + _TENSORS_AT_ONCE]:
                    yield str(stored[key]), tensors.get_tensor(key).float()


def read_again(
    model: PreTrainedModel, checkpoint: Checkpoint, names: Sequence[str], dtype: torch.dtype
) -> None:
    """Give a model's tensors their stored values in another precision, with little memory.

    A tensor that was only loaded is the file, mapped: it takes memory once it is looked at, and
    then until the last tensor of the file is gone. Converted in place, a checkpoint of 1.3 GB in
    fp32 would take 2.0 GB for 0.7 GB in bf16.

    Args:
        model: as `load_model` returns it.
        checkpoint: where the weights are.
        names: parameters of the model that are not fresh.
        dtype: what they are to be.

    Raises:
        UserError: a file can no longer be read.
    """
    from safetensors import SafetensorError

    try:
        for name, tensor in stored_tensors(checkpoint, names):
            model.get_parameter(name).data = tensor.to(dtype, copy=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{checkpoint.path}: the weights cannot be loaded ({error})") from None


def _modern(key: str) -> str:
    """Translate LayerNorm tensors of old checkpoints, as transformers does on loading."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def untrained_pooler(checkpoint: Checkpoint) -> bool:
    """Tell whether the stored pooler was never trained: its bias is exactly zero.

    Behind a frozen random projection a classifier can hardly learn, so the caller warns.
    """
    from safetensors import safe_open

    for file in weight_files(checkpoint.path):
        with safe_open(file, framework="pt") as tensors:  # numpy has no bf16
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                if key.endswith("pooler.dense.bias"):
                    return not tensors.get_tensor(key).any()
    return False

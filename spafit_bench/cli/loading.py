"""Checks that take milliseconds, before the imports that take seconds."""

from __future__ import annotations

from collections.abc import Iterable

from spafit_bench.base.errors import UserError
from spafit_bench.cli.output import waiting

Checkpoint = tuple[str, str | None, bool]
"""Name or folder, revision, whether the hub may not be asked."""


def load_libraries(
    checkpoints: Iterable[Checkpoint] = (), devices: Iterable[str] = (), *, weights: bool = True
) -> None:
    """Import PyTorch and transformers, if the checkpoints and devices exist.

    Args:
        checkpoints: what the command loads.
        devices: where it computes.
        weights: whether it needs the weights, which the hub then sends.

    Raises:
        UserError: one of them does not.
    """
    from spafit_bench.base import process
    from spafit_bench.config.run_config import known_device
    from spafit_bench.models.checkpoint import find_checkpoint

    for device in devices:
        try:
            known_device(device)
        except ValueError as error:
            raise UserError(f"--device {device}: {error}") from None
        if device.startswith("cuda") and not process.may_have_gpu():
            raise UserError(f"--device {device}: no CUDA GPU is visible here; use --device cpu")
    for model, revision, offline in checkpoints:
        find_checkpoint(model, revision=revision, offline=offline, weights=weights)
    with waiting("loading PyTorch and transformers"):
        process.load_libraries()

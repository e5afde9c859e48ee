"""TensorBoard logs for `--log tensorboard`: curves to watch during training.

Records hold everything that tables and figures need; these logs are only for viewing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spafit_bench.base.errors import UserError

if TYPE_CHECKING:
    from spafit_bench.results.record import Evaluation
    from spafit_bench.training.loop import Observer, Progress

log = logging.getLogger(__name__)

_FLUSH_S = 10


def check_log(name: str | None) -> None:
    """Refuse a kind of log that cannot be written.

    Raises:
        UserError: an unknown kind, or TensorBoard is not installed.
    """
    if name is None:
        return
    if name != "tensorboard":
        raise UserError(f"--log {name}: choices: tensorboard")
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--log tensorboard: TensorBoard is not installed ({error}); "
            "pip install '.[tensorboard]' in a checkout"
        ) from None


class TensorBoardLog:
    """Writes the progress of a run as scalars, and passes it on to another observer.

    Scalars: `train/loss` (mean since the last look, which on a CPU is one step), `train/epoch_loss`
    (mean since the last evaluation), `train/learning_rate`, `train/tokens_per_s` and
    `<dev split>/<metric>`, all over optimizer steps. If the folder cannot be written, the run
    continues without the log.
    """

    def __init__(self, observer: Observer, folder: Path) -> None:
        self._observer, self._folder = observer, folder
        self._writer: Any = None
        self._is_broken = False

    def on_step(self, progress: Progress) -> None:
        self._observer.on_step(progress)
        scalars = {
            "train/loss": progress.last_loss,
            "train/epoch_loss": progress.loss,
            "train/learning_rate": progress.learning_rate,
            "train/tokens_per_s": progress.tokens_per_s,
        }
        self._write(scalars, progress.step)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        self._observer.on_evaluation(evaluation)
        scalars = {
            f"{split}/{metric}": value
            for split, values in evaluation.metrics.items()
            for metric, value in values.items()
        }
        self._write(scalars, evaluation.step)

    def close(self) -> None:
        """Write everything to the disk."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, scalars: dict[str, float], step: int) -> None:
        if self._is_broken:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # TensorBoard drops what an earlier attempt at this run logged from this step on.
                self._writer = SummaryWriter(
                    str(self._folder), purge_step=step, flush_secs=_FLUSH_S
                )
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._is_broken = True
        log.warning(
            "%s: cannot be written (%s); the run continues without the log", self._folder, error
        )

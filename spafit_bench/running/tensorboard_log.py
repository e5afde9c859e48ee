"""TensorBoard logs of runs, for `--log tensorboard`: curves to watch while training goes on.

Records hold everything that tables and figures need; these logs are only for looking at.
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

LOGS = ("tensorboard",)
_FLUSH_S = 10


def check_log(name: str | None) -> None:
    """Refuse a kind of log that cannot be written.

    Raises:
        UserError: an unknown kind, or TensorBoard is not installed.
    """
    if name is None:
        return
    if name not in LOGS:
        raise UserError(f"--log {name}: choices: {', '.join(LOGS)}")
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--log tensorboard: TensorBoard is not installed ({error}); "
            "pip install '.[tensorboard]' in a checkout"
        ) from None


class TensorBoardLog:
    """Writes what a run says as scalars, and passes it on.

    Scalars: `train/loss` (mean since the last look, which on a CPU is one step), `train/epoch_loss`
    (mean since the last evaluation), `train/learning_rate`, `train/tokens_per_s` and
    `<dev split>/<metric>`, all over optimizer steps. A folder that cannot be written ends the log,
    not the run.
    """

    def __init__(self, observer: Observer, folder: Path) -> None:
        """Write to `folder`, which is made at the first step; `observer` hears everything."""
        self._observer = observer
        self._folder = folder
        self._writer: Any = None
        self._is_broken = False

    def on_step(self, progress: Progress) -> None:
        """Log a step."""
        self._observer.on_step(progress)
        scalars = {
            "train/loss": progress.last_loss,
            "train/epoch_loss": progress.loss,
            "train/learning_rate": progress.learning_rate,
            "train/tokens_per_s": progress.tokens_per_s,
        }
        self._write(scalars, progress.step)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Log an evaluation."""
        self._observer.on_evaluation(evaluation)
        scalars = {
            f"{split}/{metric}": value
            for split, values in evaluation.metrics.items()
            for metric, value in values.items()
        }
        self._write(scalars, evaluation.step)

    def close(self) -> None:
        """Bring everything to the disk."""
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
                self._writer = self._open(step)
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            self._give_up(error)

    def _open(self, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops what an earlier attempt at this run logged from this step on.
        return SummaryWriter(str(self._folder), purge_step=step, flush_secs=_FLUSH_S)

    def _give_up(self, error: OSError) -> None:
        self._is_broken = True
        log.warning("%s: nothing more is logged (%s); the run goes on", self._folder, error)

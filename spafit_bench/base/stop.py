"""Ctrl-C and SIGTERM, turned into a question that training asks after every step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class StopSignal:
    """Catches the first SIGINT or SIGTERM inside its block; calling it tells whether one came.

    A second one interrupts at once. Outside the main thread, where signals cannot be caught, it
    never tells to stop.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __call__(self) -> bool:
        """Tell whether training should keep its state and stop."""
        return self._asked

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

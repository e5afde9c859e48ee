"""Signals that stop a command: Ctrl-C, SIGTERM and SIGHUP. The exit code is then 130."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""SIGHUP is sent when a terminal closes or an ssh session is lost."""
INTERRUPTED = 130
"""The exit code of a command that a signal stopped."""
_PARENT = "SPAFIT_BENCH_PARENT"
"""Holds the id of the process that started this one."""
_PR_SET_PDEATHSIG = 1


class StopSignal:
    """Catches the first signal inside its block; calling it returns whether one came.

    A second one interrupts at once. A signal that was ignored (SIGHUP under `nohup`) stays ignored.
    Outside the main thread, where signals cannot be caught, it always returns false.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __call__(self) -> bool:
        """Return whether training should keep a snapshot and stop."""
        return self._asked

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
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
        if self._asked:
            interrupt(number, frame)
        self._asked = True


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal as Python handles Ctrl-C."""
    del number, frame
    raise KeyboardInterrupt


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, unless they are ignored."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, interrupt)


def parent_environment() -> dict[str, str]:
    """Return the variable by which a process that this one starts can `end_with_parent`."""
    return {_PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Receive SIGTERM when the process that started this one dies (Linux, prctl(2)).

    Elsewhere, or if the parent set no `parent_environment`, this does nothing.
    """
    parent = os.environ.pop(_PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
    if os.getppid() != int(parent):  # it died before
        sys.exit(INTERRUPTED)

"""Where a cluster's runs leave word for the sweep; it imports little, so it is there at once."""

from __future__ import annotations

from spafit_bench.running.events import Event


class Mailbox:
    """An actor on the sweep's machine: runs post, the sweep collects."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._snapshots: dict[str, bytes] = {}
        self._is_stopping = False

    def post(self, event: Event) -> None:
        """Take what a run says."""
        self._events.append(event)

    def keep(self, run_id: str, snapshot: bytes) -> None:
        """Take the state of a run, instead of an earlier one."""
        self._snapshots[run_id] = snapshot

    def collect(self) -> tuple[list[Event], dict[str, bytes]]:
        """Hand out what is new."""
        new, self._events, self._snapshots = (self._events, self._snapshots), [], {}
        return new

    def stop(self) -> None:
        """Let runs know that they are to keep their state and end."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Tell a run whether it is to end."""
        return self._is_stopping

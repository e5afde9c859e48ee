"""Says which process holds a run, and whether it certainly runs no more."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Owner:
    """The process that holds a run; `str()` is a phrase for messages."""

    host: str
    pid: int
    """0 where the claim file is damaged."""
    since: str
    """UTC, ISO 8601, by the owner's clock."""
    boot_id: str
    """Empty where it is not known; then nobody judges the owner by its pid."""
    pid_namespace: str
    """Containers of one machine share its boot id, and may share its name, but not their pids."""
    started_ticks: int | None
    """Clock ticks from boot to its start: tells it from a later process of the same pid."""
    heartbeat_s: float

    def __str__(self) -> str:
        if self.pid == 0:
            return "an unknown process (its claim file is damaged)"
        return f"process {self.pid} on {self.host} since {self.since}"

    def is_gone(self, here: Owner) -> bool:
        """Say whether it certainly runs no more; False for processes of other machines."""
        place, ours = ((p.host, p.boot_id, p.pid_namespace) for p in (self, here))
        if not self.boot_id or place != ours:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it is there, and another user's
        state, started_ticks = _process_state(self.pid)
        known = started_ticks is not None and self.started_ticks is not None
        return state in ("Z", "X") or (known and started_ticks != self.started_ticks)


UNKNOWN = Owner("", 0, "", "", "", None, 0)
"""Of a damaged claim file: never certainly gone."""


def parse_owner(content: bytes) -> Owner:
    """Read a claim file's content; `UNKNOWN` if it is damaged."""
    try:
        owner = Owner(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return UNKNOWN
    texts = (owner.host, owner.since, owner.boot_id, owner.pid_namespace)
    sound = (
        all(isinstance(text, str) for text in texts)
        and isinstance(owner.pid, int)
        and 0 < owner.pid < 2**31
        and isinstance(owner.started_ticks, int | None)
        and isinstance(owner.heartbeat_s, int | float)
        and 0 < owner.heartbeat_s < 1e9
    )
    return owner if sound else UNKNOWN


def this_process(heartbeat_s: float) -> Owner:
    """Describe this process, the time of its claim left empty."""
    pid = os.getpid()
    try:
        boot_id = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        pid_namespace = str((_PROC / "self/ns/pid").readlink())
    except OSError:
        boot_id, pid_namespace = _machine_without_proc(), ""
    started_ticks = _process_state(pid)[1]
    host = os.uname().nodename
    return Owner(host, pid, "", boot_id, pid_namespace, started_ticks, heartbeat_s)


def _machine_without_proc() -> str:
    if _PROC.is_dir():  # a container that hides some of it: pids may not mean what they seem to
        return ""
    import uuid

    return f"node-{uuid.getnode():x}"


def _process_state(pid: int) -> tuple[str | None, int | None]:
    """Return state letter and start time (ticks since boot) of a process, None where unknown."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
        fields = text.rpartition(")")[2].split()  # the name before it may contain anything
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None, None

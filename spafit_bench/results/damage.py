"""What becomes of damaged runs: they are moved to `set-aside/`, with the reason, and made anew."""

from __future__ import annotations

from collections.abc import Callable

from spafit_bench.base.checksums import check_folder
from spafit_bench.base.errors import DamagedError, UserError
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import read_run
from spafit_bench.results.store import Store

Warn = Callable[[str], None]


def examine(store: Store, run_id: str, warn: Warn) -> RunRecord | None:
    """Return a run's record if its files are as they were written; set a damaged run aside.

    Args:
        store: where the run may be.
        run_id: its name.
        warn: hears what was damaged and where it is now.

    Returns:
        None where there is no run, or no longer.

    Raises:
        UserError: the record is of another version, or the damaged run cannot be moved.
    """
    try:
        record = store.find(run_id)
        if record is not None:
            check_folder(store.runs / run_id)
    except DamagedError:
        return _set_run_aside(store, run_id, warn)
    return record


def set_damaged_aside(store: Store, warn: Warn) -> None:
    """Set every run aside whose record is damaged.

    Raises:
        UserError: as `examine`.
    """
    if store.runs.is_dir():
        for damage in store.survey()[1]:
            _set_run_aside(store, _name_in(store, damage), warn)


def _name_in(store: Store, damage: DamagedError) -> str:
    return damage.path.relative_to(store.runs).parts[0]


def _set_run_aside(store: Store, run_id: str, warn: Warn) -> RunRecord | None:
    """Look once more: another process may have set it aside by now, or replaced it."""
    folder = store.runs / run_id
    try:
        with store.locked():
            try:
                record = read_run(folder)
                check_folder(folder)
                return record
            except DamagedError as damage:
                place = store.set_aside(folder, damage.problem)
                warn(f"{damage.problem}: set aside as {place}")
                return None
    except OSError as error:
        raise UserError(f"{folder}: is damaged and cannot be moved ({error.strerror})") from None

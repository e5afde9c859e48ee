"""Carries out runs one after another and keeps what they leave behind."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Protocol

from spafit_bench.errors import UserError
from spafit_bench.execute import Outcome, blank_record, execute, utc_now
from spafit_bench.prepare import PreparedRun
from spafit_bench.record import RunRecord, Status
from spafit_bench.store import Store, prediction_rows
from spafit_bench.train import Observer

log = logging.getLogger(__name__)

_LONGEST_REASON = 500
"""Characters: libraries put stack frames into their messages."""


class View(Protocol):
    """Shows how a series of runs goes."""

    def skipped(self, record: RunRecord) -> None:
        """Hear that a run is already there."""

    def started(self, prepared: PreparedRun, number: int, total: int) -> Observer:
        """Hear that a run begins; return who is to hear of its progress."""

    def finished(self, record: RunRecord) -> None:
        """Hear how a run ended."""


def run_all(
    runs: Sequence[PreparedRun],
    store: Store,
    *,
    view: View,
    force: bool = False,
    retry_failed: bool = False,
) -> list[RunRecord]:
    """Carry out runs in order; one that fails or diverges does not stop the others.

    Args:
        runs: checked inputs.
        store: where results go; written to after every run.
        view: hears of everything.
        force: repeat runs that are finished.
        retry_failed: repeat runs that failed or diverged.

    Returns:
        One record per run, those found finished included.

    Raises:
        UserError: results cannot be written, or weights cannot be loaded.
        KeyboardInterrupt: passed on after the run under way is recorded as interrupted.
    """
    store.check_writable()
    store.rebuild_csv()  # a damaged record is said now, not after hours
    records = []
    for number, prepared in enumerate(runs, start=1):
        record = None if force else store.find(prepared.run_id)
        if record is not None and not _to_repeat(record.status, retry_failed=retry_failed):
            view.skipped(record)
        else:
            observer = view.started(prepared, number, len(runs))
            record = _run_one(prepared, store, view, observer)
            view.finished(record)
        records.append(record)
    return records


def _to_repeat(status: Status, *, retry_failed: bool) -> bool:
    return status == "interrupted" or (retry_failed and status != "done")


def _run_one(prepared: PreparedRun, store: Store, view: View, observer: Observer) -> RunRecord:
    started_at = utc_now()
    try:
        outcome = execute(prepared, observer)
    except UserError:
        raise
    except KeyboardInterrupt:
        record = blank_record(prepared, started_at, "interrupted", "Ctrl-C")
        _save_unfinished(store, record)
        view.finished(record)
        raise
    except Exception as error:  # whatever broke one run, the others must go on
        log.debug("%s", traceback.format_exc())
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        record = blank_record(prepared, started_at, "failed", reason)
        _save_unfinished(store, record)
        return record
    if outcome.record.status == "done":
        store.save(outcome.record, _files(prepared, outcome))
    else:
        _save_unfinished(store, outcome.record)
    return outcome.record


def _save_unfinished(store: Store, record: RunRecord) -> None:
    """Record a run without a result, unless that would replace a finished one (`--force`)."""
    earlier = store.find(record.run_id)
    if earlier is None or earlier.status != "done":
        store.save(record, {})


def _files(prepared: PreparedRun, outcome: Outcome) -> dict[str, bytes]:
    from safetensors.numpy import save

    files = {name: save(dict(state)) for name, state in outcome.states.items()}
    predictions = {n: p.labels(prepared.task) for n, p in outcome.predictions.items()}
    logits = {n: p.logits for n, p in outcome.predictions.items()}
    files["predictions.parquet"] = prediction_rows(logits, predictions, outcome.labels)
    return files

"""Run records -> tables of scores, parameters and cost, as typed values.

Nothing here prints: `render` writes a table for a terminal, a paper or a program; `settings` says
which runs share a table, a row and a mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from spafit_bench.analysis.references import References
from spafit_bench.analysis.tables.baseline import find_baselines
from spafit_bench.analysis.tables.cells import Cell, Column, Mark, Measurement, ResultTable, Row
from spafit_bench.analysis.tables.costs import cost_table, parameters_table
from spafit_bench.analysis.tables.published import beside, check_any_shown
from spafit_bench.analysis.tables.scores import scores_table
from spafit_bench.analysis.tables.settings import group_runs, group_trials
from spafit_bench.analysis.tables.trials import trials_table
from spafit_bench.base.errors import UserError
from spafit_bench.results.record import RunRecord

__all__ = [
    "Cell",
    "Column",
    "Mark",
    "Measurement",
    "ResultTable",
    "Row",
    "build_tables",
]


def build_tables(
    records: Sequence[RunRecord],
    references: References | None = None,
    *,
    unlike: bool = False,
    baseline: str | None = None,
) -> tuple[ResultTable, ...]:
    """Compute scores, parameters and cost for each model (and data set, where a task has several).

    What was tried on held-out train before a setting was chosen comes last.

    Args:
        records: any runs.
        references: published scores to set below ours, where they are of the same thing.
        unlike: whether to show those of other models, splits or data as well, marked.
        baseline: row that every score is tested against, by its label or method.

    Raises:
        UserError: no record is of a finished run (the message says how to make one), no
            published score is like ours, or the baseline is no row's or several rows' name.
    """
    groups = group_runs(records)
    if not groups:
        raise UserError(_nothing_to_show(records))
    parts = [beside(references, group, unlike=unlike) for group in groups]
    if references is not None:
        check_any_shown(references, parts)
    rows = find_baselines(groups, baseline)
    main = [
        table
        for group, part, row in zip(groups, parts, rows, strict=True)
        for table in (scores_table(group, part, row), parameters_table(group), cost_table(group))
    ]
    return (*main, *map(trials_table, group_trials(records, groups)))


def _nothing_to_show(records: Sequence[RunRecord]) -> str:
    remedy = "make one with `spafit-bench run --task mrpc --method spafit --preset smoke`"
    if not records:
        return f"there are no runs to make a table of: {remedy}"
    if trials := sum(r.status == "done" and r.holdout is not None for r in records):
        return (
            f"there are {trials} finished trials on held-out training data, but no run has been "
            "chosen from them, so there is no table to make: run the sweep again, with other "
            "values if every trial collapsed"
        )
    counts = Counter(record.status for record in records)
    found = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"no run has finished, so there is no table to make (found: {found}): {remedy}"

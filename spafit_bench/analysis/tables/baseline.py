"""Which scores of a table are separably above or below those of a chosen row, over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from spafit_bench.analysis.stats import ALPHA, LEAST_SEEDS, Tested, family, over_seeds
from spafit_bench.analysis.tables.cells import Cell, Mark, Measurement, Sample
from spafit_bench.analysis.tables.settings import RunGroup, Setting, matching_rows
from spafit_bench.base.errors import UserError, nearest

Place = tuple[Setting, int]
"""Row, column of scores."""
_ROUNDING = 1e-9


def find_baselines(groups: Sequence[RunGroup], name: str | None) -> list[Setting | None]:
    """Find the named row in each group; None in a group that does not have it.

    Raises:
        UserError: no group has it, or one has it several times.
    """
    if name is None:
        return [None] * len(groups)
    found: list[Setting | None] = []
    for group in groups:
        rows = matching_rows(group, name)
        if len(rows) > 1:
            listed = "".join(f"\n  {row.label!r}" for row in rows)
            raise UserError(
                f"--baseline {name}: {len(rows)} rows of the table have this name; give one of "
                f"them:{listed}"
            )
        found.append(rows[0] if rows else None)
    if not any(found):
        labels = sorted({row.label for group in groups for row in group.rows})
        raise UserError(f"--baseline {name}: no finished run of it: {nearest(name, labels)}")
    return found


@dataclass(frozen=True, kw_only=True)
class Against:
    """The scores of a table against the same columns of the baseline."""

    baseline: Setting
    tests: Mapping[Place, Tested]
    """Absent where one of the two has no score."""
    leads: Mapping[Place, float]
    """Points above the baseline, as tested; absent where no seed is shared."""
    shown_leads: Mapping[Place, float]
    """The same of the scores shown: another where an average's tasks ran different seeds."""
    num_tasks: int
    """Columns of tasks; those of averages follow, and are a family of their own."""

    def marked(self, row: Setting, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Add a mark to the cells that are separable from the baseline's."""
        return tuple(
            replace(cell, marks=(*cell.marks, *self._marks((row, column))))
            for column, cell in enumerate(cells)
        )

    def _marks(self, place: Place) -> tuple[Mark, ...]:
        test = self.tests.get(place)
        if test is None or not test.separable or self.leads[place] * self.shown_leads[place] < 0:
            return ()
        return (Mark(name="better" if self.leads[place] > 0 else "worse"),)

    def notes(self) -> Iterator[str]:
        """Say which test was made, how often and on how many seeds, and which could not be."""
        made = {place: test for place, test in self.tests.items() if test.p is not None}
        label = self.baseline.label
        if made:
            averages = sum(column >= self.num_tasks for _, column in made)
            of_tasks = len(made) - averages
            families = [f"{of_tasks} test{'s' * (of_tasks != 1)} of tasks"] if of_tasks else []
            families += [f"{averages} of averages"] if averages else []
            names = " or ".join(sorted({test.test for test in made.values()}))
            sizes = sorted({test.n for test in made.values()})
            n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
            yield (
                f"Baseline {label}: separable is p at most {ALPHA:g} by {names} over seeds "
                f"(n={n}), two-sided, after Holm's correction for {' and '.join(families)}."
            )
        if any(abs(self.leads[place] - self.shown_leads[place]) > _ROUNDING for place in made):
            yield "An average whose tasks ran different seeds is tested over those that they share."
        needs = Counter(
            (test.n, f"{test.needs} would do" if test.needs else "no spread to test against")
            for test in self.tests.values()
            if test.p is None
        )
        for (few, why), count in sorted(needs.items()):
            scores = "1 score" if count == 1 else f"{count} scores"
            seeds = f"{few} seed{'s' * (few != 1)}"
            yield f"Not testable against {label}: {scores} with {seeds}; {why}."
        if not self.tests:
            yield f"Baseline {label}: no other row has a score to compare with it."

    def measurements(self, columns: Sequence[tuple[str, str, str]]) -> Iterator[Measurement]:
        """List corrected p-values for programs; `columns` are key, task (or average) and split."""
        for (row, column), test in self.tests.items():
            if test.holm is None:
                continue
            key, task, split = columns[column]
            yield Measurement(
                method=row.method,
                setting=row.difference,
                task=task,
                split=split,
                metric=f"holm_p_against {self.baseline.label} on {key}",
                unit="p",
                mean=test.holm,
                sd=None,
                n=test.n,
                seeds=(),
                marks=tuple(mark.name for mark in self._marks((row, column))),
            )


def compare_scores(
    baseline: Setting,
    samples: Mapping[Setting, Sequence[Sample]],
    shown: Mapping[Setting, Sequence[Cell]],
    tested: Collection[int],
    num_tasks: int,
) -> Against:
    """Test every score against the baseline's in the same column.

    Args:
        baseline: a row.
        samples: of every row, the scores by seed of each of its columns.
        shown: of every row, the cells of those columns.
        tested: columns; single metrics, of which a task's score is the mean, are not.
        num_tasks: columns of tasks, before those of averages.
    """
    shown_leads = {
        (row, column): cell.value - base.value
        for row, cells in shown.items()
        if row != baseline
        for column, (cell, base) in enumerate(zip(cells, shown[baseline], strict=True))
        if column in tested and cell.value is not None and base.value is not None
    }
    pairs = {(row, at): (samples[row][at], samples[baseline][at]) for row, at in shown_leads}
    found = {place: over_seeds(*pair) for place, pair in pairs.items() if all(pair)}
    tests: dict[Place, Tested] = {}
    for of_tasks in (True, False):
        members = {at: test for at, (_, test) in found.items() if (at[1] < num_tasks) == of_tasks}
        tests |= family(members, "seeds")
    for place, pair in pairs.items():
        test = tests.get(place, Tested(needs=LEAST_SEEDS))
        tests[place] = test if test.p is not None else replace(test, n=min(map(len, pair)))
    return Against(
        baseline=baseline,
        tests=tests,
        leads={place: over.difference for place, (over, _) in found.items()},
        shown_leads=shown_leads,
        num_tasks=num_tasks,
    )

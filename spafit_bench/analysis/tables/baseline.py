"""Which scores of a table are separably above or below those of a chosen row, over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from spafit_bench.analysis.seed_tests import ALPHA, Tested, family, over_seeds
from spafit_bench.analysis.stats import LEAST_SEEDS
from spafit_bench.analysis.tables.cells import Cell, Mark, Measurement, Sample
from spafit_bench.analysis.tables.settings import Group, Setting, matching_rows
from spafit_bench.base.errors import UserError, nearest

Samples = Mapping[Setting, Sequence[Sample]]
"""Row -> the scores by seed of each of its columns; empty where there are none."""
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Against:
    """Every score of a table against the same column of the baseline."""

    baseline: Setting
    tests: Mapping[tuple[Setting, int], Tested]
    """(row, column) -> its test; absent where one of the two has no score."""
    tested_leads: Mapping[tuple[Setting, int], float]
    """Likewise: points above the baseline; absent where no seed is shared."""
    shown_leads: Mapping[tuple[Setting, int], float]
    """The same of the scores shown: another where an average's tasks ran different seeds."""
    num_tasks: int
    """Columns of tasks; those of averages follow, and are a family of their own."""

    def marked(self, row: Setting, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Add a mark to the cells that are separable from the baseline's."""
        return tuple(
            replace(cell, marks=(*cell.marks, *self._marks((row, column))))
            for column, cell in enumerate(cells)
        )

    def _marks(self, key: tuple[Setting, int]) -> tuple[Mark, ...]:
        test = self.tests.get(key)
        if test is None or not test.separable or self.tested_leads[key] * self.shown_leads[key] < 0:
            return ()
        return (Mark(name="better" if self.tested_leads[key] > 0 else "worse"),)

    def notes(self) -> Iterator[str]:
        """Say which test was made, how often and on how many seeds, and which could not be."""
        made = {key: test for key, test in self.tests.items() if test.p is not None}
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
        if any(abs(self.tested_leads[key] - self.shown_leads[key]) > _ROUNDING for key in made):
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
        """List corrected p-values for programs.

        Args:
            columns: key, task (or average) and split of each column.
        """
        for (row, column), test in self.tests.items():
            if test.holm is not None:
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


def find_baselines(groups: Sequence[Group], name: str | None) -> list[Setting | None]:
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
                f"--baseline {name}: that is {len(rows)} rows of the table; name one:{listed}"
            )
        found.append(rows[0] if rows else None)
    if not any(found):
        labels = sorted({row.label for group in groups for row in group.rows})
        raise UserError(f"--baseline {name}: no finished run of it: {nearest(name, labels)}")
    return found


def compare_with(
    baseline: Setting,
    samples: Samples,
    shown: Mapping[Setting, Sequence[Cell]],
    tested: Collection[int],
    num_tasks: int,
) -> Against:
    """Test every score against the baseline's in the same column.

    Args:
        baseline: a row.
        samples: of every row, the baseline included.
        shown: likewise, the cells of its columns.
        tested: columns; single metrics, of which a task's score is the mean, are not.
        num_tasks: columns of tasks, before those of averages.
    """
    leads = {
        (row, column): cell.value - base.value
        for row, cells in shown.items()
        if row != baseline
        for column, (cell, base) in enumerate(zip(cells, shown[baseline], strict=True))
        if column in tested and cell.value is not None and base.value is not None
    }
    pairs = {key: (samples[key[0]][key[1]], samples[baseline][key[1]]) for key in leads}
    found = {key: over_seeds(*pair) for key, pair in pairs.items() if all(pair)}
    tests: dict[tuple[Setting, int], Tested] = {}
    for of_tasks in (True, False):
        members = {k: s for k, (_, s) in found.items() if (k[1] < num_tasks) == of_tasks}
        tests |= family(members, "seeds")
    for key, pair in pairs.items():
        test = tests.get(key, Tested(needs=LEAST_SEEDS))
        tests[key] = test if test.p is not None else replace(test, n=min(map(len, pair)))
    return Against(
        baseline=baseline,
        tests=tests,
        tested_leads={key: over.difference for key, (over, _) in found.items()},
        shown_leads=leads,
        num_tasks=num_tasks,
    )

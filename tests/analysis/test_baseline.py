"""`table --baseline`: what is marked, which test it rests on, and what cannot be tested."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from spafit_bench.analysis.tables import ResultTable, build_tables
from spafit_bench.analysis.tables.render import FORMATS, render
from spafit_bench.base.errors import UserError
from spafit_bench.data.tasks import TASKS
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store
from tests.conftest import Cli
from tests.support.records import cell, make_record, matrix, metrics_of, notes

TASK_NAMES = ("cola", "mrpc", "rte")


def runs(method: str, level: float, seeds: int = 5, noise: float = 0.004) -> list[RunRecord]:
    """Make runs on three tasks around a level."""
    rng = np.random.default_rng([*method.encode()])
    return [
        make_record(task, method, seed, metrics_of(task, level + float(rng.normal(0, noise))))
        for task in TASK_NAMES
        for seed in range(seeds)
    ]


def against(records: list[RunRecord], baseline: str = "full") -> ResultTable:
    """Build the scores table with a baseline."""
    return next(t for t in build_tables(records, baseline=baseline) if t.kind == "scores")


def signs(table: ResultTable, name: str, *keys: str) -> list[str]:
    """The marks of some cells."""
    return [cell(table, name, key).symbols for key in keys]


def test_separable_scores_are_marked_and_the_note_says_how() -> None:
    """Three points up or down over five seeds are marked, averages too; the baseline is not."""
    table = against(runs("full", 0.80) + runs("lora", 0.83) + runs("spafit", 0.77))
    columns = (*TASK_NAMES, "avg")
    assert signs(table, "lora", *columns) == ["↑"] * 4
    assert signs(table, "spafit", *columns) == ["↓"] * 4
    assert signs(table, "full", *columns) == [""] * 4
    assert (
        "Baseline full: separable is p at most 0.05 by paired t over seeds (n=5), two-sided, "
        "after Holm's correction for 6 tests of tasks and 2 of averages."
    ) in table.notes
    assert "↑ separably better than the baseline." in table.notes
    assert "A mark on an average" not in notes(table)


def test_p_values_are_scipys_after_holm() -> None:
    """The long form has each corrected p-value; here two tests, of which Holm doubles the least."""
    records = [r for r in runs("full", 0.80) + runs("lora", 0.803) if r.task != "rte"]
    table = against(records)
    found = {m.task: m for m in table.measurements if m.metric.startswith("holm_p_against full")}

    def scores(method: str, task: str) -> list[float]:
        own = [r for r in records if (r.method, r.task) == (method, task)]
        return [TASKS[task].score(r.metrics) or 0.0 for r in own]

    p = {t: ttest_rel(scores("lora", t), scores("full", t)).pvalue for t in ("cola", "mrpc")}
    low, high = sorted(p, key=lambda task: p[task])
    assert found[low].mean == pytest.approx(min(1, 2 * p[low]))
    assert found[high].mean == pytest.approx(max(2 * p[low], p[high]))
    assert (found[low].unit, found[low].n, found[low].method) == ("p", 5, "lora")


def test_noise_is_not_marked() -> None:
    """Equal methods have no marks, and the note still says what was tested."""
    table = against(runs("full", 0.80) + runs("lora", 0.80))
    assert signs(table, "lora", *TASK_NAMES, "avg") == [""] * 4
    assert "Baseline full: separable is" in notes(table)


@pytest.mark.parametrize(("seeds", "word"), [(1, "1 seed;"), (2, "2 seeds;")])
def test_too_few_seeds_are_not_tested(seeds: int, word: str) -> None:
    """One or two seeds cannot make a t test: no mark, and how many would do."""
    table = against(runs("full", 0.80, seeds) + runs("lora", 0.90, seeds))
    assert signs(table, "lora", *TASK_NAMES) == [""] * 3
    (note,) = [n for n in table.notes if n.startswith("Not testable")]
    assert note == f"Not testable against full: 4 scores with {word} 3 would do."
    assert "separable is" not in notes(table)


def test_some_cells_can_be_tested_and_others_not() -> None:
    """A task with one seed, and so the average, stand in the second note; others are tested."""
    few = [r for r in runs("lora", 0.83) if r.task != "rte" or r.seed == 0]
    table = against(runs("full", 0.80) + few)
    assert signs(table, "lora", *TASK_NAMES) == ["↑", "↑", ""]
    assert "for 2 tests of tasks." in notes(table)
    assert "Not testable against full: 2 scores with 1 seed; 3 would do." in table.notes


def test_unpaired_seeds_use_welch() -> None:
    """Other seeds of the same task are compared unpaired, and the note names the test."""
    other = [r.model_copy(update={"seed": r.seed + 10}) for r in runs("lora", 0.83)]
    table = against(runs("full", 0.80) + other)
    assert signs(table, "lora", *TASK_NAMES) == ["↑"] * 3
    assert "by Welch t over seeds" in notes(table)


def test_averages_over_unlike_seeds_are_tested_over_those_that_are_shared() -> None:
    """As `compare` does, and the note says so; fewer than three shared are counted as such."""
    full = runs("full", 0.80)
    five_three = [r for r in runs("lora", 0.83) if r.task != "rte" or r.seed < 3]
    table = against(full + five_three)
    assert signs(table, "lora", "avg") == ["↑"]
    assert "and 1 of averages." in notes(table)
    said = "An average whose tasks ran different seeds is tested over those that they share."
    assert said in table.notes
    assert said not in against(full + runs("lora", 0.83)).notes
    two = against(full + [r for r in runs("lora", 0.83) if r.task != "rte" or r.seed > 2])
    assert "Not testable against full: 2 scores with 2 seeds; 3 would do." in two.notes
    apart = [r for r in full if r.task != "rte"]
    apart += [r.model_copy(update={"seed": r.seed + 10}) for r in full if r.task == "rte"]
    table = against(apart + five_three)
    assert "Not testable against full: 1 score with 0 seeds; 3 would do." in table.notes


def test_no_arrow_against_the_averages_shown() -> None:
    """Ahead over the seeds that the tasks share, behind in the averages that a reader sees."""
    ours = [r for r in runs("lora", 0.83) if r.task != "rte"] + rte("lora", 0.831, 0.829, 0.83)
    bad = [make_record("mrpc", "lora", seed, 0.2) for seed in range(5, 9)]
    table = against(runs("full", 0.80) + ours + bad)
    shown = [cell(table, name, "avg").value or 0 for name in ("lora", "full")]
    assert shown[0] < shown[1] - 5
    (found,) = [m for m in table.measurements if m.unit == "p" and m.task == "avg"]
    assert found.mean < 0.05
    assert signs(table, "lora", "avg") == [""]


def rte(method: str, *scores: float, first: int = 0) -> list[RunRecord]:
    """Make runs on RTE, seeds from `first`."""
    return [make_record("rte", method, seed, value) for seed, value in enumerate(scores, first)]


def test_an_arrow_is_of_the_difference_that_is_shown() -> None:
    """Ahead in three common seeds, far behind on all: all that the cell averages are tested."""
    ours = (0.810, 0.812, 0.811, 0.65, 0.66)
    table = against(rte("full", 0.805, 0.808, 0.806) + rte("lora", *ours))
    assert (cell(table, "lora", "rte").text, cell(table, "full", "rte").text) == ("74.86", "80.63")
    assert signs(table, "lora", "rte") == [""]
    (found,) = [m for m in table.measurements if m.unit == "p"]
    expected = ttest_ind(ours, (0.805, 0.808, 0.806), equal_var=False).pvalue
    assert found.mean == pytest.approx(expected)


def test_what_cannot_be_tested_is_said_truly() -> None:
    """Few seeds, no common one: the fewer of either. No spread: no number of seeds would do."""
    few = against(rte("full", 0.80, 0.81) + rte("lora", 0.9, 0.91, 0.92, first=10))
    assert "Not testable against full: 1 score with 2 seeds; 3 would do." in few.notes
    same = against(rte("full", *[0.8] * 5) + rte("lora", *[0.8] * 5) + rte("spafit", *[0.7] * 3))
    assert [note for note in same.notes if "testable" in note] == [
        "Not testable against full: 1 score with 3 seeds; no spread to test against.",
        "Not testable against full: 1 score with 5 seeds; no spread to test against.",
    ]


def test_nothing_differs_without_spread() -> None:
    """The same scores for every seed: no p-value of zero, no mark."""
    same = [make_record("mrpc", m, s, 0.8) for m in ("full", "lora") for s in range(5)]
    table = against(same)
    assert signs(table, "lora", "mrpc") == [""]


def test_a_lone_baseline_says_so() -> None:
    """There is nothing to compare."""
    assert "no other row has a score" in notes(against(runs("full", 0.8)))


def test_false_alarms_of_a_whole_table_are_rare() -> None:
    """Three methods alike on four tasks, 80 times: any mark in at most 5 % of tables or so."""
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(80):
        records = [
            make_record(task, method, seed, metrics_of(task, 0.8 + float(rng.normal(0, 0.01))))
            for task in ("cola", "mrpc", "rte", "sst2")
            for method in ("full", "lora", "spafit")
            for seed in range(4)
        ]
        table = against(records)
        keys = ("cola", "mrpc", "rte", "sst2")
        alarms += any(signs(table, name, *keys) != [""] * 4 for name in ("lora", "spafit"))
    assert alarms <= 9  # Binomial(80, 0.05) exceeds it once in 100


def test_every_format_shows_marks_and_notes() -> None:
    """Terminal at 80 columns, Markdown, LaTeX, HTML, CSV and JSON."""
    tables = build_tables(runs("full", 0.80) + runs("lora", 0.83), baseline="full")
    for form in FORMATS:
        text = render(tables, form, 80)
        if form in ("csv", "json"):
            assert "better" in text
        else:
            assert ("↑" in text) or (r"\uparrow" in text), form
            assert "Baseline full" in " ".join(text.split()), form
    assert max(map(len, render(tables, "terminal", 80).splitlines())) <= 80
    lines = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    assert {x["marks"] for x in lines if x["metric"] == "holm_p_against full on rte"} == {"better"}
    body = json.loads(render(tables, "json"))
    (lora,) = [r for r in body["tables"][0]["rows"] if r["method"] == "lora"]
    assert lora["cells"]["mrpc"]["marks"] == ["better"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_with_a_baseline_compiles(tmp_path: Path) -> None:
    """Arrows and all, with the packages that the first line names."""
    tables = build_tables(runs("full", 0.80) + runs("lora", 0.83), baseline="full")
    source = render(tables[:1], "latex")
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{source}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_baselines_by_label_and_their_mistakes() -> None:
    """A row's label where a method has several rows; else one message."""
    records = runs("full", 0.8) + [
        make_record("mrpc", "lora", seed, 0.8, config={"train.learning_rate": rate})
        for seed in range(3)
        for rate in (1e-4, 2e-4)
    ]
    assert "Baseline lora · lr 2e-4" in notes(against(records, "lora lr 2e-4"))
    with pytest.raises(UserError, match="2 rows of the table have this name"):
        against(records, "lora")
    with pytest.raises(UserError, match=r"no finished run of it.*'full'"):
        against(records, "ful")


def test_the_flag(call: Cli, tmp_path: Path) -> None:
    """`table --baseline` prints the marks and keeps them in the folder's tables."""
    store = Store(tmp_path / "results")
    for record in [r for r in matrix(3) if r.task in ("cola", "mrpc")]:
        store.save(record, {})
    answer = call("table", "--results", store.root, "--baseline", "full")
    assert answer.code == 0
    assert "Baseline full" in answer.out
    assert "Baseline full" in (store.root / "tables" / "scores.md").read_text()
    wrong = call("table", "--results", store.root, "--baseline", "bitfitt")
    assert "did you mean 'bitfit'" in wrong.error

"""Result tables: what is averaged, what is kept apart, and what a reader is told."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spafit_bench.analysis.selection import read_runs
from spafit_bench.analysis.tables import build_tables
from spafit_bench.analysis.tables.render import render
from spafit_bench.base.errors import UserError
from spafit_bench.data.custom_tasks import find_task
from spafit_bench.data.tasks import TASKS, get_task
from spafit_bench.results.record import RunRecord
from spafit_bench.results.run_folder import prediction_rows
from spafit_bench.results.store import Store
from tests.support.records import (
    BASE,
    METHODS,
    cell,
    make_record,
    matrix,
    notes,
    row,
    scores,
    write_run,
)


def test_mean_and_spread_agree_with_numpy() -> None:
    """A cell is the mean of a task's metrics over seeds, with the n - 1 spread, times 100."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.5, 0.9, size=(5, 2))
    records = [
        make_record(seed=seed, metrics={"validation": {"f1": float(f1), "accuracy": float(acc)}})
        for seed, (f1, acc) in enumerate(values)
    ]
    found = cell(scores(records), "spafit", "mrpc")
    by_seed = 100 * values.mean(axis=1)
    assert found.value == pytest.approx(by_seed.mean())
    assert found.sd == pytest.approx(by_seed.std(ddof=1))
    assert (found.n, found.text, found.spread) == (
        5,
        f"{by_seed.mean():.2f}",
        f"{by_seed.std(ddof=1):.2f}",
    )


def test_one_seed_has_no_spread() -> None:
    """A single seed gives a mean without sd, and the caption says so."""
    table = scores([make_record()])
    found = cell(table, "spafit", "mrpc")
    assert (found.n, found.sd, found.spread) == (1, None, "")
    assert "one seed, so no spread" in table.caption


def test_columns_follow_the_paper() -> None:
    """Sizes, then tasks in the paper's order, MNLI twice, each with its metric, then averages."""
    columns = scores(matrix(seeds=1)).columns
    assert [(column.title, column.subtitle) for column in columns] == [
        ("Params (M)", "2 labels"),
        ("%", "of base"),
        ("CoLA", "MCC"),
        ("SST-2", "Acc"),
        ("MRPC", "F1/Acc"),
        ("MRPC", "F1"),
        ("MRPC", "Acc"),
        ("STS-B", "Pear/Spear"),
        ("QQP", "F1/Acc"),
        ("QQP", "F1"),
        ("QQP", "Acc"),
        ("MNLI-m", "Acc"),
        ("MNLI-mm", "Acc"),
        ("QNLI", "Acc"),
        ("RTE", "Acc"),
        ("WNLI", "Acc"),
        ("Avg", "9 tasks"),
        ("Avg w/o WNLI", "8 tasks"),
    ]


def test_averages_count_mnli_once_and_spread_over_seeds() -> None:
    """An average is of task scores; its spread is that of the averages of each seed."""
    records = [record for record in matrix() if record.method == "lora"]
    per_seed = np.zeros((3, len(TASKS)))
    for record in records:
        splits = [np.mean(list(values.values())) for values in record.metrics.values()]
        per_seed[record.seed, list(TASKS).index(record.task)] = 100 * np.mean(splits)
    table = scores(records)
    for key, picked in (("avg", per_seed), ("avg_without_wnli", per_seed[:, :-1])):
        found = cell(table, "lora", key)
        assert found.value == pytest.approx(picked.mean())
        assert found.sd == pytest.approx(picked.mean(axis=1).std(ddof=1))


def test_mnli_task_score_is_the_mean_of_both_dev_sets() -> None:
    """Each MNLI dev set has its own column and half of the task's score."""
    metrics = {
        "validation_matched": {"accuracy": 0.8},
        "validation_mismatched": {"accuracy": 0.9},
    }
    table = scores([make_record("mnli", metrics=metrics), make_record("rte", metrics=0.65)])
    assert cell(table, "spafit", "mnli_matched").value == pytest.approx(80)
    assert cell(table, "spafit", "mnli_mismatched").value == pytest.approx(90)
    assert cell(table, "spafit", "avg").value == pytest.approx(75)


def test_average_without_common_seeds_has_no_spread() -> None:
    """Tasks that ran different seeds still have an average, but no spread of it."""
    records = [make_record("mrpc", seed=seed) for seed in (0, 1)]
    records += [make_record("rte", seed=seed) for seed in (2, 3)]
    table = scores(records)
    assert cell(table, "spafit", "avg").value == pytest.approx(80)
    assert cell(table, "spafit", "avg").sd is None
    assert "no spread if its tasks ran different seeds" in notes(table)


def test_a_row_that_lacks_a_task_has_no_average() -> None:
    """Averages over different sets of tasks are never put in one column."""
    records = [make_record(task, method) for task in ("mrpc", "rte") for method in METHODS]
    table = scores([r for r in records if (r.task, r.method) != ("rte", "full")])
    assert cell(table, "full", "rte").value is None
    assert cell(table, "full", "avg").value is None
    assert cell(table, "lora", "avg").value == pytest.approx(80)
    assert "a row that lacks a task has no average" in notes(table)


def test_average_says_which_tasks_are_missing() -> None:
    """The average's coverage is in its heading and its note; one task has no average."""
    table = scores([make_record(task) for task in ("cola", "mrpc")])
    (average,) = [column for column in table.columns if column.key == "avg"]
    assert average.subtitle == "2 of 9"
    assert "2 of 9 tasks; missing SST-2, STS-B, QQP, MNLI, QNLI, RTE, WNLI" in notes(table)
    assert [column.key for column in scores([make_record()]).columns] == [
        "trainable",
        "percent",
        "mrpc",
        "mrpc_f1",
        "mrpc_accuracy",
    ]


def test_best_is_bold_and_second_underlined() -> None:
    """The majority row takes no part in the ranking."""
    values = {"full": 0.8, "lora": 0.9, "spafit": 0.7}
    majority = {"validation": {"accuracy": 0.6}}
    table = scores([make_record("rte", m, metrics=v, majority=majority) for m, v in values.items()])
    ranks = {
        row.name: (row.cells[2].bold, row.cells[2].underline, row.baseline) for row in table.rows
    }
    assert ranks == {
        "full": (False, True, False),
        "lora": (True, False, False),
        "spafit": (False, False, False),
        "majority class": (False, False, True),
    }


def test_nothing_below_the_majority_class_is_bold() -> None:
    """The best of methods that learned nothing is not shown as a winner, and a note says so."""
    values = {"full": 0.8, "lora": 0.9, "spafit": 0.7}
    for share, bold in ((0.85, ["lora"]), (0.95, [])):
        majority = {"validation": {"accuracy": share}}
        table = scores(
            [make_record("rte", m, metrics=v, majority=majority) for m, v in values.items()]
        )
        assert [row.name for row in table.rows if row.cells[2].bold] == bold
        assert not any(row.cells[2].underline for row in table.rows)
        assert "Not ranked: scores below the majority class." in table.notes


def test_nearly_collapsed_runs_are_marked(tmp_path: Path) -> None:
    """Also those whose records do not count their predictions: the kept predictions do."""
    y = (np.arange(1000) % 3 > 0).astype(float)
    cases = {"spafit": (986, "¶"), "lora": (995, "¶"), "bitfit": (950, ""), "full": (1000, "†")}
    store = Store(tmp_path)
    for method, (ones, _) in cases.items():
        x = (np.arange(1000) < ones).astype(float)
        accuracy = {"validation": {"accuracy": float(np.mean(x == y))}}
        record = make_record("rte", method, metrics=accuracy, collapsed=method == "full")
        logits = {"validation": np.stack([1 - x, x], axis=1)}
        rows = prediction_rows(logits, {"validation": x}, {"validation": y})
        write_run(store.runs, record, {"predictions.parquet": rows})
    table = scores(read_runs(store))
    assert {m: cell(table, m, "rte").symbols for m in cases} == {
        method: mark for method, (_, mark) in cases.items()
    }
    assert "¶ nearly collapsed: at least 98 % of its predictions are one class." in table.notes


@pytest.mark.parametrize(
    ("values", "bold", "underlined"),
    [
        ([0.9], set(), set()),
        ([0.9, 0.8], {0}, set()),
        ([0.9, 0.9], set(), set()),
        ([0.9, 0.9, 0.8], {0, 1}, set()),
        ([0.9, 0.8, 0.8], {0}, {1, 2}),
        ([0.90001, 0.90002, 0.8], {0, 1}, set()),
    ],
)
def test_ties(values: list[float], bold: set[int], underlined: set[int]) -> None:
    """Values that read alike rank alike; a lone method and full ties are not ranked."""
    methods = list(METHODS)[: len(values)]
    table = scores([make_record("rte", m, metrics=v) for m, v in zip(methods, values, strict=True)])
    cells = [cell(table, method, "rte") for method in methods]
    assert {i for i, found in enumerate(cells) if found.bold} == bold
    assert {i for i, found in enumerate(cells) if found.underline} == underlined


def test_collapsed_scores_are_not_ranked() -> None:
    """A mean over collapsed seeds is neither best nor second, nor is an average over it."""
    records = [
        make_record(task, method, seed, value, collapsed=(method, task) == ("full", "wnli"))
        for method, value in {"full": 0.8, "lora": 0.7, "spafit": 0.6, "bitfit": 0.5}.items()
        for task in ("wnli", "rte")
        for seed in range(2)
    ]
    table = scores(records)
    columns = ("wnli", "rte", "avg")
    ranks = {
        name: [(c.bold, c.underline) for c in (cell(table, name, key) for key in columns)]
        for name in ("full", "lora", "spafit")
    }
    assert ranks == {
        "full": [(False, False), (True, False), (False, False)],
        "lora": [(True, False), (False, True), (True, False)],
        "spafit": [(False, True), (False, False), (False, True)],
    }
    said = "Not ranked: scores marked †, and averages over them."
    assert said in table.notes
    assert said not in scores([r for r in records if r.task == "rte"]).notes
    assert said not in scores([r for r in records if r.method == "full"]).notes


def test_majority_row_shows_the_records_baseline() -> None:
    """The baseline is the mean of the majority's metrics, from the largest training set."""
    full = {"validation": {"f1": 0.8122, "accuracy": 0.6838}}
    small = {"validation": {"f1": 0.0, "accuracy": 0.3162}}
    records = [make_record(seed=0, majority=full)]
    records.append(make_record(seed=1, majority=small, train_limit=10))
    table = scores(records)
    found = cell(table, "majority class", "mrpc")
    assert found.value == pytest.approx((81.22 + 68.38) / 2)
    assert (found.n, found.marks) == (0, ())
    lines = {
        line.metric: line.mean for line in table.measurements if line.method == "majority class"
    }
    assert lines["f1"] == pytest.approx(81.22)


@pytest.mark.parametrize(
    ("fields", "mark", "legend"),
    [
        ({"official_split": False}, "*", "not the official GLUE data"),
        ({"train_limit": 100}, "‡", "part of the training set"),
        ({"select": "best"}, "§", "chosen by its dev score"),
        ({"collapsed": True}, "†", "collapsed"),
    ],
)
def test_marks_and_legend(fields: dict[str, object], mark: str, legend: str) -> None:
    """A mark stands at the value and at averages over it; the legend has only marks in use."""
    table = scores([make_record("rte", **fields), make_record("mrpc")])
    rte, avg = ([column.key for column in table.columns].index(key) for key in ("rte", "avg"))
    methods = [row for row in table.rows if not row.baseline]
    assert mark in {row.cells[rte].symbols for row in methods}
    assert all(row.cells[avg].symbols in (mark, "") for row in methods)
    assert "select" in fields or methods[0].cells[avg].symbols == mark
    assert legend in notes(table)
    plain = notes(scores([make_record("rte"), make_record("mrpc")]))
    assert not any(symbol in plain for symbol in "*†‡§")


def test_collapse_of_some_seeds_is_counted() -> None:
    """One collapsed seed of three stays in the mean; the mean without it is told besides."""
    values = [0.6, 0.6, 0.0]
    records = [
        make_record("cola", seed=seed, metrics=value, collapsed=value == 0)
        for seed, value in enumerate(values)
    ]
    found = cell(scores(records), "spafit", "cola")
    assert found.symbols == "†1/3"
    assert found.value == pytest.approx(40)
    table = scores(records)
    told = "spafit on CoLA: 1 of 3 seeds collapsed; mean 40.00 with them, 60.00 without."
    assert told in table.notes
    (line,) = [m for m in table.measurements if m.metric == "score_without_collapsed"]
    assert (line.mean, line.n, line.seeds) == (pytest.approx(60), 2, (0, 1))


def test_collapse_of_all_seeds_has_no_other_mean() -> None:
    """Where every seed collapsed there is only the mark."""
    records = [make_record("cola", seed=seed, metrics=0.0, collapsed=True) for seed in (0, 1)]
    table = scores(records)
    assert cell(table, "spafit", "cola").symbols == "†"
    assert "without" not in notes(table).replace("Avg w/o", "")
    assert not any(m.metric == "score_without_collapsed" for m in table.measurements)


def test_sizes_come_first_and_are_not_ranked() -> None:
    """Each row begins with what it trains, in millions and percent of the two-label model."""
    table = scores(matrix(seeds=1))
    assert [column.key for column in table.columns][:2] == ["trainable", "percent"]
    for name, count in METHODS.items():
        size, percent = row(table, name).cells[:2]
        assert (size.value, percent.value) == (count, pytest.approx(100 * count / BASE))
        assert not any((size.bold, size.underline, percent.bold, percent.underline))
    assert [found.text for found in row(table, "spafit").cells[:2]] == ["5.65", "1.69"]
    assert [found.value for found in row(table, "majority class").cells[:2]] == [None, None]


def test_a_score_of_three_metrics_is_not_said_to_be_of_two() -> None:
    """Tasks beyond GLUE may have more."""
    assert "F1/Acc: the mean of the two metrics." in notes(scores([make_record("mrpc")]))
    names = ("accuracy", "f1", "matthews_correlation")
    definition = find_task("boolq").definition.model_copy(update={"metrics": names})
    metrics = {"validation": dict.fromkeys(names, 0.7)}
    run = make_record(metrics=metrics, majority=metrics)
    run = run.model_copy(update={"task": "boolq", "task_definition": definition})
    assert "Acc/F1/MCC: the mean of the metrics." in notes(scores([run]))


def test_wnli_note_only_with_wnli() -> None:
    """The note on WNLI's dev set is shown where WNLI is."""
    assert get_task("wnli").note in notes(scores([make_record("wnli")]))
    assert "adversarial" not in notes(scores([make_record("rte")]))


def test_long_labels_are_numbered_and_explained() -> None:
    """A method written as strata gets a short label, a note and its full name in the data."""
    strata = "0-4:frozen;5-9:bias;10-23:lora(query+key+value,r=64,alpha=128)+bias(ffn)"
    table = scores([make_record(method=strata), make_record(method="full")])
    (found,) = [row for row in table.rows if row.name == strata]
    assert found.label == "custom [1]"
    assert f"custom [1] is {strata}." in table.notes


def test_cells_with_other_seed_counts_say_so() -> None:
    """The caption names the usual number of seeds; a cell that differs names its own."""
    records = [make_record(task, seed=s) for task in ("mrpc", "rte") for s in range(3)]
    records += [make_record("cola", seed=0)]
    table = scores(records)
    assert "over 3 seeds, or n where given" in table.caption
    assert cell(table, "spafit", "cola").aside == "n=1"
    assert cell(table, "spafit", "mrpc").aside == ""


def test_long_form_has_every_metric() -> None:
    """Individual metrics, seeds and the task's score are listed in full precision."""
    records = [
        make_record(seed=s, metrics={"validation": {"f1": f1, "accuracy": 0.5}})
        for s, f1 in ((0, 0.7), (4, 0.9))
    ]
    lines = {m.metric: m for m in scores(records).measurements if m.method == "spafit"}
    assert lines["f1"].mean == pytest.approx(80)
    assert lines["f1"].sd == pytest.approx(np.std([70, 90], ddof=1))
    assert lines["f1"].seeds == (0, 4)
    assert lines["score"].mean == pytest.approx(65)


def test_missing_metric_is_a_missing_cell() -> None:
    """A dev set without one of the task's metrics has no score, not a partial one."""
    assert get_task("mrpc").score({"validation": {"f1": 0.9}}) is None
    records = [make_record(metrics={"validation": {"f1": 0.9}})]
    assert cell(scores(records), "spafit", "mrpc").value is None


def test_parameters_by_head_size() -> None:
    """Counts are given for two labels, one output and three labels, percent of the base model."""
    table = build_tables(matrix(seeds=1))[1]
    assert table.kind == "parameters"
    assert [column.subtitle for column in table.columns] == [
        "2 labels",
        "2 labels",
        "2 labels",
        "1 output",
        "3 labels",
    ]
    values = [found.value for found in row(table, "spafit").cells]
    assert values == [
        5_650_434,
        pytest.approx(100 * 5_650_434 / BASE),
        BASE,
        5_650_434 - 1025,
        5_650_434 + 1025,
    ]
    assert cell(table, "bitfit", "percent").text == "0.082"
    assert "adapters are not counted in the base" in notes(table)


def test_disagreeing_counts_are_a_range() -> None:
    """A count is never a mean: runs that disagree show the range."""
    table = build_tables([make_record(seed=0), make_record(seed=1, trainable_parameters=7)])[1]
    found = cell(table, "spafit", "trainable")
    assert (found.value, found.text) == (None, "7 to 5,650,434")


def test_cost_is_per_method_and_task() -> None:
    """Time is averaged over seeds of one task only; values stay in raw units."""
    records = [make_record("mrpc", seed=s, train_time_s=t) for s, t in enumerate((10.0, 14.0))]
    records += [make_record("rte", train_time_s=1000.0, peak_memory_bytes=None)]
    table = build_tables(records)[2]
    found = cell(table, "spafit", "train_time_s", group="MRPC")
    assert (found.value, found.sd) == (pytest.approx(12), pytest.approx(np.std([10, 14], ddof=1)))
    assert cell(table, "spafit", "train_time_s", group="RTE").text == "1,000"
    assert cell(table, "spafit", "stored_bytes", group="RTE").value == 4 * 5_650_434
    assert cell(table, "spafit", "stored_bytes", group="RTE").text == "22.6"
    assert cell(table, "spafit", "peak_memory_bytes", group="RTE").value is None
    assert "not measured" in notes(table)


def test_cost_of_unlike_machines_is_not_averaged() -> None:
    """Seeds that ran on different devices are separate rows of the cost table."""
    cpu = {"device": "cpu", "device_name": "CPU", "num_threads": 2}
    records = [make_record(seed=0), make_record(seed=1, environment=cpu)]
    table = build_tables(records)[2]
    assert {row.name for row in table.rows} == {
        "spafit · NVIDIA H100",
        "spafit · CPU, 2 threads",
    }
    assert cell(scores(records), "spafit", "mrpc").n == 2


def test_cost_of_several_devices_is_not_averaged_with_that_of_one() -> None:
    """Runs on several GPUs are rows of their own; their memory is one process's."""
    four, two = {"world_size": 4}, {"device": "cpu", "device_name": "CPU", "world_size": 2}
    alone = make_record(seed=0, train_time_s=400.0)
    records = [alone, make_record(seed=1, train_time_s=100.0, environment=four)]
    records.append(make_record(seed=2, environment=two))
    table = build_tables(records)[2]
    names = ["spafit · NVIDIA H100", "spafit · NVIDIA H100 ×4", "spafit · CPU ×2, 8 threads"]
    assert [row.name for row in table.rows] == names
    assert cell(table, names[1], "train_time_s", group="MRPC").value == 100
    said = "Memory: that of the first process, if several processes shared a run (×)."
    assert said in table.notes
    assert said not in build_tables([alone])[2].notes


def test_cost_with_cuda_graphs_is_not_averaged_with_that_without() -> None:
    """They change times and memory, not scores: two rows of the cost table, one of scores."""
    records = [make_record(seed=0), make_record(seed=1, config={"cuda_graphs": True})]
    names = {row.name for row in build_tables(records)[2].rows}
    assert names == {"spafit · NVIDIA H100", "spafit · NVIDIA H100, CUDA graphs"}
    assert cell(scores(records), "spafit", "mrpc").n == 2


@pytest.mark.parametrize("records", [[], [make_record(status="failed")]])
def test_nothing_to_show_says_how_to_make_a_run(records: list[RunRecord]) -> None:
    """Without a finished run the message has a command that makes one."""
    with pytest.raises(UserError, match="spafit-bench run --task mrpc --method spafit"):
        build_tables(records)


def test_only_trials_is_said() -> None:
    """Finished trials are no results, so the message does not count them as such."""
    trials = [make_record(seed=seed).model_copy(update={"holdout": 0.1}) for seed in (0, 1)]
    with pytest.raises(UserError, match=r"2 finished trials on held-out .* no run has been chosen"):
        build_tables(trials)


def test_unknown_task_is_named() -> None:
    """A record of a task that this version does not know is the user's to sort out."""
    record = make_record().model_copy(update={"task": "mprc"})
    with pytest.raises(UserError, match="mrpc"):
        build_tables([record])


def test_order_of_the_records_does_not_matter() -> None:
    """Tables are a function of the set of runs."""
    records = matrix(seeds=2)
    assert build_tables(records) == build_tables(records[::-1])


def test_heavy_libraries_are_not_imported() -> None:
    """The results half works without torch, pandas and, until a terminal is drawn, rich."""
    code = (
        "import sys, spafit_bench.analysis.tables, spafit_bench.analysis.tables.render;"
        "print([m for m in ('torch', 'pandas', 'rich', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(found.stdout) == []


def trial(rate: float, score: float, **fields: object) -> RunRecord:
    """Make a run on held-out train."""
    config = {"train.learning_rate": rate}
    values: dict[str, object] = {"holdout": 0.1, "score": score, "official_split": False}
    return make_record(config=config, metrics={}, **(values | fields))


def test_trials_are_shown_as_a_sweep_judges_them() -> None:
    """A column a value, the best mean marked; what collapsed or failed once is never that."""
    records = [
        make_record(),
        trial(1e-4, 0.70, seed=0),
        trial(1e-4, 0.80, seed=1),
        trial(1e-3, 0.74, seed=0),
        trial(1e-3, 0.74, seed=1),
        trial(1e-2, 0.90, seed=0, collapsed=True),
        trial(1e-2, 0.60, seed=1),
        trial(0.1, 0.99, seed=0),
        trial(0.1, 0.0, seed=1, status="diverged"),
        trial(1e-5, 0.6, method="full"),
        trial(1e-4, 0.5, method="full"),
        trial(1e-4, 0.5, method="lora"),
    ]
    tables = build_tables(records)
    assert [table.kind for table in tables] == ["scores", "parameters", "cost", "trials"]
    table = tables[-1]
    assert [c.title for c in table.columns] == [
        "as set",
        *("lr 1e-5", "lr 1e-4", "lr 1e-3", "lr 0.01", "lr 0.1"),
    ]
    cells = dict(
        zip((c.title for c in table.columns), row(table, "spafit", "MRPC").cells, strict=True)
    )
    assert [cell.text for cell in cells.values()] == [
        *("—", "—", "75.00", "74.00", "75.00"),
        "diverged",
    ]
    assert [title for title, cell in cells.items() if cell.bold] == ["lr 1e-4"]
    assert [mark.symbol for mark in cells["lr 0.01"].marks] == ["†1/2"]
    assert "neither collapsed nor failed" in notes(table)
    assert [c.text for c in row(table, "full", "MRPC").cells if c.bold] == ["60.00"]
    assert not any(c.bold for c in row(table, "lora", "MRPC").cells), "one value is no choice"
    assert "more beyond it may be better: MRPC full, MRPC spafit." in notes(table)
    wider = build_tables([*records, trial(1e-6, 0.1, method="full")])[-1]
    assert "more beyond it may be better: MRPC spafit." in notes(wider)
    assert "as set" in render(tables, "json")


def test_trials_of_a_grid_name_no_best_and_keep_their_marks() -> None:
    """A choice is made at each point of a grid, so that a row has several; limits are told."""
    records = [make_record()] + [
        make_record(
            config={"train.learning_rate": rate, "train.max_length": length},
            metrics={}, holdout=0.1, score=score, official_split=False, train_limit=100,
        )
        for rate, length, score in (
            (1e-4, 64, 0.6), (1e-3, 64, 0.7), (1e-4, 32, 0.8), (1e-3, 32, 0.5),
        )
    ]  # fmt: skip
    table = build_tables(records)[-1]
    cells = row(table, "spafit", "MRPC").cells
    assert len(cells) == 4
    assert not any(cell.bold for cell in cells)
    assert all(cell.symbols == "‡" for cell in cells)
    assert "‡" in notes(table)


def test_without_trials_there_is_no_table_of_them() -> None:
    """Runs of `run` alone make three tables."""
    assert [table.kind for table in build_tables([make_record()])] == [
        "scores",
        "parameters",
        "cost",
    ]

"""Which runs share a table, a row and a mean."""

import pytest

from spafit_bench.analysis.tables import build_tables
from spafit_bench.data.tasks import TASKS
from spafit_bench.results.record import RunRecord, StratumCount
from tests.support.records import cell, make_record, notes, scores


def test_learning_rates_of_one_cell_are_rows() -> None:
    """Runs that differ in more than the seed are never averaged; the label says in what."""
    records = [
        make_record(task, seed=seed, metrics=value, config={"train.learning_rate": rate})
        for task in ("mrpc", "rte")
        for seed in (0, 1)
        for rate, value in ((1e-3, 0.8), (3e-4, 0.6))
    ]
    table = scores(records)
    assert [row.name for row in table.rows] == [
        "spafit · lr 3e-4",
        "spafit · lr 1e-3",
        "majority class",
    ]
    found = cell(table, "spafit · lr 1e-3", "mrpc")
    assert (found.value, found.n) == (pytest.approx(80), 2)


def test_a_recipe_that_follows_the_task_is_one_row() -> None:
    """Hyperparameters that differ only between tasks keep the method in one row."""
    records = [
        make_record("mrpc", config={"train.learning_rate": 1e-3}),
        make_record("rte", config={"train.learning_rate": 1e-4}),
    ]
    assert [row.name for row in scores(records).rows] == ["spafit", "majority class"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"config": {"head.pooler": "full"}}, "head.pooler full"),
        ({"config": {"method.rank": 8}}, "rank 8"),
        ({"config": {"train.batch_size": 8}}, "batch size 8"),
        ({"config": {"cache_prefix": True}}, "cache prefix true"),
        ({"config": {"max_length": 64}}, "max length 64"),
        ({"train_limit": 50}, "limit 50"),
        ({"select": "best"}, "select best"),
        ({"environment": {"precision": "fp32"}}, "precision fp32"),
    ],
)
def test_every_difference_parts_rows(change: dict[str, object], expected: str) -> None:
    """Configuration, precision, selection and limit are never averaged over."""
    table = scores([make_record(seed=0), make_record(seed=1, **change)])
    names = [row.name for row in table.rows if not row.baseline]
    assert f"spafit · {expected}" in names
    assert len(names) == 2
    assert all(row.cells[2].n == 1 for row in table.rows if not row.baseline)


def test_what_a_method_is_parts_rows_even_between_tasks() -> None:
    """A rank is no recipe: two ranks are two methods, each with its own tasks."""
    records = [
        make_record("mrpc", config={"method.rank": 8}),
        make_record("rte", config={"method.rank": 64}),
    ]
    table = scores(records)
    assert [row.name for row in table.rows][:2] == ["spafit · rank 8", "spafit · rank 64"]
    assert cell(table, "spafit · rank 8", "avg").value is None


def test_an_open_setting_has_the_value_it_had() -> None:
    """Beside a rank of 8 the preset is its own rank; written out, that rank is the same row.

    A rank that was solved for is what came out, not what was written.
    """

    def run(seed: int, rank: int | None, lora: str) -> RunRecord:
        strata = (
            StratumCount(stratum="0", treatment="frozen", parameters=9, trainable=0),
            StratumCount(stratum="1", treatment=lora, parameters=9, trainable=4),
        )
        given = {"method.rank": rank, "method.alpha_per_rank": rank and 2.0}
        return make_record(seed=seed, config=given, strata=strata)

    preset, small = "lora(query,r=64,alpha=128)+bias(ffn)", "lora(query,r=8,alpha=16)"
    table = scores([run(0, None, preset), run(1, 64, preset), run(0, 8, small)])
    assert [row.name for row in table.rows][:2] == ["spafit · rank 8", "spafit · rank 64"]
    assert cell(table, "spafit · rank 64", "mrpc").n == 2
    solved = scores([run(0, 16, "lora(query,r=11,alpha=22)"), run(0, 8, small)])
    assert [row.name for row in solved.rows][:2] == ["spafit · rank 8", "spafit · rank 11"]
    two = scores([run(0, None, f"{small}+{preset}"), run(0, 8, small)])
    assert "spafit · alpha per rank unset, rank unset" in {row.name for row in two.rows}
    later = scores([run(0, None, "hadamard(query)"), run(0, 8, small)])
    assert "spafit · alpha per rank unset, rank unset" in {row.name for row in later.rows}


def test_what_cannot_change_a_result_does_not_part_rows() -> None:
    """Device, folder names, the path to the same weights and data, and caches leave one row."""
    changed = {"model": "/data/bert", "device": "cuda:1", "data": "/glue"}
    changed |= {"cache": False, "cache_prefix": False}
    table = scores([make_record(seed=0), make_record(seed=1, config=changed)])
    assert cell(table, "spafit", "mrpc").n == 2


def test_repeated_seed_counts_once() -> None:
    """Of two runs of a seed the later counts, and a note says that one is left out."""
    records = [
        make_record(metrics=0.9, started_at="2026-11-02T00:00:00Z"),
        make_record(metrics=0.7, started_at="2026-11-01T00:00:00Z"),
    ]
    table = scores(records)
    assert cell(table, "spafit", "mrpc").value == pytest.approx(90)
    assert cell(table, "spafit", "mrpc").n == 1
    assert "Left out: 1 earlier run" in notes(table)


def test_runs_without_result_are_counted_in_a_note() -> None:
    """Diverged and failed runs are no cells, and no silence either."""
    records = [make_record("cola", "lora", seed, status="diverged") for seed in (1, 2)]
    records += [make_record("cola", "lora", 0), make_record("rte", "full", 0, status="failed")]
    table = scores(records)
    assert cell(table, "lora", "cola").n == 1
    assert "Left out: 2 diverged runs of lora on CoLA." in table.notes
    assert "Left out: 1 failed run of full on RTE." in table.notes


def test_models_have_tables_of_their_own() -> None:
    """Two sets of weights never share a table, and a title never shows a folder."""
    records = [
        make_record(),
        make_record(weights="a" * 64, model="/home/me/tiny-bert"),
        make_record(weights="b" * 64, model="/elsewhere/tiny-bert"),
    ]
    titles = {table.title for table in build_tables(records) if table.kind == "scores"}
    assert titles == {
        "GLUE dev scores: bert-large-cased, official GLUE",
        "GLUE dev scores: tiny-bert (aaaaaaaa), official GLUE",
        "GLUE dev scores: tiny-bert (bbbbbbbb), official GLUE",
    }


def test_two_data_sets_of_one_task_have_tables_of_their_own() -> None:
    """Mini-GLUE beside one official task gives two tables, neither of them a mixture."""
    records = [make_record(task, official_split=False) for task in TASKS]
    records += [make_record("mrpc", metrics=0.9)]
    mini, official = (table for table in build_tables(records) if table.kind == "scores")
    assert (mini.data, official.data) == ("mini", "official GLUE")
    assert cell(mini, "spafit", "mrpc").value == pytest.approx(80)
    assert cell(official, "spafit", "mrpc").value == pytest.approx(90)


def test_tasks_of_different_origin_share_a_table_with_marks() -> None:
    """Without a task in two versions there is one table, and only the other data is marked."""
    table = scores([make_record("mrpc"), make_record("rte", official_split=False)])
    assert cell(table, "spafit", "mrpc").symbols == ""
    assert cell(table, "spafit", "rte").symbols == "*"
    assert table.data == "mini and official GLUE"


def test_two_editions_of_one_source_are_kept_apart() -> None:
    """The same folder with other content is another data set, named so."""
    records = [
        make_record(fingerprint=name, official_split=False, started_at=f"2026-11-0{day}T00:00:00Z")
        for day, name in enumerate(("old", "new"), start=1)
    ]
    names = [table.data for table in build_tables(records) if table.kind == "scores"]
    assert sorted(names) == ["mini", "mini, edition 2"]

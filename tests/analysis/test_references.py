"""Published scores: how they are read, and beside what they may stand."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from spafit_bench.analysis.references import References, read_references
from spafit_bench.analysis.tables import ResultTable, build_tables
from spafit_bench.analysis.tables.render import render, write_tables
from spafit_bench.base.errors import UserError
from spafit_bench.results.record import RunRecord
from spafit_bench.results.store import Store
from tests.conftest import call_main
from tests.support.records import cell, make_record, matrix, notes, row, scores

ENTRY: dict[str, Any] = {
    "name": "Theirs",
    "model": "bert-large-cased",
    "task": "rte",
    "split": "dev",
    "metric": "accuracy",
    "value": 70.4,
    "source": "a paper",
}


def write(folder: Path, *changes: dict[str, Any]) -> Path:
    """Write a file of entries like ENTRY."""
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump([ENTRY | change for change in changes]))
    return path


def beside(
    references: References, records: list[RunRecord], *, unlike: bool = False
) -> ResultTable:
    """Build the scores table with published rows."""
    return build_tables(records, references, unlike=unlike)[0]


def test_like_scores_stand_below_ours_in_their_own_words(tmp_path: Path) -> None:
    """A score of the same model, split and data is shown as published, with its source."""
    path = write(tmp_path, {"note": "one seed"}, {"task": "cola", "metric": "score", "value": 60.0})
    table = beside(read_references(path), [make_record("rte"), make_record("cola")])
    assert [r.name for r in table.rows] == ["spafit", "majority class", "Theirs"]
    assert cell(table, "Theirs", "rte").text == "70.4"
    assert cell(table, "Theirs", "cola").text == "60.0"
    assert cell(table, "Theirs", "avg").value is None
    assert "Theirs: RTE: a paper (one seed); CoLA: a paper." in table.notes
    ours = [m for m in table.measurements if not m.source]
    assert ours == list(scores([make_record("rte"), make_record("cola")]).measurements)


def test_published_rows_take_no_part_in_the_ranking(tmp_path: Path) -> None:
    """However good, a published score is neither best nor averaged."""
    records = [
        make_record("rte", method, metrics=v) for method, v in (("full", 0.7), ("lora", 0.8))
    ]
    table = beside(read_references(write(tmp_path, {"value": 99.0})), records)
    assert cell(table, "lora", "rte").bold
    assert not cell(table, "Theirs", "rte").bold


@pytest.mark.parametrize(
    ("change", "records", "reason"),
    [
        ({"model": "bert-large-uncased"}, {}, "model bert-large-uncased, ours bert-large-cased"),
        ({"model": "bert-large"}, {}, "model bert-large, ours bert-large-cased"),
        ({"split": "test"}, {}, "test set, ours dev"),
        ({}, {"official_split": False}, "official GLUE, ours mini"),
    ],
)
def test_unlike_scores_are_refused_unless_asked_for(
    tmp_path: Path, change: dict[str, Any], records: dict[str, Any], reason: str
) -> None:
    """Another model, split or data stops the table, or is marked and explained in it."""
    references = read_references(write(tmp_path, change))
    ours = [make_record("rte", **records)]
    with pytest.raises(UserError, match=reason) as caught:
        beside(references, ours)
    assert "--unlike" in str(caught.value)
    table = beside(references, ours, unlike=True)
    (theirs,) = [r for r in table.rows if r.source]
    assert theirs.cells[2].symbols == "≠"
    assert f"{theirs.name} is unlike ours: {reason}." in table.notes
    assert "≠ published for something unlike ours" in notes(table)
    (line,) = [m for m in table.measurements if m.source]
    assert line.marks == (f"unlike: {reason}",)
    assert line.split == change.get("split", "dev")


def test_some_unlike_scores_are_left_out_and_named(tmp_path: Path) -> None:
    """Where something can be shown, a note says what is not and why."""
    path = write(tmp_path, {}, {"name": "Other", "split": "test"}, {"task": "wnli", "value": 1.0})
    table = beside(read_references(path), [make_record("rte")])
    assert [r.name for r in table.rows if r.source] == ["Theirs"]
    assert "Not shown of theirs.yaml: Other, test: test set, ours dev." in table.notes


def test_data_are_compared_task_by_task(tmp_path: Path) -> None:
    """In a table of mixed origin only the tasks on official data have published scores."""
    path = write(tmp_path, {}, {"task": "cola", "metric": "score", "value": 60.6})
    records = [make_record("rte"), make_record("cola", official_split=False)]
    table = beside(read_references(path), records)
    assert cell(table, "Theirs", "rte").value == 70.4
    assert cell(table, "Theirs", "cola").value is None
    assert "Theirs: official GLUE, ours mini" in notes(table)


def test_one_metric_of_two_gets_a_column_of_its_own(tmp_path: Path) -> None:
    """Pearson alone never stands in the column of the mean; ours stands beside it."""
    path = write(tmp_path, {"task": "stsb", "metric": "pearson", "value": 89.3})
    metrics = {"validation": {"pearson": 0.9, "spearman": 0.8}}
    table = beside(read_references(path), [make_record("stsb", metrics=metrics)])
    assert [(c.key, c.subtitle) for c in table.columns[2:]] == [
        ("stsb", "Pear/Spear"),
        ("stsb_pearson", "Pear"),
    ]
    assert [c.value for c in row(table, "spafit").cells[2:]] == [
        pytest.approx(85),
        pytest.approx(90),
    ]
    assert [c.value for c in row(table, "Theirs").cells[2:]] == [None, 89.3]
    assert row(table, "majority class").cells[3].value == pytest.approx(50)


def test_published_scores_change_no_test_of_ours(tmp_path: Path) -> None:
    """STS-B's Pearson gets a column beside theirs, but is a part of what is tested anyway."""
    records = [
        make_record("stsb", method, seed, {"validation": {"pearson": 0.9 + x, "spearman": 0.8}})
        for method, sign in (("full", 1), ("lora", -1))
        for seed in range(4)
        for x in [sign * 0.001 * (seed + 1)]
    ]
    path = write(tmp_path, {"task": "stsb", "metric": "pearson"})
    (alone, *_) = build_tables(records, baseline="full")
    (table, *_) = build_tables(records, read_references(path), baseline="full")
    assert len(table.columns) == len(alone.columns) + 1
    found, before = ([m for m in t.measurements if m.unit == "p"] for t in (table, alone))
    assert found == before
    assert [line.metric for line in found] == ["holm_p_against full on stsb"]
    assert "for 1 test of tasks" in notes(table)


def test_both_metrics_make_the_mean(tmp_path: Path) -> None:
    """F1 and accuracy of one source are the task's score as well."""
    change = {"task": "mrpc", "collapsed": True}
    path = write(tmp_path, change | {"metric": "f1", "value": 81.22}, change | {"value": 68.38})
    table = beside(read_references(path), [make_record("mrpc")])
    assert [c.value for c in row(table, "Theirs").cells[3:]] == [81.22, 68.38]
    found = cell(table, "Theirs", "mrpc")
    assert (found.value, found.text, found.symbols) == (pytest.approx(74.8), "74.8", "†")
    assert "† collapsed" in notes(table)


def test_mnli_dev_sets_have_their_own_scores(tmp_path: Path) -> None:
    """Matched and mismatched are named in the split and never confused."""
    change = {"task": "mnli", "split": "dev_mismatched", "value": 85.9}
    table = beside(read_references(write(tmp_path, change)), [make_record("mnli")])
    assert cell(table, "Theirs", "mnli_matched").value is None
    assert cell(table, "Theirs", "mnli_mismatched").value == 85.9
    with pytest.raises(UserError, match="dev_matched"):
        read_references(write(tmp_path, change | {"split": "dev"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "mprc"}, "entry 2: unknown task 'mprc': did you mean 'mrpc'"),
        ({"split": "validation"}, "entry 2: split 'validation' of rte: choices: dev, test"),
        ({"metric": "f1"}, "entry 2: metric 'f1' of rte: .*accuracy"),
        ({"value": 0.704}, "entry 2: value = 0.704: 0.704 looks like native scale; write 70.4"),
        ({"value": 123}, "entry 2: value = "),
        ({"value": "high"}, "entry 2: value = "),
        ({"source": ""}, "entry 2: source = "),
        ({"sourse": "x"}, "entry 2: unknown key 'sourse': did you mean 'source'"),
        ({}, "entry 2: Theirs, bert-large-cased, rte, dev, accuracy is already entry 1"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """What is wrong with which entry, and what would be right."""
    with pytest.raises(UserError, match=message):
        read_references(write(tmp_path, {}, change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x", "must be a YAML list"),
        ("- 3", "entry 1: must be a mapping"),
        ("- {", "not valid YAML"),
        ("", "must be a YAML list"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Anything but a list of mappings is one message."""
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_references(path)


def test_a_missing_file_names_the_shipped_ones(tmp_path: Path) -> None:
    """A mistyped name is answered with what there is."""
    with pytest.raises(UserError, match=r"no such file; shipped ones: bert-large, spafit-template"):
        read_references(tmp_path / "none.yaml")


def test_a_field_left_out_is_named(tmp_path: Path) -> None:
    """A score without a source is no reference."""
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump([{k: v for k, v in ENTRY.items() if k != "source"}]))
    with pytest.raises(UserError, match="entry 1: 'source' is missing"):
        read_references(path)


def test_shipped_figures_stand_where_they_are_like_ours() -> None:
    """Beside BERT-large-cased only its own cards are shown, the collapsed one marked."""
    references = read_references(Path("bert-large"))
    assert all(entry.source and entry.value is not None for entry in references.entries)
    table = beside(references, matrix(seeds=1))
    assert [r.name for r in table.rows if r.source] == ["BERT-large-cased (model cards)"]
    assert cell(table, "BERT-large-cased (model cards)", "mrpc").symbols == "†"
    assert "(Devlin et al.), test: model bert-large, ours bert-large-cased; test set" in notes(
        table
    )
    everything = beside(references, matrix(seeds=1), unlike=True)
    assert cell(everything, "BERT-large (Devlin et al.), test", "mnli_mismatched").value == 85.9
    assert cell(everything, "BERT-large (XLNet README)", "stsb_pearson").value == 90.0


def test_collapsed_card_is_the_majority_class() -> None:
    """The figures marked as collapsed are those of predicting one class on MRPC's dev set."""
    entries = read_references(Path("bert-large")).entries
    found = {entry.metric: entry.value for entry in entries if entry.collapsed}
    positive, rows = 279, 408
    assert found == {
        "accuracy": round(100 * positive / rows, 2),
        "f1": pytest.approx(100 * 2 * positive / (rows + positive), abs=0.01),
    }


def test_template_has_no_numbers_and_shows_dashes() -> None:
    """SPAFIT's own scores are empty until a reader fills them in."""
    references = read_references(Path("spafit-template"))
    assert {entry.value for entry in references.entries} == {None}
    assert {entry.task for entry in references.entries} == {r.task for r in matrix(seeds=1)}
    table = beside(references, matrix(seeds=1))
    for theirs in [r for r in table.rows if r.source]:
        assert {found.text for found in theirs.cells} == {"—"}
    assert "—, published: not known here; fill it in" in notes(table)
    assert not [m for m in table.measurements if m.source]


def test_every_form_sets_published_rows_apart(tmp_path: Path) -> None:
    """Terminal, Markdown, LaTeX and HTML have a heading, CSV and JSON the source."""
    references = read_references(write(tmp_path, {}))
    tables = build_tables([make_record("rte")], references)[:1]
    for format_ in ("terminal", "md", "latex", "html"):
        text = render(tables, format_, 100)
        assert text.index("majority class") < text.index("Published") < text.index("70.4")
    (line,) = [r for r in csv.DictReader(io.StringIO(render(tables, "csv"))) if r["source"]]
    assert (line["method"], line["setting"], line["mean"]) == ("Theirs", "published", "70.4")
    wide = list(csv.DictReader(io.StringIO(write_tables(tables)["scores.csv"])))
    assert [(r["method"], r["source"]) for r in wide][-1] == ("Theirs", "a paper")
    body = json.loads(render(tables, "json"))["tables"][0]["rows"]
    assert [r["source"] for r in body] == [None, None, "a paper"]


def test_command_writes_published_rows_into_the_tables(tmp_path: Path) -> None:
    """`table --reference` prints them and keeps them in DIR/tables; without it they go again."""
    store = Store(tmp_path / "results")
    store.save(make_record("rte"), {})
    file = write(tmp_path, {})
    show = ("table", "--results", store.root, "--format", "md")
    assert "Theirs" in call_main(*show, "--reference", file).out
    scores_file = store.root / "tables" / "scores.md"
    assert "Theirs" in scores_file.read_text()
    call_main(*show)
    assert "Theirs" not in scores_file.read_text()
    other = write(tmp_path, {"split": "test"})
    answer = call_main(*show, "--reference", other)
    assert answer.code == 2
    assert "nothing in it is like the runs here" in answer.err
    assert "Theirs, test" in call_main(*show, "--reference", file, "--unlike").out

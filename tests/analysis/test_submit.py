"""The GLUE server's zip: what is in it, from which runs, and when there is none."""

import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spafit_bench.analysis.submit import (
    FILES,
    SubmitRequest,
    build_submission,
    check_zip,
    write_zip,
)
from spafit_bench.base.errors import UserError
from spafit_bench.data.tasks import TASKS, get_task
from spafit_bench.results.record import DataProvenance, RunRecord
from spafit_bench.results.run_folder import prediction_rows
from spafit_bench.results.store import Store
from tests.conftest import Answer, call_main
from tests.support.records import make_record, seal

REAL = Path(__file__).resolve().parents[3] / "shared" / "glue"
# As the server's FAQ has them, written out by hand.
NAMES = {
    "MNLI-m": ("entailment", "neutral", "contradiction"),
    "MNLI-mm": ("entailment", "neutral", "contradiction"),
    "AX": ("entailment", "neutral", "contradiction"),
    "QNLI": ("entailment", "not_entailment"),
    "RTE": ("entailment", "not_entailment"),
}
ROWS = {
    **{"CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "QQP": 390965, "MNLI-m": 9796},
    **{"MNLI-mm": 9847, "QNLI": 5463, "RTE": 3000, "WNLI": 146, "AX": 1104},
}
SMALL = 7


def save_run(
    store: Store,
    task: str,
    *,
    seed: int = 0,
    rows: int | None = SMALL,
    splits: Sequence[str] | None = None,
    values: np.ndarray | None = None,
    method: str = "spafit",
    metrics: float = 0.8,
    **fields: Any,
) -> dict[str, np.ndarray]:
    """Save a run with random test predictions; `rows=None` is the official data."""
    facts = get_task(task)
    official = rows is None
    kept = splits if splits is not None else [test.key for test in facts.test_sets]
    counts = {test.key: rows or facts.rows[test.key] for test in facts.test_sets}
    rng = np.random.default_rng(seed)
    predictions = {
        split: rng.uniform(-1, 6, counts[split])
        if facts.is_regression
        else rng.integers(0, facts.num_labels, counts[split])
        for split in kept
    }
    if values is not None:
        predictions = dict.fromkeys(kept, values)
    record = make_record(
        task,
        method,
        seed,
        metrics,
        data=DataProvenance(
            source="hub" if official else "mini",
            fingerprint=f"{task}-{rows}",
            official_basis="",
            rows=counts,
        ),
        official_split=official,
        **fields,
    )
    logits = {
        split: np.zeros((len(found), facts.num_labels)) for split, found in predictions.items()
    }
    files = {"predictions.parquet": prediction_rows(logits, predictions, {})} if kept else {}
    store.save(record, files)
    return predictions


def save_all(store: Store, **options: Any) -> dict[str, dict[str, np.ndarray]]:
    """Save a run of every task: task -> test split -> predictions."""
    return {task: save_run(store, task, **options) for task in TASKS}


def read_zip(path: Path) -> dict[str, pd.DataFrame]:
    """Read a zip back without the package."""
    with zipfile.ZipFile(path) as archive:
        return {
            name: pd.read_csv(archive.open(name), sep="\t", dtype=str)
            for name in archive.namelist()
        }


def run_submit(store: Store, out: Path, method: str = "spafit", **options: Any) -> Answer:
    """Call the command; options are flags, True for those without a value."""
    flags: list[object] = []
    for key, value in options.items():
        flags += [f"--{key.replace('_', '-')}", *([] if value is True else [value])]
    return call_main("submit", "--results", store.root, "--method", method, "--out", out, *flags)


def submit(store: Store, out: Path, method: str = "spafit", **options: Any) -> str:
    """Call the command and return its text; a user's mistake is raised."""
    answer = run_submit(store, out, method, **options)
    if answer.code == 2:
        raise UserError(answer.err.removeprefix("error: ").strip())
    assert answer.code == 0, answer.err
    return answer.out


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Write a zip of runs on all official data, and its predictions."""
    folder = tmp_path_factory.mktemp("official")
    predictions = save_all(Store(folder / "results"), rows=None)
    submit(Store(folder / "results"), folder / "glue.zip")
    return folder / "glue.zip", predictions


def test_official_zip_is_what_the_server_asks_for(official: tuple[Path, dict[str, Any]]) -> None:
    """Eleven files, official row counts, indices in order, labels in the server's words."""
    path, predictions = official
    files = read_zip(path)
    assert set(files) == {f"{name}.tsv" for name in ROWS}
    assert len(files) == 11
    for task, splits in predictions.items():
        for test in TASKS[task].test_sets:
            frame = files[f"{test.submission}.tsv"]
            assert list(frame.columns) == ["index", "prediction"]
            assert frame["index"].tolist() == [str(i) for i in range(ROWS[test.submission])]
            if task != "stsb":
                names = NAMES.get(test.submission, ("0", "1"))
                expected = [names[label] for label in splits[test.key]]
                assert frame["prediction"].tolist() == expected


def test_scores_are_clipped_with_three_decimals(official: tuple[Path, dict[str, Any]]) -> None:
    """STS-B stays within 0 and 5, and is otherwise the model's score to three decimals."""
    path, predictions = official
    found = read_zip(path)["STS-B.tsv"]["prediction"]
    assert found.str.fullmatch(r"[0-5]\.\d{3}").all()
    expected = np.clip(predictions["stsb"]["test"], 0, 5)
    np.testing.assert_allclose(found.astype(float), expected, atol=0.0005001)
    assert {"0.000", "5.000"} <= set(found)


def test_diagnostic_set_is_predicted_by_the_mnli_run(official: tuple[Path, dict[str, Any]]) -> None:
    """AX holds the predictions that the MNLI run made of it."""
    path, predictions = official
    names = ("entailment", "neutral", "contradiction")
    expected = [names[label] for label in predictions["mnli"]["ax"]]
    assert read_zip(path)["AX.tsv"]["prediction"].tolist() == expected


def test_same_predictions_give_the_same_bytes(tmp_path: Path) -> None:
    """A zip has no date in it."""
    store = Store(tmp_path / "results")
    save_all(store)
    submit(store, tmp_path / "a.zip")
    submit(store, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_test_labels_are_never_read(tmp_path: Path) -> None:
    """Real labels of a test set, as MRPC has them on the hub, change nothing."""
    store = Store(tmp_path / "results")
    save_all(store)
    submit(store, tmp_path / "before.zip")
    (path,) = store.runs.glob("mrpc-*/predictions.parquet")
    frame = pd.read_parquet(path)
    frame["label"] = 1.0 - frame["prediction"]
    frame.to_parquet(path)
    seal(path.parent)
    submit(store, tmp_path / "after.zip")
    assert (tmp_path / "before.zip").read_bytes() == (tmp_path / "after.zip").read_bytes()


def test_other_data_is_written_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mini, limited and collapsed runs are submitted, and said to be so on stderr."""
    store = Store(tmp_path / "results")
    for task in TASKS:
        save_run(store, task, rows=SMALL if task != "rte" else None)
    save_run(store, "rte", rows=None, seed=1, metrics=0.9, collapsed=True, train_limit=10)
    flags = {"setting": "limit 10", "fill_majority": True, "json": True}
    answer = run_submit(store, tmp_path / "limited.zip", **flags)
    warnings = json.loads(answer.out)["warnings"]
    assert warnings == [
        "filled with the majority class, no model's prediction: CoLA, SST-2, MRPC, STS-B, MNLI-m, "
        "MNLI-mm, QNLI, QQP, WNLI, AX",
        "trained on only part of the training set: RTE",
        "collapsed: one prediction for every dev example: RTE",
    ]
    assert answer.err.splitlines() == [f"warning: {text}" for text in warnings]
    (warning,) = run_submit(store, tmp_path / "mini.zip", setting="limit none").err.splitlines()
    assert warning.startswith("warning: not the official GLUE data")
    assert "CoLA" in warning
    assert "RTE" not in warning
    assert len(read_zip(tmp_path / "mini.zip")["CoLA.tsv"]) == SMALL


def test_missing_tasks_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    """Without some files there is no zip, and an earlier one stays as it was."""
    store = Store(tmp_path / "results")
    out = tmp_path / "glue.zip"
    out.write_text("earlier")
    for task in ("cola", "mrpc"):
        save_run(store, task)
    save_run(store, "mnli", splits=["test_matched", "test_mismatched"])
    save_run(store, "rte", splits=[], config={"predict_test": False})
    with pytest.raises(UserError) as caught:
        submit(store, out)
    message = str(caught.value)
    assert "missing 7 of the 11 files" in message
    assert "WNLI: no finished run on wnli" in message
    assert "has no predictions of ax" in message
    assert "--predict-test --force" in message
    assert "CoLA" not in message
    assert out.read_text() == "earlier"
    assert set(tmp_path.iterdir()) == {store.root, out}


def test_filled_files_are_constant_and_said_to_be(tmp_path: Path) -> None:
    """On request missing files have the majority class at official length; the output says so."""
    store = Store(tmp_path / "results")
    save_run(store, "cola")
    text = submit(store, tmp_path / "glue.zip", fill_majority=True)
    files = read_zip(tmp_path / "glue.zip")
    expected = {
        **{
            "SST-2": "1",
            "MRPC": "1",
            "STS-B": "2.364",
            "QQP": "0",
            "WNLI": "0",
            "AX": "entailment",
        },
        **{"MNLI-m": "entailment", "MNLI-mm": "entailment"},
        **{"QNLI": "not_entailment", "RTE": "entailment"},
    }
    for name, constant in expected.items():
        found = files[f"{name}.tsv"]["prediction"]
        assert (set(found), len(found)) == ({constant}, ROWS[name])
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name}.tsv ")]
        assert f"{constant} everywhere: no finished run" in line
    assert len(files["CoLA.tsv"]) == SMALL


def test_majority_classes_are_those_of_official_dev_sets() -> None:
    """The constants agree with the data."""
    if not REAL.is_dir():
        pytest.skip(f"no GLUE data at {REAL}")
    for task in TASKS.values():
        for split in task.dev_splits:
            path = REAL / task.name / f"{split}-00000-of-00001.parquet"
            labels = pd.read_parquet(path, columns=["label"])["label"]
            if task.is_regression:
                assert task.dev_majority == pytest.approx(labels.mean(), abs=5e-4)
            else:
                assert task.dev_majority == Counter(labels).most_common(1)[0][0]


def test_seed_of_best_dev_score_is_chosen_per_task(tmp_path: Path) -> None:
    """Without --seed each task takes its best, of equals the lowest; with it, that one."""
    store = Store(tmp_path / "results")
    for task in TASKS:
        for seed in (0, 1, 2):
            best = {"cola": 2, "rte": 1}.get(task)
            save_run(store, task, seed=seed, metrics=0.9 if seed == best else 0.8)
    files = build_submission(store, SubmitRequest(method="spafit")).files
    seeds = {file.task.name: file.run.seed for file in files if file.run}
    assert seeds == dict.fromkeys(TASKS, 0) | {"cola": 2, "rte": 1}
    files = build_submission(store, SubmitRequest(method="spafit", seed=1)).files
    assert {file.run.seed for file in files if file.run} == {1}
    with pytest.raises(UserError, match=r"CoLA: no finished run on cola of this seed, .* 0, 1, 2"):
        submit(store, tmp_path / "glue.zip", seed=7)


def test_rows_of_one_method_are_listed_and_chosen(tmp_path: Path) -> None:
    """Two learning rates, models or data sets are never mixed."""
    store = Store(tmp_path / "results")
    out = tmp_path / "glue.zip"
    save_all(store)
    save_all(store, seed=1, config={"train.learning_rate": 1e-4})
    save_all(store, seed=2, model="other/tiny-bert", weights="beef" * 16)
    save_all(store, seed=3, rows=5)
    with pytest.raises(UserError, match="several rows") as caught:
        submit(store, out)
    assert "bert-large-cased, mini, lr 1e-4 (9 tasks)" in str(caught.value)
    assert "tiny-bert, mini (9 tasks)" in str(caught.value)

    def seeds(**options: Any) -> set[int]:
        files = build_submission(store, SubmitRequest(method="spafit", **options)).files
        return {file.run.seed for file in files if file.run}

    assert seeds(model="tiny-bert") == seeds(model="other/tiny-bert") == {2}
    assert seeds(setting="lr 1e-4") == {1}
    assert seeds(setting="edition 2") in ({0}, {3})
    for options in ({"model": "bert-base"}, {"setting": "lr 7"}):
        with pytest.raises(UserError, match="bert-large-cased"):
            submit(store, out, **options)


def test_unknown_method_names_the_nearest(tmp_path: Path) -> None:
    """A mistyped method is answered with the one that was meant."""
    store = Store(tmp_path / "results")
    save_run(store, "cola")
    with pytest.raises(UserError, match="did you mean 'spafit'"):
        submit(store, tmp_path / "glue.zip", method="spaft")


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        ("cola", np.array([0.0, 1.0, 2.0]), "2 is no class of cola"),
        ("cola", np.array([0.0, 0.5, 1.0]), "0.5 is no class of cola"),
        ("stsb", np.array([0.0, np.nan, 1.0]), "nan is no prediction"),
        ("rte", np.array([0.0, 1.0]), "2 predictions of test, but the data test has 3 rows"),
    ],
)
def test_damaged_predictions_are_not_submitted(
    tmp_path: Path, task: str, values: np.ndarray, message: str
) -> None:
    """What is no prediction of the task stops the submission, and the file is named."""
    store = Store(tmp_path / "results")
    save_run(store, task, rows=3, values=values)
    with pytest.raises(UserError, match=r"predictions\.parquet: .*" + message):
        submit(store, tmp_path / "glue.zip", fill_majority=True)
    assert not (tmp_path / "glue.zip").exists()


def test_official_run_on_a_short_test_set_is_refused(tmp_path: Path) -> None:
    """Official train and dev do not make a cut test set official."""
    store = Store(tmp_path / "results")
    save_run(store, "rte", rows=None, values=np.zeros(10))
    with pytest.raises(UserError, match="10 predictions of test, but GLUE's test has 3000"):
        submit(store, tmp_path / "glue.zip", fill_majority=True)


def good_zip(path: Path, **changes: Sequence[str]) -> Path:
    """Write a small valid zip, with some files' values changed."""
    values = {name: ["2.500" if name == "STS-B" else NAMES.get(name, "0")[0]] * 3 for name in FILES}
    write_zip(path, values | changes)
    return path


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("CoLA", ["0", "1", "acceptable"], r"CoLA\.tsv, line 4: 'acceptable' is no label of CoLA"),
        ("RTE", ["0", "1", "0"], r"RTE\.tsv, line 2: '0'"),
        ("STS-B", ["2.500", "5.001", "0.000"], r"STS-B\.tsv, line 3: '5.001'"),
        ("STS-B", ["2.5", "1.000", "0.000"], r"STS-B\.tsv, line 2: '2.5'"),
        ("WNLI", ["0", "1\n2\t1", "0"], r"WNLI\.tsv: 4 rows, not 3"),
        ("QQP", ["0", "1\n3\t1"], r"QQP\.tsv: 3 rows, not 2"),
    ],
)
def test_what_the_server_would_refuse_is_never_written(
    tmp_path: Path, name: str, values: list[str], message: str
) -> None:
    """The written file is read back row by row before it gets its name."""
    with pytest.raises(UserError, match=message):
        good_zip(tmp_path / "glue.zip", **{name: values})
    assert list(tmp_path.iterdir()) == []


def test_checking_a_zip_from_elsewhere(tmp_path: Path) -> None:
    """A zip is checked against the official test sets, whoever made it."""
    path = good_zip(tmp_path / "glue.zip")
    check_zip(path, dict.fromkeys(FILES, 3))
    with pytest.raises(UserError, match=r"CoLA\.tsv: 3 rows, not 1063"):
        check_zip(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "")
    with pytest.raises(UserError, match=r"notes\.txt"):
        check_zip(path)
    path.write_bytes(b"PK no")
    with pytest.raises(UserError, match="damaged"):
        check_zip(path)


def test_unwritable_place_is_one_message(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    with pytest.raises(UserError, match=r"--out .*nowhere.*cannot be written"):
        good_zip(tmp_path / "nowhere" / "glue.zip")


def test_json_says_what_was_chosen(tmp_path: Path) -> None:
    """One object: out, method, the rule for seeds, and each file's run."""
    store = Store(tmp_path / "results")
    save_all(store, seed=4)
    body = json.loads(submit(store, tmp_path / "g.zip", json=True))
    assert [file["file"] for file in body["files"]] == [f"{name}.tsv" for name in FILES]
    assert body["seed_rule"] == "best dev score of each task, of equals the lowest"
    runs: dict[str, RunRecord] = {record.task: record for record in store.records()}
    for file in body["files"]:
        assert (file["run_id"], file["seed"]) == (runs[file["task"]].run_id, 4)
        assert file["official_split"] is False

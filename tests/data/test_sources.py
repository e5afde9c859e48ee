"""Finding and reading a task's files, in every layout."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spafit_bench.base.errors import UserError
from spafit_bench.data.layouts import MINI_GLUE
from spafit_bench.data.load import TaskData, load_task_data
from spafit_bench.data.tasks import TASKS, Task
from tests.support.glue_files import Rows, rows_of, write_hub, write_plain, write_tsv

WRITERS: dict[str, Callable[[Path, Task, Rows], None]] = {
    "hub": write_hub,
    "tsv": write_tsv,
    "csv": lambda root, task, rows: write_plain(root, task, rows, "csv"),
    "jsonl": lambda root, task, rows: write_plain(root, task, rows, "jsonl"),
}
ALL_TASKS = pytest.mark.parametrize("name", TASKS)
ALL_LAYOUTS = pytest.mark.parametrize("layout", WRITERS)
SEVERAL_IN_ONE_FOLDER = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_same_rows(data: TaskData, rows: Rows) -> None:
    """Check texts, labels and that test sets have no labels."""
    assert set(data.splits) == set(rows)
    for key, split in data.splits.items():
        for name, column in zip(data.task.text_columns, split.texts, strict=True):
            assert column == tuple(row[name] for row in rows[key])
        if key == "train" or key in data.task.dev_splits:
            assert split.labels is not None
            np.testing.assert_array_equal(split.labels, [row["label"] for row in rows[key]])
            assert split.labels.dtype == (np.float32 if data.task.is_regression else np.int64)
        else:
            assert split.labels is None


@ALL_TASKS
@ALL_LAYOUTS
def test_every_layout_gives_the_rows_written(name: str, layout: str, tmp_path: Path) -> None:
    """Each layout gives back the same rows of every split."""
    task, rows = TASKS[name], rows_of(TASKS[name])
    WRITERS[layout](tmp_path, task, rows)
    assert_same_rows(load_task_data(task, str(tmp_path)), rows)


@ALL_TASKS
def test_layouts_share_one_fingerprint(name: str, tmp_path: Path) -> None:
    """The rows decide the fingerprint, not the file format."""
    task, rows = TASKS[name], rows_of(TASKS[name])
    for layout, write in WRITERS.items():
        write(tmp_path / layout, task, rows)
    loaded = [load_task_data(task, str(tmp_path / layout)) for layout in WRITERS]
    assert len({data.fingerprint for data in loaded}) == 1


@ALL_LAYOUTS
def test_a_task_folder_itself_is_recognised(layout: str, tmp_path: Path) -> None:
    """`--data` may name the folder that has the files, not only its parent."""
    task, rows = TASKS["rte"], rows_of(TASKS["rte"])
    WRITERS[layout](tmp_path, task, rows)
    (folder,) = tmp_path.iterdir()
    assert_same_rows(load_task_data(task, str(folder)), rows)


@ALL_LAYOUTS
def test_test_sets_are_optional_and_their_labels_unread(layout: str, tmp_path: Path) -> None:
    """A missing test set and wrong test labels do no harm."""
    task, rows = TASKS["mrpc"], rows_of(TASKS["mrpc"])
    WRITERS[layout](tmp_path / "a", task, {k: v for k, v in rows.items() if k != "test"})
    assert set(load_task_data(task, str(tmp_path / "a")).splits) == {"train", "validation"}
    for row in rows["test"]:
        row["label"] = "equivalent, says a copy that leaks"
    WRITERS[layout](tmp_path / "b", task, rows)
    leaky = load_task_data(task, str(tmp_path / "b"))
    assert_same_rows(leaky, rows)


TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), min_size=1
).filter(lambda text: text.strip())
HARD_TEXTS = ['"a', 'a "b" c', '"', "a,b", "\x85", "\u2028x", "x\x0c\x1cy", "\ufeffx", "\x00", "'"]


@pytest.mark.parametrize("layout", WRITERS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6))
@example(texts=[f"{text}{text}." for text in HARD_TEXTS])
@example(texts=[f"{text}." for text in HARD_TEXTS])
@SEVERAL_IN_ONE_FOLDER
def test_any_text_survives_the_round_trip(layout: str, tmp_path: Path, texts: list[str]) -> None:
    """Quotes and Unicode line separators neither split nor change a text."""
    task = TASKS["rte"]
    rows = [
        {"sentence1": t, "sentence2": t[::-1] + "!", "label": i % 2} for i, t in enumerate(texts)
    ]
    split = {"train": rows, "validation": rows, "test": rows}
    WRITERS[layout](tmp_path, task, split)
    assert_same_rows(load_task_data(task, str(tmp_path)), split)


@pytest.mark.parametrize("layout", ["hub", "csv", "jsonl"])
def test_quoted_formats_keep_tabs_and_line_breaks(layout: str, tmp_path: Path) -> None:
    """CSV, JSON lines and parquet can hold them; TSV cannot."""
    task, rows = TASKS["cola"], rows_of(TASKS["cola"])
    rows["train"][1]["sentence"] = 'a\tb\nc\r\nd\re "f"'
    WRITERS[layout](tmp_path, task, rows)
    assert_same_rows(load_task_data(task, str(tmp_path)), rows)


@ALL_TASKS
def test_crlf_is_tolerated_in_tsv(name: str, tmp_path: Path) -> None:
    """Windows line endings do not change the rows."""
    task, rows = TASKS[name], rows_of(TASKS[name])
    write_tsv(tmp_path, task, rows, newline="\r\n")
    assert_same_rows(load_task_data(task, str(tmp_path)), rows)


def test_shards_are_joined_in_order(tmp_path: Path) -> None:
    """Several parquet files make one split; a missing one is named."""
    task, rows = TASKS["sst2"], rows_of(TASKS["sst2"], 9)
    write_hub(tmp_path, task, rows)
    (tmp_path / "sst2/train-00000-of-00001.parquet").unlink()
    for shard in range(3):
        part = pa.Table.from_pylist(rows["train"][3 * shard : 3 * shard + 3])
        pq.write_table(part, tmp_path / f"sst2/train-0000{shard}-of-00003.parquet")
    assert_same_rows(load_task_data(task, str(tmp_path)), rows)
    (tmp_path / "sst2/train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00001-of-00003\.parquet is missing"):
        load_task_data(task, str(tmp_path))


def test_two_shardings_of_one_split_are_refused(tmp_path: Path) -> None:
    """Which of the two is meant cannot be known."""
    task = TASKS["sst2"]
    write_hub(tmp_path, task, rows_of(task))
    whole = tmp_path / "sst2/train-00000-of-00001.parquet"
    shutil.copy(whole, tmp_path / "sst2/train-00000-of-00002.parquet")
    with pytest.raises(UserError, match="in 1 and in 2 shards"):
        load_task_data(task, str(tmp_path))


def test_csv_and_jsonl_of_one_split_are_refused(tmp_path: Path) -> None:
    """Which of the two is meant cannot be known."""
    task = TASKS["sst2"]
    for kind in ("csv", "jsonl"):
        write_plain(tmp_path, task, rows_of(task), kind)
    with pytest.raises(UserError, match=r"train\.csv and train\.jsonl are both there"):
        load_task_data(task, str(tmp_path))


@pytest.mark.parametrize(
    ("layout", "lost", "named"),
    [
        ("hub", "mnli/train-00000-of-00001.parquet", "mnli/train-00000-of-00001.parquet"),
        ("tsv", "MNLI/dev_mismatched.tsv", "MNLI/dev_mismatched.tsv"),
        ("csv", "mnli/train.csv", "mnli/train.csv"),
        ("jsonl", "mnli/validation_matched.jsonl", "validation_matched.jsonl"),
    ],
)
def test_a_missing_train_or_dev_file_is_named(
    layout: str, lost: str, named: str, tmp_path: Path
) -> None:
    """One message says which file was expected."""
    task = TASKS["mnli"]
    WRITERS[layout](tmp_path, task, rows_of(task))
    (tmp_path / lost).unlink()
    with pytest.raises(UserError, match="is missing: mnli needs it for") as caught:
        load_task_data(task, str(tmp_path))
    assert named in str(caught.value)


def test_a_folder_without_the_task_says_what_was_looked_for(tmp_path: Path) -> None:
    """The message names all three layouts and the content of the folder."""
    write_hub(tmp_path, TASKS["rte"], rows_of(TASKS["rte"]))
    with pytest.raises(UserError) as caught:
        load_task_data(TASKS["mrpc"], str(tmp_path))
    for hint in ("mrpc/train-00000-of-00001.parquet", "MRPC/train.tsv", "train.csv", "has: rte"):
        assert hint in str(caught.value)


def test_an_unknown_folder_gets_the_nearest_name(tmp_path: Path) -> None:
    """A typing error in --data gives one message that suggests the right name."""
    (tmp_path / "glue-data").mkdir()
    with pytest.raises(UserError, match=r"no such data folder.*did you mean '.*glue-data'"):
        load_task_data(TASKS["rte"], str(tmp_path / "gleu-data"))
    with pytest.raises(UserError, match="did you mean 'mini'"):
        load_task_data(TASKS["rte"], "mnii")


def test_a_file_is_no_data_folder(tmp_path: Path) -> None:
    """`--data` takes a folder, so a file is refused."""
    (tmp_path / "train.csv").write_text("sentence,label\n")
    with pytest.raises(UserError, match="is a file"):
        load_task_data(TASKS["cola"], str(tmp_path / "train.csv"))


def test_torn_rows_of_qqp_are_left_out_if_few(tmp_path: Path) -> None:
    """GLUE's own QQP has a few rows torn by a line break, which the hub's copy lacks."""
    task, rows = TASKS["qqp"], rows_of(TASKS["qqp"], 3000)
    write_tsv(tmp_path, task, rows)
    path = tmp_path / "QQP/train.tsv"
    lines = path.read_bytes().split(b"\n")
    torn = [b"7\t1\t2\thow to", b"cook?\twhy\t1", b"8\t1\t2\tor\rso\tso\t0"]
    path.write_bytes(b"\n".join(lines[:10] + torn + lines[10:]))
    assert_same_rows(load_task_data(task, str(tmp_path)), rows)
    path.write_bytes(b"\n".join(lines[:100] + torn + lines[100:200]))
    with pytest.raises(UserError, match=r"QQP/train\.tsv, line 101: 4 fields, but 6 are needed"):
        load_task_data(task, str(tmp_path))


@ALL_TASKS
def test_mini_is_a_folder_in_the_hubs_layout(name: str) -> None:
    """`--data mini` reads the shipped rows of every task, AX under its own name."""
    data = load_task_data(TASKS[name], "mini")
    assert {test.key for test in data.task.test_sets} < set(data.splits)
    assert (data.source, data.official_split) == ("mini", False)
    copy = load_task_data(TASKS[name], str(MINI_GLUE))
    assert copy.fingerprint == data.fingerprint


FUZZED = [
    ("rte/train-00000-of-00001.parquet", "hub"),
    ("RTE/train.tsv", "tsv"),
    ("rte/train.csv", "csv"),
    ("rte/train.jsonl", "jsonl"),
]


@pytest.mark.parametrize(("file", "layout"), FUZZED)
@given(
    junk=st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))
)
@example(junk=b"")
@example(junk=b"\n\n")
@example(junk=b"[" * 100_000)
@example(junk=b'{"sentence1": "a", "sentence2": "b", "label": ' + b"9" * 5000 + b"}")
@example(junk=b'{"sentence1": "\\ud800", "sentence2": "b", "label": 1}')
@example(junk=b'sentence1,sentence2,label\n"a,b,1\n')
@SEVERAL_IN_ONE_FOLDER
def test_random_bytes_are_a_user_error(file: str, layout: str, tmp_path: Path, junk: bytes) -> None:
    """Any wrong content gives one message that names the file."""
    task = TASKS["rte"]
    WRITERS[layout](tmp_path, task, rows_of(task))
    (tmp_path / file).write_bytes(junk)
    with pytest.raises(UserError) as caught:
        load_task_data(task, str(tmp_path))
    assert Path(file).name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("file", "layout"), FUZZED)
@given(
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=3),
)
@SEVERAL_IN_ONE_FOLDER
def test_damaged_files_never_crash(
    file: str, layout: str, tmp_path: Path, cut: float, flips: list[tuple[float, int]]
) -> None:
    """A cut or changed file is either read, or refused with a message."""
    task = TASKS["rte"]
    WRITERS[layout](tmp_path, task, rows_of(task))
    data = bytearray((tmp_path / file).read_bytes())
    for place, mask in flips:
        data[int(place * len(data))] ^= mask
    (tmp_path / file).write_bytes(data[: int(len(data) * max(cut, 0.3))])
    try:
        load_task_data(task, str(tmp_path))
    except UserError as error:
        assert str(error)  # noqa: PT017 - either outcome is right


def test_the_largest_tasks_load_in_seconds(tmp_path: Path) -> None:
    """30,000 pairs from parquet and TSV; MNLI has 13 times as many. The margin is wide."""
    task, rows = TASKS["qnli"], rows_of(TASKS["qnli"], 30_000)
    for layout in ("hub", "tsv"):
        WRITERS[layout](tmp_path / layout, task, rows)
        start = time.perf_counter()
        load_task_data(task, str(tmp_path / layout))
        assert time.perf_counter() - start < 5

"""Names from outside are data: none acts on a terminal, a page, a spreadsheet or the disk."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from spafit_bench.export.model_card import model_card
from tests.conftest import Cli
from tests.support.finished_runs import finished, save

ESCAPES = "a\x1b[31mred\x1b]0;title\x07\rb\u202e"
FORMULA = '=HYPERLINK("x")'
HTML = "<img src=x onerror=alert(1)>`|"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A results folder of somebody else, with names made to do harm."""
    runs = [
        finished(task, name, seed, warnings=(ESCAPES,), model=f"m{ESCAPES}")
        for name in ("full", "lora-x", FORMULA)
        for task in ("mrpc", "rte")
        for seed in (0, 1, 2)
    ]
    named = [
        run.model_copy(update={"method": ESCAPES}) if run.method == "lora-x" else run
        for run in runs
    ]
    failed = finished("mrpc", "bitfit", 7).model_copy(
        update={"status": "failed", "reason": ESCAPES, "environment": runs[0].environment}
    )
    return save(tmp_path / "r", *named, failed).root


@pytest.mark.parametrize(
    "command",
    [
        ("list", "runs"),
        ("show", "mrpc-lora-x"),
        ("show", "mrpc-bitfit"),
        ("show", "nothing\x1b[31m"),
        ("table",),
        *(("table", "--format", name) for name in ("md", "csv", "latex", "html", "json")),
        ("compare", "full", FORMULA),
        ("compare", "full", ESCAPES),
        ("compare", "full", "\x1b[31m"),
        ("plot",),
        ("report",),
        ("runs", "rm", "--status", "failed", "--yes"),
    ],
    ids=" ".join,
)
def test_no_escape_reaches_the_terminal(call: Cli, hostile: Path, command: tuple[str, ...]) -> None:
    """Control characters of a record are shown as escapes, on both streams."""
    answer = call(*command, "--results", hostile)
    text = answer.out + answer.err
    assert not set(text) & set("\x1b\x07\r\u202e")
    assert "Traceback" not in text


def test_files_hold_no_escape_and_no_formula(call: Cli, hostile: Path) -> None:
    """results.csv, tables, figures and the page are harmless where they are opened."""
    for command in ("table", "plot", "report"):
        assert call(command, "--results", hostile).code == 0
    for path in [p for p in hostile.rglob("*") if p.suffix in (".csv", ".md", ".svg", ".html")]:
        text = path.read_text(encoding="utf-8")
        assert not set(text) & set("\x1b\x07\u202e"), path
        if path.suffix == ".csv":
            cells = {cell for line in csv.reader(text.splitlines()) for cell in line}
            assert not [cell for cell in cells if cell.startswith(("=", "@"))], path
    assert f"'{FORMULA}" in {
        row["method"] for row in csv.DictReader((hostile / "results.csv").open())
    }


def test_model_card_has_no_html() -> None:
    """Every text of a record is text in the card."""
    record = finished("mrpc", HTML, 0, warnings=(HTML, ESCAPES), model=HTML)
    config = record.config | {"train": {"max_length": 128}, "method": {"spec": HTML}}
    record = record.model_copy(update={"config": config})
    body = model_card(record, "").partition("---\n\n")[2]
    outside_code = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", body)
    assert "<img" not in outside_code.replace("\\<img", "")
    assert not set(body) & set("\x1b\x07\r\u202e")


LONG = "n" * 300


@pytest.mark.parametrize(
    "command",
    [
        *(("plan", flag, LONG) for flag in ("--model", "--method", "--task")),
        ("data", "verify", "--data", LONG),
        ("data", "verify", "--task", f"{LONG}.yaml"),
        *((name, "--results", LONG) for name in ("table", "plot", "report", "doctor")),
        ("list", "runs", "--results", LONG),
        ("show", LONG),
        ("compare", LONG, LONG),
        ("runs", "rm", LONG),
        ("runs", "gc", "--results", LONG),
        ("sweep", f"{LONG}.yaml"),
        ("merge", LONG),
        ("predict", LONG, "--text", "a"),
        ("export", LONG, "--to", LONG),
        ("submit", "--method", LONG, "--out", LONG),
        ("table", "--reference", f"{LONG}.yaml"),
        *(
            ("run", "--preset", "smoke", "--task", "mrpc", "--method", "lora", flag, LONG)
            for flag in ("--task", "--method", "--model", "--data", "--config", "--results")
        ),
    ],
    ids=lambda words: " ".join(words).replace(LONG, "LONG"),
)
def test_long_names_are_refused(call: Cli, command: tuple[str, ...]) -> None:
    """A name that no file can have is one message and exit code 2."""
    answer = call(*command)
    assert answer.code == 2, answer.err
    assert "Traceback" not in answer.err
    assert "error: " in answer.err or command[0] == "doctor", answer.err


def test_list_of_runs_keeps_names_in_json(call: Cli, hostile: Path) -> None:
    """Programs get the names as they are, in JSON's own escapes."""
    answer = call("list", "runs", "--json", "--results", hostile)
    assert "\x1b" not in answer.out
    assert ESCAPES in {run["method"] for run in json.loads(answer.out)["runs"]}


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("--learning_rate", "--lr"),
        ("--num_train_epochs", "--epochs"),
        ("--per-device-train-batch-size", "--batch-size"),
        ("--model_name_or_path", "--model"),
        ("--output_dir", "--results"),
    ],
)
def test_flags_of_transformers_are_answered_with_ours(call: Cli, flag: str, ours: str) -> None:
    """Who types a flag of run_glue.py learns its name here."""
    answer = call("run", "--task", "mrpc", flag, "3")
    assert answer.code == 2
    assert f"Here it is {ours}" in " ".join(answer.err.split())


@pytest.mark.parametrize(
    "command", ["", "run", "sweep", "table", "predict", "merge", "runs rm", "data verify"]
)
def test_help_names_values_plainly(
    call: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """No type of the program's language stands in a help text, and no line is too long."""
    monkeypatch.setenv("COLUMNS", "80")
    text = call(*command.split(), "--help").out
    assert not re.search(r"<(bool|str|int|float|list|Path)|list\[|\(\)", text)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text, "a word is too long for its column"

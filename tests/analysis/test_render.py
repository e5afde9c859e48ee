"""The six forms of a result table."""

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spafit_bench.analysis.references import read_references
from spafit_bench.analysis.tables import build_tables
from spafit_bench.analysis.tables.render import FORMATS, render, write_tables
from spafit_bench.base.errors import UserError
from spafit_bench.data.custom_tasks import find_task
from tests.support.records import METHODS, make_record, matrix

TABLES = build_tables(matrix())
SCORES = TABLES[:1]


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
@pytest.mark.parametrize("color", [False, True])
def test_terminal_fits_and_loses_nothing(width: int, color: bool) -> None:
    """At any width every value of every table is there in full and no line is too long."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", render(TABLES, "terminal", width, color=color))
    assert max(map(len, text.splitlines())) <= width
    assert text.count("\N{HORIZONTAL ELLIPSIS}") == 0
    for table in TABLES:
        cells = [cell for row in table.rows for cell in row.cells]
        assert all(cell.text + cell.symbols in text for cell in cells)
        assert all(f"±{cell.spread}" in text for cell in cells if cell.spread)
        assert all(column.title in text for column in table.columns)


def test_terminal_is_the_same_without_colour() -> None:
    """Styles add nothing that is not also said in characters."""
    plain = render(TABLES, "terminal", 80)
    styled = render(TABLES, "terminal", 80, color=True)
    assert "\x1b[" not in plain
    assert "\x1b[1m" in styled
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", styled)
    assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()


def test_terminal_signs_best_and_second() -> None:
    """Without colour the best and second best are still to be seen, and explained."""
    text = render(SCORES, "terminal", 200)
    lora = next(line for line in text.splitlines() if line.startswith("lora"))
    assert "●83.29" in lora
    assert "○84.11" in lora
    assert "● best mean; ○ second best." in text
    alone = render(build_tables([make_record()])[:1], "terminal", 80)
    assert "●" not in alone


def test_one_block_where_it_fits() -> None:
    """A wide terminal gets one block, 120 columns two, each with the methods."""
    for width, blocks in ((220, 1), (120, 2)):
        lines = render(SCORES, "terminal", width).splitlines()
        assert sum(line.startswith("spafit ") for line in lines) == blocks


def markdown_rows(text: str) -> list[list[str]]:
    """Read the first Markdown table back."""
    rows = []
    for line in text.splitlines():
        if line.startswith("| "):
            rows.append([part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            break
    return rows


def test_markdown_structure() -> None:
    """Every line has as many cells as the heading, and the second is a rule."""
    head, rule, *body = markdown_rows(render(SCORES, "md"))
    assert head[0] == "Method"
    assert head[1:3] == ["Params (M) (2 labels)", "% (of base)"]
    assert head[5] == "MRPC (F1/Acc)"
    assert all(re.fullmatch(r"-{3,}|-{2,}:", part) for part in rule)
    assert [row[0] for row in body] == [*METHODS, "majority class"]
    assert {len(row) for row in body} == {len(head)} == {len(rule)}
    assert body[1][3].startswith("**83.29** ± ")
    assert body[1][4].startswith("<ins>84.11</ins> ± ")


def test_markdown_escapes_names_and_marks() -> None:
    """A name with a bar stays in its cell and a mark is not taken for emphasis."""
    records = [make_record("rte", method="a|b_c*d", official_split=False)]
    text = render(build_tables(records)[:1], "md")
    (_, _, row, _) = markdown_rows(text)
    assert row == [r"a\|b\_c\*d", "5.65", "1.69", r"80.00\*"]


def test_latex_structure() -> None:
    """Each table is a booktabs float with as many cells in a row as its tabular has columns."""
    text = render(TABLES, "latex")
    assert text.splitlines()[0].startswith("% Needs \\usepackage{booktabs}")
    floats = re.findall(r"\\begin\{table\*\}.*?\\end\{table\*\}", text, flags=re.S)
    assert len(floats) == len(TABLES)
    for table in floats:
        (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", table)
        body = table.split(r"\toprule")[1].split(r"\bottomrule")[0]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns)}
        assert table.count("{") - table.count(r"\{") == table.count("}") - table.count(r"\}")
        assert table.count("$") % 2 == table.count(r"\$") % 2
    value, spread = (
        [line for line in floats[0].splitlines() if line.startswith("lora ")],
        [line for line in floats[0].splitlines() if r"\scriptsize $\pm$ 0.69}" in line],
    )
    assert r"\textbf{83.29}" in value[0]
    assert floats[0].splitlines().index(spread[0]) == floats[0].splitlines().index(value[0]) + 1
    assert r"\underline{84.11}" in floats[0]
    assert r"$^{\dagger1/3}$" in floats[0]


def test_latex_is_ascii_and_escaped() -> None:
    """Names with special characters, and all our signs, are written as LaTeX."""
    records = [
        make_record(method=r"a_b&50%#{x}~^\$", seed=s, official_split=False, select="best")
        for s in range(2)
    ] + [make_record("rte", "full", train_limit=3, collapsed=True)]
    text = render(build_tables(records), "latex")
    assert text.isascii()
    escaped = r"a\_b\&50\%\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}\$ "
    assert escaped in text


def test_latex_of_few_columns_has_spreads_beside_values() -> None:
    """A narrow table keeps a value and its spread in one cell."""
    records = [make_record("rte", m, s, 0.7 + s / 10) for m in ("full", "lora") for s in (0, 1)]
    text = render(build_tables(records)[:1], "latex")
    assert r"75.00 {\scriptsize $\pm$ 7.07}" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
def test_latex_compiles(tmp_path: Path) -> None:
    """Every kind of table, with every mark and published rows, makes a page without an error."""
    references = read_references(Path("bert-large"))
    tables = build_tables(matrix(select="best"), references, unlike=True)
    packages = "\\usepackage{booktabs}\\usepackage{graphicx}"
    document = f"\\documentclass{{article}}{packages}\\begin{{document}}\n"
    source = document + render(tables, "latex") + "\\end{document}\n"
    (tmp_path / "tables.tex").write_text(source)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 1000


class Cells(HTMLParser):
    """Reads the rows of HTML tables, and the tags that were left open."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """Close a tag, which has to be the last one opened."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Add text to the cell."""
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_html_has_every_cell_and_closes_its_tags() -> None:
    """The fragment is well formed; its rows are those of the tables, its style is its own."""
    text = render(TABLES, "html")
    parser = Cells()
    parser.feed(text)
    assert parser.open == []
    (lora,) = [row for row in parser.rows if row[0] == "lora" and len(row) > 10]
    assert lora[1:4] == ["9.44", "2.83", "83.29 ± 0.69"]
    assert len(parser.rows) == sum(len(table.rows) + 1 for table in TABLES)
    assert "<b>83.29</b>" in text
    assert "<sup>†1/3</sup>" in text
    assert not re.search(r"<(script|link|img|html|body)|https?:", text)


def test_html_escapes_names() -> None:
    """A name is text, whatever is in it."""
    text = render(build_tables([make_record(method='<b>&"x')]), "html")
    assert "&lt;b&gt;&amp;&quot;x" in text
    assert '<b>&"x' not in text


def long_form(text: str) -> list[dict[str, str]]:
    """Read the CSV back."""
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_is_one_long_table() -> None:
    """All kinds share one heading; numbers are in full precision."""
    rows = long_form(render(TABLES, "csv"))
    assert {row["kind"] for row in rows} == {"scores", "parameters", "cost"}
    (f1,) = [
        row
        for row in rows
        if (row["method"], row["task"], row["metric"]) == ("spafit", "qqp", "f1")
    ]
    (line,) = [
        line
        for line in TABLES[0].measurements
        if (line.method, line.task, line.metric) == ("spafit", "qqp", "f1")
    ]
    assert float(f1["mean"]) == pytest.approx(line.mean, rel=1e-9)
    assert line.sd is not None
    assert float(f1["sd"]) == pytest.approx(line.sd, rel=1e-9)
    assert (f1["n"], f1["seeds"], f1["marks"]) == ("3", "0 1 2", "limited")


def test_json_has_cells_and_measurements() -> None:
    """JSON is one object with the tables' cells in raw units and the long form."""
    content = json.loads(render(TABLES, "json"))
    kinds = {table["kind"]: table for table in content["tables"]}
    spafit = next(row for row in kinds["scores"]["rows"] if row["method"] == "spafit")
    assert spafit["cells"]["qqp"]["n"] == 3
    assert spafit["cells"]["qqp"]["marks"] == ["limited"]
    full = next(row for row in kinds["scores"]["rows"] if row["method"] == "full")
    assert full["cells"]["cola"]["marks"] == ["collapsed 1/3"]
    cost = kinds["cost"]["rows"][0]
    assert (cost["task"], cost["cells"]["stored_bytes"]["value"]) == ("CoLA", 4 * METHODS["full"])
    assert {line["kind"] for line in content["measurements"]} == set(kinds)


def test_files_of_one_model() -> None:
    """One model gives plain names; wide CSV has one line per method in raw units."""
    files = write_tables(TABLES)
    assert set(files) == {
        *(f"{kind}.{end}" for kind in ("scores", "parameters", "cost") for end in ("csv", "md")),
        "metrics.csv",
    }
    rows = {row["method"]: row for row in long_form(files["scores.csv"])}
    assert list(rows) == [*METHODS, "majority class"]
    value = TABLES[0].rows[0].cells[2].value
    assert float(rows["full"]["cola"]) == pytest.approx(value, rel=1e-9)
    assert (rows["full"]["cola_n"], rows["full"]["cola_marks"]) == ("3", "collapsed 1/3")
    assert rows["majority class"]["cola_n"] == ""
    cost = long_form(files["cost.csv"])
    assert (cost[0]["task"], cost[0]["stored_bytes"]) == ("CoLA", str(4 * METHODS["full"]))
    assert long_form(files["parameters.csv"])[0]["trainable"] == "333581314"


def test_files_of_several_models_have_suffixes() -> None:
    """No file stands for two models."""
    records = [make_record(), make_record(weights="a" * 64, model="/home/me/Tiny BERT")]
    files = write_tables(build_tables(records))
    assert "scores-bert-large-cased-official-glue.md" in files
    assert "scores-tiny-bert-official-glue.md" in files
    assert len(files) == 2 * 3 * 2 + 1
    assert not any("/home" in name + content for name, content in files.items())


def test_missing_values_are_empty_for_programs() -> None:
    """A dash is for people: CSV cells are empty and JSON values null."""
    records = [make_record("mrpc", "full"), make_record("rte", "lora")]
    tables = build_tables(records)
    (full, lora, _) = long_form(write_tables(tables)["scores.csv"])
    assert (full["rte"], lora["mrpc"]) == ("", "")
    cells = json.loads(render(tables, "json"))["tables"][0]["rows"][0]["cells"]
    assert cells["rte"]["value"] is None


def test_unknown_format_names_the_nearest() -> None:
    """A mistyped format is answered with the one that was meant."""
    with pytest.raises(UserError, match="latex"):
        render(TABLES, "latx")
    assert set(FORMATS) == {"terminal", "md", "csv", "latex", "html", "json"}


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_is_cut_at_any_width(width: int) -> None:
    """Names of 300 characters wrap; every value of every table is there in full."""
    long = "n" * 297
    named = {"name": f"u{long}", "title": f"t{long}"}
    definition = find_task("boolq").definition.model_copy(update=named)
    records = [
        make_record(
            task,
            method,
            seed,
            0.5 + 0.1 * seed,
            model=f"hub/m{long}",
            holdout=holdout,
            config={"train.learning_rate": 1e-3, "head.note": f"c{seed}{long}"},
            environment={"device_name": f"d{long}"},
            train_time_s=123_456_789.0,
        ).model_copy(update={"method": f"{method}{long}"})
        for task in ("mrpc", "rte")
        for method in ("a", "b")
        for seed in (0, 1)
        for holdout in (None, 0.1)
    ]
    records += [
        run.model_copy(update={"task": f"u{long}", "task_definition": definition})
        for run in records[:2]
    ]
    tables = build_tables(records, baseline=None)
    text = render(tables, "terminal", width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    together = "".join(text.split())
    for table in tables:
        for line in table.rows:
            assert "".join(line.label.split()) in together
            assert all(found.text.replace(" ", "") in together for found in line.cells)
    for name in write_tables(tables):
        assert len(name.encode()) < 255

"""Results in the repository: sound records, derived files that follow from them, README's table."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from spafit_bench.analysis.selection import read_runs
from spafit_bench.analysis.tables import build_tables
from spafit_bench.analysis.tables.render import write_tables
from spafit_bench.base.checksums import SUMS
from spafit_bench.results.store import Store
from tests.conftest import REPOSITORY, Cli

EXPLAINED = [path.parent for path in sorted((REPOSITORY / "results").glob("*/README.md"))]
"""Published ones explain themselves; others, such as `make demo`'s, are their maker's own."""
FOLDERS = [runs.parent for folder in EXPLAINED for runs in sorted(folder.glob("**/runs"))]
pytestmark = pytest.mark.skipif(not FOLDERS, reason="this checkout has no results")


def name_of(folder: Path) -> str:
    """What a test of a folder is called."""
    return str(folder.relative_to(REPOSITORY / "results"))


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_records_are_sound_and_name_nobodys_folders(folder: Path) -> None:
    """Checksums hold, and model, data and command are named as anyone could."""
    records, damages = Store(folder).survey()
    assert not damages
    assert records
    for record in records:
        assert record.status == "done", record.run_id
        is_known = record.official_split or record.data.source == "glue-derived"  # marked: below
        assert record.holdout is not None or is_known, record.run_id
        named = (record.config["model"], record.config["data"], record.environment.command)
        assert not any("/tmp" in text or text.startswith("/") for text in named), named
        assert record.environment.command.startswith("spafit-bench "), record.run_id


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_tables_follow_from_the_records(folder: Path) -> None:
    """`tables/` holds what `table` would write, and nothing else."""
    written = write_tables(build_tables(read_runs(Store(folder))))
    assert {path.name for path in (folder / "tables").iterdir()} == set(written)
    for name, content in written.items():
        assert (folder / "tables" / name).read_text(encoding="utf-8") == content, name


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_results_csv_follows_from_the_records(folder: Path, tmp_path: Path) -> None:
    """`results.csv` is what this version of the tool makes of the records."""
    for run in (folder / "runs").iterdir():
        (copy := tmp_path / "runs" / run.name).mkdir(parents=True)
        for name in ("record.json", SUMS):
            if (run / name).exists():  # runs of older versions have no checksums
                shutil.copy(run / name, copy)
    rebuilt = Store(tmp_path).rebuild_csv()
    assert (folder / "results.csv").read_bytes() == rebuilt.read_bytes()


@pytest.mark.parametrize("folder", [f for f in FOLDERS if (f / "plots").is_dir()], ids=name_of)
def test_figures_follow_from_the_records(folder: Path, call: Cli, tmp_path: Path) -> None:
    """Every word and number of `plots/` is one that `plot` would write."""
    call("plot", "--results", folder, "--out", tmp_path, "--format", "svg")
    figures = sorted((folder / "plots").iterdir())
    assert figures
    for figure in figures:
        assert words(figure) == words(tmp_path / figure.name), figure.name


@pytest.mark.parametrize(
    "folder", [f for f in FOLDERS if (f / "report.html").exists()], ids=name_of
)
def test_the_report_follows_from_the_records(folder: Path, call: Cli, tmp_path: Path) -> None:
    """Every word and number of `report.html` is one that `report` would write."""
    call("report", "--results", folder, "--out", tmp_path / "report.html")
    assert words(folder / "report.html") == words(tmp_path / "report.html")


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_what_is_not_glues_own_data_is_marked(folder: Path) -> None:
    """In the table itself, not only in a text beside it."""
    records = [run for run in Store(folder).records() if run.holdout is None]
    unofficial = {run.task for run in records if not run.official_split}
    table = (folder / "tables" / "scores.md").read_text(encoding="utf-8")
    assert ("not the official GLUE data" in table) == bool(unofficial)


def test_the_readme_shows_cells_of_the_published_table() -> None:
    """README leaves columns out; each cell that it shows is the one that `table` prints."""
    [*_, full] = markdown_tables(REPOSITORY / "results" / "minilm-l6" / "tables" / "scores.md")
    tables = markdown_tables(REPOSITORY / "README.md")
    [shown] = [table for table in tables if "majority class" in table]
    assert len(shown) == len(full)
    for method, cells in shown.items():
        assert {name: full[method][name] for name in cells} == cells


def words(page: Path) -> list[str]:
    """Return the text between the tags of an SVG or HTML file, without its style sheets."""
    text = re.sub(r"(?s)<style.*?</style>|<metadata.*?</metadata>", "", page.read_text("utf-8"))
    found = [text.strip() for text in re.findall(r">([^<]+)<", text)]
    return [text for text in found if text]


def markdown_tables(page: Path) -> list[dict[str, dict[str, str]]]:
    """Return each table of a page: first cell of a row -> column -> cell."""
    found: list[dict[str, dict[str, str]]] = []
    columns: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = cells
            found.append({})
        elif not set(line) <= set("|-: "):
            found[-1][cells[0]] = dict(zip(columns, cells, strict=True))
    return found

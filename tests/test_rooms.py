"""The rooms of the package import each other only as `scripts/rooms.py` allows."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import REPOSITORY


def test_no_room_imports_backwards() -> None:
    """The script that draws the graph exits with 1 on an arrow that is not allowed."""
    script = REPOSITORY / "scripts" / "rooms.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reading_results_needs_no_deep_learning_library() -> None:
    """Tables are made on machines without torch."""
    code = (
        "import sys, spafit_bench.analysis.tables.render, spafit_bench.analysis.compare,"
        " spafit_bench.analysis.submit, spafit_bench.results.merge;"
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_picture_of_the_rooms_is_current() -> None:
    """ARCHITECTURE.md shows what the script draws."""
    script = [sys.executable, REPOSITORY / "scripts" / "rooms.py", "--mermaid"]
    drawn = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert f"```mermaid\n{drawn}```" in (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")

"""Draw the rooms of the package from its imports, and check who imports whom.

python scripts/rooms.py            # the graph as text; exit code 1 if an arrow is forbidden
python scripts/rooms.py --mermaid  # the same as a Mermaid diagram, for ARCHITECTURE.md
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "spafit_bench"
ALLOWED = {
    "base": "",
    "data": "base",
    "methods": "base",
    "config": "base data methods",
    "results": "base data",
    "models": "base data methods config",
    "training": "base data methods config results models",
    "running": "base data methods config results models training",
    "analysis": "base data methods config results",
    "export": "base data methods config results models training",
    "cli": "base data methods config results models training running analysis export",
}
"""Room -> the rooms that it may import, all of which stand above it: there is no cycle."""


def arrows() -> Counter[tuple[str, str]]:
    """Count the imports between rooms: (importing room, imported room) -> number of statements."""
    found: Counter[tuple[str, str]] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        if room.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spafit_bench."):
                target = str(node.module).split(".")[1]
                if target != room:
                    found[room, target] += 1
    return found


def forbidden(found: Counter[tuple[str, str]]) -> list[str]:
    """Describe every arrow that `ALLOWED` does not have, and every room that it does not know."""
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    problems = [f"{room}/ is not in the table of rooms" for room in sorted(rooms - set(ALLOWED))]
    return problems + [
        f"{room}/ must not import {target}/"
        for room, target in sorted(found)
        if target not in ALLOWED.get(room, "").split()
    ]


def direct(found: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """Drop arrows that a longer path already implies, so that a picture stays readable."""
    above = {room: {target for source, target in found if source == room} for room in ALLOWED}
    return [
        (room, target)
        for room, target in sorted(found)
        if not any(target in above[between] for between in above[room] - {target})
    ]


def main() -> int:
    """Print the graph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mermaid", action="store_true", help="print a Mermaid diagram")
    mermaid = parser.parse_args().mermaid
    found = arrows()
    lines = []
    if mermaid:
        lines = ["graph TD", *(f"    {a} --> {b}" for a, b in direct(found))]
    else:
        for room in ALLOWED:
            targets = [f"{t} ({n})" for (source, t), n in sorted(found.items()) if source == room]
            lines.append(f"{room:10} -> {', '.join(targets) or 'nothing of ours'}")
    sys.stdout.write("\n".join(lines) + "\n")
    problems = forbidden(found)
    sys.stderr.write("".join(f"error: {problem}\n" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

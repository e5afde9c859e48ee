"""The page of promises names tests that exist."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY


def test_every_promise_names_its_test() -> None:
    """Each row has one, and each that is named is there."""
    text = (REPOSITORY / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    promises = [row for row in rows if not row.startswith("| promise")]
    assert len(promises) > 25
    for row in promises:
        module = ""
        named = re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", row)
        assert any(file or name for file, name in named), row
        for file, name in named:
            module = file or module
            if not module:
                continue
            [path] = (REPOSITORY / "tests").rglob(module)
            source = path.read_text(encoding="utf-8")
            assert not name or f"\ndef {name}(" in source, (module, name)

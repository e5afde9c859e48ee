"""YAML files: what is refused, and where the message says it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from spafit_bench.base.errors import UserError
from spafit_bench.base.yaml_files import parse_yaml, read_mapping


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' stands twice"),
        ("grid:\n  rank: [1]\n  rank: [2]\n", "line 3: the key 'rank' stands twice"),
        ("a: [1, 2", "not valid YAML"),
        ("[" * 100_000, "nested too deeply"),
        ("a: &a [*a]\n", "not valid YAML|more than 100000 values"),
        ("- 1\n- 2\n", "the top level must be a mapping"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """One message that begins with the file's name."""
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_mapping(path)
    assert str(caught.value).startswith(str(path))


def test_merge_keys_are_no_repetition() -> None:
    """YAML's `<<` may override what it merges."""
    body = parse_yaml("base: &b {x: 1}\nown:\n  <<: *b\n  x: 2\n", "here")
    assert body["own"] == {"x": 2}


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    """So that a file with comments alone sets nothing."""
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    assert read_mapping(tmp_path / "empty.yaml") == {}

"""YAML files, and the folder of those that come with the package."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from spafit_bench.base.errors import UserError

_MOST_VALUES = 100_000


def config_folder() -> Path:
    """Return the folder of shipped configurations.

    A wheel contains the repository's `configs/` as `spafit_bench/configs`. In a checkout, and so in
    an editable install, the folder stands beside the package.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; an empty file is an empty mapping.

    Raises:
        UserError: missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    body = parse_yaml(text, str(path))
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise UserError(f"{path}: the top level must be a mapping (key: value), not {body!r:.60}")
    return body


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML; a key that stands twice in one mapping is an error, with its line.

    Raises:
        UserError: not YAML, or too large to be meant; the message begins with `where`.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML itself silently keeps the last of equal keys."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen = set()
            for key, _ in node.value:
                if key.tag.endswith(":merge"):
                    continue
                name = self.construct_object(key, deep=True)
                if isinstance(name, Hashable) and name in seen:
                    line = key.start_mark.line + 1
                    raise yaml.YAMLError(f"line {line}: the key {name!r} stands twice")
                seen.add(name)
            return super().construct_mapping(node, deep)

    try:
        loader = Loader(text)
        body = loader.get_single_data()
        loader.dispose()
    except RecursionError:
        raise UserError(f"{where}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{where}: not valid YAML: {problem:.300}") from None
    _check_size(body, where)
    return body


def _check_size(body: Any, where: str) -> None:
    """Refuse what YAML's anchors can express: a value inside itself, or a billion from a few."""
    stack, seen = [body], 0
    while stack:
        value = stack.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise UserError(
                f"{where}: more than {_MOST_VALUES} values, or one inside itself (&, *)"
            )
        if isinstance(value, dict | list):
            stack += value.values() if isinstance(value, dict) else value

"""The configuration files that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spafit_bench.base.errors import UserError

_MOST_VALUES = 100_000


def config_folder() -> Path:
    """Return the folder of shipped configurations.

    A wheel carries the repository's top-level `configs/` inside the package; in a checkout (and so
    in an editable install) it stands beside the package.
    """
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        UserError: missing, unreadable, not YAML, or not a mapping.
    """
    import yaml

    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML: {problem}") from None
    if body is None:
        return {}
    _check_finite(body, path)
    if not isinstance(body, dict):
        raise UserError(f"{path}: the top level must be a mapping (key: value), not {body!r:.60}")
    return body


def _check_finite(body: Any, path: Path) -> None:
    """Refuse what YAML's anchors can write: a value inside itself, or a billion from a few."""
    stack, seen = [body], 0
    while stack:
        value = stack.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise UserError(f"{path}: more than {_MOST_VALUES} values, or one inside itself (&, *)")
        if isinstance(value, dict | list):
            stack += value.values() if isinstance(value, dict) else value

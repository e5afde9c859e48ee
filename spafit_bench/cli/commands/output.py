"""Forms of output that commands share."""

from __future__ import annotations

import json
from typing import Any

from spafit_bench.cli.results import rendered

__all__ = ["rendered", "to_json"]


def to_json(body: Any) -> str:
    """Return one JSON object for people and programs."""
    return json.dumps(body, indent=2, ensure_ascii=False)

"""Write `spafit_bench/data/official.json`: the fingerprints of GLUE's own train and dev splits.

Usage: python scripts/fingerprint_glue.py GLUE_FOLDER

GLUE_FOLDER has the hub's layout and the official rows in the official order. The script leaves out
a split if its file is missing or has a different number of rows than GLUE's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from spafit_bench.data.layouts import hub_layout, parts_of
from spafit_bench.data.load import OFFICIAL_FINGERPRINTS, split_fingerprint, validated_split
from spafit_bench.data.tasks import TASKS


def fingerprints(root: Path) -> dict[str, dict[str, str]]:
    """Return task -> split -> fingerprint of the files in `root`."""
    known: dict[str, dict[str, str]] = {}
    for task in TASKS.values():
        layout = hub_layout(task, root / task.name)
        for part in parts_of(task):
            files = layout.files(part) if part.test_set is None else []
            if not files:
                continue
            split = validated_split(task, part.key, [layout.read(path, part) for path in files])
            if split.num_rows == task.rows[part.key]:
                known.setdefault(task.name, {})[part.key] = split_fingerprint(split)
    return known


if __name__ == "__main__":
    text = json.dumps(fingerprints(Path(sys.argv[1])), indent=2)
    OFFICIAL_FINGERPRINTS.write_text(text + "\n", encoding="utf-8")

"""Write tests/cli/smoke_bands.json from a finished `spafit-bench sweep smoke --results DIR`.

A band is the mean over seeds +- max(4 sd, 8 points), at least 3 points above the majority class and
at most 100: wide enough for another processor's rounding, narrow enough to notice a broken method.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from spafit_bench.data.tasks import get_task
from spafit_bench.results.store import Store


def main(results: str) -> None:
    """Read the records of a results folder and write the bands."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    floors: dict[str, float] = {}
    for record in Store(Path(results)).records():
        scores[record.task, record.method].append(100 * (record.score or 0.0))
        floors[record.task] = 100 * (get_task(record.task).score(record.majority) or 0.0) + 3
    bands: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for (task, method), values in sorted(scores.items()):
        mean, width = statistics.fmean(values), max(4 * statistics.stdev(values), 8.0)
        low, high = max(mean - width, floors[task]), min(mean + width, 100.0)
        bands[task][method] = [round(low, 1), round(high, 1)]
    path = Path(__file__).parents[1] / "tests" / "cli" / "smoke_bands.json"
    path.write_text(json.dumps(bands, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

"""Write mini-GLUE as the package ships it: `python -m scripts.mini_glue`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.mini_glue import generate
from scripts.mini_glue.splits import SPLITS

SHIPPED = Path(__file__).resolve().parents[2] / "spafit_bench" / "assets" / "mini-glue"


def write(folder: Path) -> None:
    """Write every split of every task in the layout of the Hugging Face hub."""
    for config in SPLITS:
        (folder / config).mkdir(parents=True, exist_ok=True)
        for split, rows in generate(config).items():
            pq.write_table(
                pa.Table.from_pylist(rows),
                folder / config / f"{split}-00000-of-00001.parquet",
                compression="zstd",
                compression_level=19,
                write_statistics=False,
            )


if __name__ == "__main__":
    write(SHIPPED)

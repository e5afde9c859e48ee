"""The quick import of libraries leaves them as a plain import would."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import clean_environment

CHECK = """
import gc, json, sys
from pathlib import Path
from spafit_bench.base.libraries import load_libraries

load_libraries()
load_libraries()
from transformers import AutoModelForSequenceClassification, BertConfig, models
from transformers.utils import import_utils

folder = Path(models.__file__).parent
scan = import_utils.create_import_structure_from_path.__wrapped__  # not answered from memory
fresh = import_utils.spread_import_structure(scan(folder))
names = {name for modules in fresh.values() for inner in modules.values() for name in inner}
tiny = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9}
model = AutoModelForSequenceClassification.from_config(BertConfig(**tiny))
import scipy.stats

print(json.dumps({
    "collects": gc.isenabled(),
    "missing": sorted(names - set(dir(models)))[:5],
    "names": len(names),
    "torch": import_utils.is_torch_available(),
    "model": type(model).__name__,
    "rank": float(scipy.stats.spearmanr([1, 2, 3], [1, 2, 3])[0]),
}))
"""


def test_nothing_is_missing_afterwards() -> None:
    """Every model can be found, garbage is collected again, and scipy is there for us."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["collects"]
    assert found["missing"] == []
    assert found["names"] > 1000
    assert found["torch"]
    assert found["model"] == "BertForSequenceClassification"
    assert found["rank"] == 1.0

"""Peak memory is that of one run."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spafit_bench.cli.views.run import run_text
from spafit_bench.models.numerics import choose_numerics
from spafit_bench.training import memory, token_cache
from spafit_bench.training import run as execute
from tests.conftest import write_checkpoint
from tests.support.records import make_record
from tests.support.tiny_runs import make_world

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_what_an_earlier_run_freed_is_not_counted():
    """Many small freed tensors below one that lives: the C library keeps their memory."""
    freed = [torch.ones(1000) for _ in range(50_000)]  # 200 MB
    alive = torch.ones(1000)
    freed.clear()
    if not memory.reset_peak_memory(CPU):
        pytest.skip("the high-water mark cannot be reset here")
    low = memory.peak_memory_bytes(CPU)
    again = [torch.ones(1000) for _ in range(50_000)]
    high = memory.peak_memory_bytes(CPU)
    assert high - low > 150e6, "memory that was free all along was counted before it was used"
    assert len(again) == 50_000
    assert alive.sum() == 1000


def test_memory_of_several_processes_is_said_to_be_the_firsts() -> None:
    """`show` does not pass one process's memory off as the run's."""
    several = run_text(make_record(environment={"world_size": 4}), Path("runs"))
    assert "8,000.0 MB in the first of 4 processes" in several
    assert "processes" not in run_text(make_record(), Path("runs"))


def test_what_tokenising_took_is_not_a_runs(tmp_path, monkeypatch):
    """The first run of a task, which tokenises, has the peak that any other would have."""
    encode_task = token_cache.encode_task

    def encode_with_a_gigabyte(prepared):
        assert np.ones(10**9 // 8).sum() > 0
        return encode_task(prepared)

    monkeypatch.setattr(execute, "encode_task", encode_with_a_gigabyte)
    record = make_world(tmp_path).run("bitfit")
    if record.peak_memory_bytes is None:
        pytest.skip("the high-water mark cannot be reset here")
    assert record.peak_memory_bytes < memory.resident_bytes() + 5e8


_KERNELS = """
import ctypes
import torch
from spafit_bench.base import process
process.set_native_defaults()
names = "arena ordblks smblks hblks mapped usmblks fsmblks used free keepcost".split()
Info = type("Info", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_size_t) for n in names]})
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
weight = torch.zeros(384, 1152, dtype=torch.bfloat16)
texts = torch.zeros(2240, 384, dtype=torch.bfloat16)
texts @ weight
before = mallinfo()
for rows in range(4, 1604, 4):
    texts[:rows] @ weight
after = mallinfo()
print(after.used + after.mapped - before.used - before.mapped)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks GNU's C library")
@pytest.mark.skipif(
    choose_numerics("cpu", "auto").precision != "bf16",
    reason="without bf16 instructions each product takes a second and nothing is prepared",
)
def test_few_prepared_products_are_kept_twice(monkeypatch) -> None:
    """Four hundred shapes take a process of the command line less memory than any other."""

    def used() -> int:
        done = subprocess.run(
            [sys.executable, "-c", _KERNELS], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    few = used()
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "1024")
    if (every := used()) < 20e6:
        pytest.skip("this processor's products keep little")
    assert few < 0.8 * every


_LOADING = """
import sys
import torch
from spafit_bench.training import memory
from spafit_bench.training.run import build_model
from spafit_bench.training.prepare import Preparer
from spafit_bench.config.selection import RunRequest, run_configs
flags = {"model": sys.argv[1], "data": "mini", "precision": "bf16"}
(config,) = run_configs(RunRequest(task="mrpc", method="bitfit", flags=flags))
prepared = Preparer().prepare(config)
import transformers.models.bert.modeling_bert
memory.reset_peak_memory(torch.device("cpu"))
before = memory.resident_bytes()
build_model(prepared)
print(memory.peak_memory_bytes(torch.device("cpu")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has in memory is Linux's")
def test_frozen_weights_never_take_their_fp32_size(tmp_path) -> None:
    """Loading a checkpoint for bf16 peaks below the checkpoint's own size."""
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "num_hidden_layers": 16}
    write_checkpoint(tmp_path / "wide", **sizes, intermediate_size=3072)
    done = subprocess.run(
        [sys.executable, "-c", _LOADING, str(tmp_path / "wide")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    size = (tmp_path / "wide" / "model.safetensors").stat().st_size
    assert size > 200e6
    assert int(done.stdout) < 0.85 * size


_STEPS = """
import ctypes, resource
from spafit_bench.training import memory
{call}
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    pieces = [ctypes.c_void_p(library.malloc(n << 20)) for n in (30, 3, 30, 30)]
    for piece, n in zip(pieces, (30, 3, 30, 30)):
        library.memset(piece, 1, n << 20)
    for piece in pieces:
        library.free(piece)
step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not GNU's C library")
def test_what_a_step_frees_stays_for_the_next() -> None:
    """Ten steps of 93 MB fault in no page anew; they do where the user's own settings say so."""

    def faults(call: str, **environment: str) -> int:
        command = [sys.executable, "-c", _STEPS.format(call=call)]
        clean = {k: v for k, v in os.environ.items() if "MALLOC" not in k and "GLIBC" not in k}
        done = subprocess.run(
            command, env=clean | environment, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    returned = 10 * 93 * 2**20 // 4096
    assert faults("memory.keep_freed_memory()") < 0.1 * returned
    assert faults("") > 0.9 * returned
    own = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    assert faults("memory.keep_freed_memory()", **own) > 0.9 * returned

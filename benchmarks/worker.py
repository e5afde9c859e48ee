"""Measure one system on one case in this process and print one JSON object.

python -m benchmarks.worker fast '{"model": ..., "data": ..., "task": "mrpc", ...}'
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

STARTED_S = time.perf_counter()

import torch  # noqa: E402 (the whole command is timed, imports included)

from benchmarks.cases import LEARNING_RATE, Case  # noqa: E402


@dataclass
class Clock:
    """Record when training steps end (on a GPU only for steps at which the host waits)."""

    ends: list[tuple[int, float]] = field(default_factory=list)
    """Steps done, and the time."""

    def on_step(self, progress: Any) -> None:
        """Record the time."""
        self.ends.append((progress.step, time.perf_counter()))

    def after(self, warm_up: int, tokens: list[int]) -> tuple[list[float], list[int]]:
        """Return the times between recordings and the tokens of those steps, past the warm-up."""
        spans = [(a, b) for a, b in pairwise(self.ends) if a[0] >= warm_up]
        times = [end - start for (_, start), (_, end) in spans]
        return times, [sum(tokens[first:last]) for (first, _), (last, _) in spans]

    def on_evaluation(self, _: Any) -> None:
        """Do nothing: evaluations are not timed here."""


def measure_ours(case: Case, engine: str) -> dict[str, Any]:
    """Train and evaluate with spafit-bench, or time its steps beside their products."""
    from spafit_bench.config.selection import RunRequest, run_configs
    from spafit_bench.training import memory
    from spafit_bench.training.evaluation import predict
    from spafit_bench.training.loop import Session, train
    from spafit_bench.training.prepare import Preparer
    from spafit_bench.training.run import build_model, make_graphs
    from spafit_bench.training.token_cache import encode_task

    settings = {"learning_rate": LEARNING_RATE[case.method], "batch_size": case.batch_size}
    flags = {
        "model": case.model,
        "data": case.data,
        "device": case.device,
        "engine": "fast" if engine == "floor" else engine,
        "limit": case.num_examples,
        "predict_test": False,
        "train": settings | {"epochs": 1},
        "cuda_graphs": case.cuda_graphs and engine == "fast",
    } | ({"head": {"pooler": "full"}} if case.pooler else {})
    (config,) = run_configs(
        RunRequest(task=case.task, method=case.method, seed=str(case.seed), flags=flags)
    )
    prepared = Preparer().prepare(config)
    splits = encode_task(prepared)
    memory.keep_freed_memory()  # as `execute` does
    loaded = memory_bytes(case)
    adapted = build_model(prepared)
    batches = _batches(splits["train"], case)
    tokens = [int(splits["train"].lengths[batch].sum()) for batch in batches]
    clock = Clock()
    observer: Any = clock
    if engine == "floor":
        from benchmarks.floor import FloorClock
        from spafit_bench.models.fused import FusedEncoder

        assert isinstance(adapted.engine, FusedEncoder)
        observer = FloorClock(adapted.engine, splits["train"], batches)
    train(
        adapted,
        splits["train"],
        config.train,
        seed=case.seed,
        session=Session(observer=observer),
        graphs=make_graphs(prepared),
    )
    if engine == "floor":
        return observer.after(case.warm_up, tokens) | {"loaded_bytes": loaded}
    times, tokens = clock.after(case.warm_up, tokens)
    dev = next(name for name in splits if name != "train")
    rows = min(case.eval_examples, len(splits[dev]))
    evaluated = predict(adapted, _first(splits[dev], rows), batch_size=64)
    return {
        "times_s": times,
        "tokens": tokens,
        "eval_tokens": evaluated.num_tokens,
        "eval_time_s": evaluated.time_s,
        "loaded_bytes": loaded,
    }


def memory_bytes(case: Case) -> int:
    """Return the memory in use before the model is loaded."""
    if case.device != "cpu":
        return 0
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _batches(split: Any, case: Case) -> list[Any]:
    import numpy as np

    from spafit_bench.models.encoding import training_batches

    return training_batches(split, case.batch_size, np.random.default_rng([case.seed, 0]))


def _first(split: Any, count: int) -> Any:
    from dataclasses import replace

    end = split.offsets[count]
    kinds = split.token_type_ids
    return replace(
        split,
        input_ids=split.input_ids[:end],
        token_type_ids=None if kinds is None else kinds[:end],
        offsets=split.offsets[: count + 1],
        labels=None if split.labels is None else split.labels[:count],
    )


def measure_peer(case: Case, *, tuned: bool) -> dict[str, Any]:
    """Train and evaluate with Trainer and peft."""
    from datasets import Dataset

    from benchmarks.peers import Timer, encoded_rows, make_trainer

    clock = Timer()
    with tempfile.TemporaryDirectory() as folder:
        rows = encoded_rows(case, clock, tuned=tuned)
        loaded = memory_bytes(case)
        trainer = make_trainer(case, clock, rows, folder, tuned=tuned)
        trainer.train()
        tokens = clock.tokens[: case.steps + case.warm_up]
        seen = len(clock.tokens)
        assert isinstance(trainer.eval_dataset, Dataset)
        begin = time.perf_counter()
        trainer.predict(trainer.eval_dataset)
        eval_time_s = time.perf_counter() - begin
    return {
        "times_s": clock.times_s[case.warm_up :],
        "tokens": tokens[case.warm_up :],
        "eval_tokens": sum(clock.tokens[seen:]),
        "eval_time_s": eval_time_s,
        "loaded_bytes": loaded,
    }


def main() -> None:
    """Measure the case on the command line."""
    system, settings = sys.argv[1], json.loads(sys.argv[2])
    case = Case(**settings)
    if system in ("fast", "plain", "floor"):
        found = measure_ours(case, system)
    else:
        found = measure_peer(case, tuned=system == "tuned")
    found |= {"system": system, "case": asdict(case)}
    found["peak_memory_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if case.device != "cpu":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    found["whole_s"] = time.perf_counter() - STARTED_S
    found["threads"] = torch.get_num_threads()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

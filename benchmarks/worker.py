"""Measures one system on one case in a process of its own, and prints one JSON object.

python -m benchmarks.worker fast '{"model": ..., "data": ..., "task": "mrpc", ...}'
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import pairwise
from typing import Any

STARTED_S = time.perf_counter()

import torch  # noqa: E402 (the whole command is timed, imports included)

from benchmarks.cases import LEARNING_RATE, Case  # noqa: E402


def measure_ours(case: Case, engine: str) -> dict[str, Any]:
    """Train and evaluate with spafit-bench's own functions."""
    from spafit_bench.evaluation import predict
    from spafit_bench.execute import build_model, encode_task
    from spafit_bench.prepare import Preparer
    from spafit_bench.requests import RunRequest, run_configs
    from spafit_bench.train import Hooks, Progress, train

    epochs = 1
    train_settings = {
        "learning_rate": LEARNING_RATE[case.method],
        "batch_size": case.batch_size,
        "epochs": epochs,
    }
    flags = {
        "model": case.model,
        "data": case.data,
        "device": case.device,
        "engine": engine,
        "limit": case.num_examples,
        "predict_test": False,
        "train": train_settings,
    }
    (config,) = run_configs(
        RunRequest(task=case.task, method=case.method, seed=str(case.seed), flags=flags)
    )
    prepared = Preparer().prepare(config)
    splits = encode_task(prepared)
    adapted = build_model(prepared)
    marks: list[tuple[float, float]] = []

    class Clock:
        def on_step(self, progress: Progress) -> None:
            now = time.perf_counter()
            marks.append((now, progress.tokens_per_s))

        def on_evaluation(self, _: Any) -> None: ...

    begin = time.perf_counter()
    result = train(
        adapted,
        splits["train"],
        config.train,
        seed=case.seed,
        hooks=Hooks(evaluate=dict, observer=Clock()),
    )
    del begin, result
    tokens = _tokens_of(splits["train"], case)
    ends = [mark for mark, _ in marks]
    times = [after - before for before, after in pairwise(ends)]
    dev = next(name for name in splits if name != "train")
    rows = min(case.eval_examples, len(splits[dev]))
    evaluated = predict(adapted, _first(splits[dev], rows), batch_size=64)
    return {
        "times_s": times[case.warm_up - 1 :],
        "tokens": tokens[case.warm_up :],
        "eval_tokens": evaluated.num_tokens,
        "eval_time_s": evaluated.time_s,
    }


def _tokens_of(split: Any, case: Case) -> list[int]:
    import numpy as np

    from spafit_bench.encoding import training_batches

    batches = training_batches(split, case.batch_size, np.random.default_rng([case.seed, 0]))
    return [int(split.lengths[batch].sum()) for batch in batches]


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
    from benchmarks.peers import Clock, make_trainer

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(case, clock, folder, tuned=tuned)
        trainer.train()
        tokens = clock.tokens[: case.steps + case.warm_up]
        seen = len(clock.tokens)
        begin = time.perf_counter()
        trainer.predict(trainer.eval_dataset)
        eval_time_s = time.perf_counter() - begin
    return {
        "times_s": clock.times_s[case.warm_up :],
        "tokens": tokens[case.warm_up :],
        "eval_tokens": sum(clock.tokens[seen:]),
        "eval_time_s": eval_time_s,
    }


def main() -> None:
    """Measure what the command line says."""
    system, settings = sys.argv[1], json.loads(sys.argv[2])
    case = Case(**settings)
    if system in ("fast", "plain"):
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

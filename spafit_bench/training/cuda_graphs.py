"""CUDA graphs: all kernel launches of a step are replayed as one, for batch shapes that recur.

On batches of short texts a GPU is faster than Python can launch kernels. A CUDA graph stores the
kernels of a computation with their addresses, and starts them all at once. It is recorded for one
shape, so there must be few shapes: `ragged` rounds them up, which leaves 18 to 30 on MRPC, CoLA and
RTE. A shape is recorded when it comes for the second time: one that never recurs costs nothing, and
libraries have prepared their kernels by then. Recording takes about as long as one step.

If recording fails, training continues without graphs: recording computes nothing, so nothing is
lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spafit_bench.models.encoding import Batch

log = logging.getLogger(__name__)

MOST_GRAPHS = 64
"""More shapes than this are computed without graphs, because each graph takes memory."""

Compute = Callable[[Batch], Tensor]
"""Reads a batch, writes to memory at fixed addresses, and returns a tensor."""
Key = tuple[str, tuple[int, int, int, bool]]
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], object]]]
"""Records a computation without executing it; returns its output tensor and a replay function."""


class CudaRecorder:
    """Records on a GPU. Graphs share memory, because no two run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self.pool):
                output = compute()
        finally:
            torch.cuda.set_stream(stream)  # torch does not restore it if recording fails
        return output, graph.replay


@dataclass(frozen=True)
class _Graph:
    batch: Batch
    output: Tensor
    replay: Callable[[], object]


@dataclass
class Graphs:
    """Computes batches, from a recording if there is one.

    All recordings are dropped together, because in some versions of torch deleting one breaks the
    others.
    """

    record: Record
    recorded: dict[Key, _Graph] = field(default_factory=dict)
    met: set[Key] = field(default_factory=set)
    time_s: float = 0.0
    """Time spent recording."""
    ended: bool = False

    def run(self, name: str, compute: Compute, batch: Batch) -> Tensor:
        """Return `compute(batch)`; the result is valid until the next call.

        Args:
            name: of the computation; two of one name differ only in the batch.
            compute: must not wait for the device, nor read anything else that changes on the host.
            batch: on the device.
        """
        key = (name, batch.shape)
        graph = self.recorded.get(key)
        if graph is None and key in self.met and self._has_room():
            graph = self._record(key, compute, batch)
        self.met.add(key)
        if graph is None:
            return compute(batch)
        graph.batch.copy_(batch)
        graph.replay()
        return graph.output

    def end(self) -> bool:
        """Drop all recordings and make no more; return whether there were any."""
        self.ended, had_any = True, bool(self.recorded)
        self.recorded.clear()
        return had_any

    def _has_room(self) -> bool:
        return not self.ended and len(self.recorded) < MOST_GRAPHS

    def _record(self, key: Key, compute: Compute, batch: Batch) -> _Graph | None:
        start = time.perf_counter()
        own = batch.clone()
        try:
            output, replay = self.record(lambda: compute(own))
        except Exception as error:  # an unknown driver or library may raise anything
            self.end()
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("--cuda-graphs: recording failed, so steps run without (%.200s)", reason)
            return None
        self.time_s += time.perf_counter() - start
        self.recorded[key] = graph = _Graph(own, output, replay)
        return graph

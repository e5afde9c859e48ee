"""CUDA graphs: all launches of a computation as one, for shapes of batches that come again.

A GPU is faster than Python can ask it to compute on batches of short texts. A CUDA graph holds the
kernels of a computation with their addresses, and starts them all at once. It is recorded for
one shape, so shapes have to be few: `ragged` rounds them up, which leaves 18 to 30 of them on MRPC,
CoLA and RTE. A shape is recorded when it comes for the second time (one that never comes again
costs nothing, and libraries have prepared their kernels), which takes about as long as one step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spafit_bench.encoding import Batch

log = logging.getLogger(__name__)

MOST_GRAPHS = 64
"""Shapes beyond these are computed launch by launch: each graph takes some memory."""

Compute = Callable[..., Tensor | None]
"""Reads batches, writes to memory that stays where it is, and may return a tensor."""
Record = Callable[[Callable[[], Tensor | None]], tuple[Tensor | None, Callable[[], object]]]
"""Records a computation without carrying it out; returns its result's place and what replays it."""


class CudaRecorder:
    """Records on a GPU; graphs share their memory, as no two run at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()

    def __call__(
        self, compute: Callable[[], Tensor | None]
    ) -> tuple[Tensor | None, Callable[[], object]]:
        """Record."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self.pool):
            output = compute()
        return output, graph.replay


@dataclass(frozen=True)
class _Graph:
    inputs: tuple[Batch, ...]
    output: Tensor | None
    replay: Callable[[], object]


@dataclass
class Graphs:
    """Carries out computations, from a recording where there is one."""

    record: Record
    recorded: dict[tuple[object, ...], _Graph] = field(default_factory=dict)
    met: set[tuple[object, ...]] = field(default_factory=set)
    time_s: float = 0.0
    """Of recording."""
    failed: bool = False

    def run(self, name: str, compute: Compute, *inputs: Batch) -> Tensor | None:
        """Carry out `compute(*inputs)`.

        Args:
            name: of the computation; two of one name differ in nothing but their inputs.
            compute: must not wait for the device, nor read anything else that changes on the host.
            inputs: batches on the device.

        Returns:
            What `compute` does; it holds until the next call.
        """
        key = (name, *(batch.shape for batch in inputs))
        graph = self.recorded.get(key)
        if graph is None and key in self.met and self._has_room():
            graph = self._record(key, compute, inputs)
        self.met.add(key)
        if graph is None:
            return compute(*inputs)
        for own, new in zip(graph.inputs, inputs, strict=True):
            own.copy_(new)
        graph.replay()
        return graph.output

    def forget(self) -> None:
        """Drop all recordings: what they write to is no longer there, or the memory is wanted.

        Every shape is then computed once launch by launch again, so that gradients have a place.
        """
        self.recorded.clear()
        self.met.clear()

    def _has_room(self) -> bool:
        return not self.failed and len(self.recorded) < MOST_GRAPHS

    def _record(
        self, key: tuple[object, ...], compute: Compute, inputs: tuple[Batch, ...]
    ) -> _Graph | None:
        start = time.perf_counter()
        own = tuple(batch.clone() for batch in inputs)
        try:
            output, replay = self.record(lambda: compute(*own))
        except RuntimeError as error:  # nothing has been computed yet, so nothing is lost
            self.failed = True
            self.forget()
            reason = str(error).partition("\n")[0]
            log.warning("cuda_graphs: given up, as recording failed (%s)", reason)
            return None
        self.time_s += time.perf_counter() - start
        self.recorded[key] = graph = _Graph(own, output, replay)
        return graph

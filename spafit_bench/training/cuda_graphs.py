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

from spafit_bench.base.errors import UserError
from spafit_bench.models.encoding import Batch

log = logging.getLogger(__name__)

MOST_GRAPHS = 64
"""Shapes beyond these are computed launch by launch: each graph takes some memory."""

Compute = Callable[[Batch], Tensor]
"""Reads a batch, writes to memory that stays where it is, and returns a tensor."""
Key = tuple[str, tuple[int, int, int, bool]]
Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], object]]]
"""Records a computation without carrying it out; returns its result's place and what replays it."""


class CudaRecorder:
    """Records on a GPU; graphs share their memory, as no two run at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        """Record."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self.pool):
                output = compute()
        finally:
            torch.cuda.set_stream(stream)  # which torch forgets where recording fails
        return output, graph.replay


@dataclass(frozen=True)
class _Graph:
    batch: Batch
    output: Tensor
    replay: Callable[[], object]


@dataclass
class Graphs:
    """Carries out computations, from a recording where there is one.

    Recordings go all at once: in some versions of torch the end of one spoils the others.
    """

    record: Record
    recorded: dict[Key, _Graph] = field(default_factory=dict)
    met: set[Key] = field(default_factory=set)
    time_s: float = 0.0
    """Of recording."""
    ended: bool = False

    def run(self, name: str, compute: Compute, batch: Batch) -> Tensor:
        """Carry out `compute(batch)`.

        Args:
            name: of the computation; two of one name differ in nothing but the batch.
            compute: must not wait for the device, nor read anything else that changes on the host.
            batch: on the device.

        Returns:
            What `compute` does; it holds until the next call.

        Raises:
            UserError: it cannot be recorded.
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
        """Drop all recordings and make no more; tell whether there were any."""
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
        except torch.OutOfMemoryError:  # nothing has been computed yet, so nothing is lost
            self.end()
            log.warning("cuda_graphs: no memory for them; training goes on without")
            return None
        except RuntimeError as error:  # generator and allocator may be left in any state
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"--cuda-graphs: recording failed ({reason}); run this again without the flag, "
                "and it goes on from its last snapshot"
            ) from error
        self.time_s += time.perf_counter() - start
        self.recorded[key] = graph = _Graph(own, output, replay)
        return graph

"""One run on several devices: processes that torchrun or `launch` started share every batch.

At each step every process computes the loss of its examples, divided by the number of examples of
the whole batch. Summed over the processes, the gradients are those of one process up to the order
of floating-point sums, and all take the same optimizer step. The first process alone reads and
writes the results folder; it tells the others what to compute. A process that did not `join` others
is alone: then nothing here does anything.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from spafit_bench.base.errors import UserError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

log = logging.getLogger(__name__)
T = TypeVar("T")
Order = tuple[str, Any]
"""A run's name, and the snapshot from which it resumes (None: from the start)."""

_NO_LIMIT = timedelta(days=365)
"""For the next run: the first process may wait for hours until others leave it one."""
_LARGE = 1 << 20
"""Elements of a gradient that is summed where it is; smaller ones travel together."""
_REASON = "spafit-bench/why a process ended"
RENDEZVOUS = "SPAFIT_BENCH_RENDEZVOUS"
"""Holds the URL at which the processes of `run --processes` meet. torchrun sets host and port."""


class PeerLost(UserError):  # noqa: N818 (what happened, as `Diverged`)
    """Another process of this run has ended."""


@dataclass
class _Processes:
    """What the processes of this run talk through."""

    store: Store
    orders: dist.ProcessGroup | None
    ended: bool = False
    """Nobody answers any more."""


_group: _Processes | None = None


def size() -> int:
    """Return the number of processes."""
    return 1 if _group is None else dist.get_world_size()


def rank() -> int:
    """Return the number of this process, from 0."""
    return 0 if _group is None else dist.get_rank()


def local_rank() -> int | None:
    """Return the number of this process on its machine; None if it is alone."""
    return None if _group is None else int(os.environ["LOCAL_RANK"])


def join() -> None:
    """Meet the other processes where torchrun's environment variables say.

    All but the first are silent from then on, unless the machine itself has something to say.

    Raises:
        PeerLost: they did not come.
        UserError: a variable is missing.
    """
    global _group  # noqa: PLW0603 (as torch's own: a process joins once)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    with _talking():
        try:
            url = os.environ.get(RENDEZVOUS, "env://")
            mine = (int(os.environ.get(name, "-1")) for name in ("RANK", "WORLD_SIZE"))
            store, number, count = next(rendezvous(url, *mine))
        except ValueError as error:
            raise UserError(f"LOCAL_RANK is set as by torchrun, but: {error}") from None
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
        _group = _Processes(store, dist.new_group(backend="gloo", timeout=_NO_LIMIT))
    atexit.register(_leave)
    if number > 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the end)


def _leave() -> None:
    if _group is not None and not _group.ended:
        dist.destroy_process_group()


def in_one_voice(work: Callable[[], T]) -> T:
    """Do the same in every process; a mistake that any of them finds is every one's.

    Raises:
        UserError: of the first process that has one.
    """
    result, problem = [], None
    try:
        result.append(work())
    except UserError as error:
        problem = str(error)
    for number, found in enumerate(gather(problem)):
        if found is not None:
            raise UserError(f"process {number}: {found}" if number else found)
    return result[0]


def check_same(facts: Sequence[str]) -> None:
    """Make sure that all processes are about to do the same.

    Raises:
        UserError: the first fact in which one differs from the first process.
    """
    first, *others = gather(list(facts))
    for number, theirs in enumerate(others, start=1):
        for ours, other in zip(first, theirs, strict=True):
            if ours != other:
                raise UserError(
                    f"process {number} would compute {other}, and process 0 {ours}: data, weights, "
                    "versions, devices and threads must be the same in every process"
                )


def my_share() -> slice:
    """Return which of a sequence this process computes: every `size()`-th item."""
    return slice(rank(), None, size())


def seed_step(seed: int, step: int) -> None:
    """Let each process draw its own dropout, from numbers that no snapshot has to keep.

    Does nothing in a process that is alone, whose generator goes on from step to step.
    """
    if size() > 1:
        (state,) = np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)
        torch.manual_seed(int(state))


def sum_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Sum gradients over the processes, in place; return the sum of their losses.

    Args:
        parameters: what trains, in the same order everywhere; fp32.
        loss: () fp32, on the same device.
    """
    if size() == 1:
        return loss
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # this process had no example
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    small = [gradient for gradient in gradients if gradient.numel() < _LARGE]
    together = torch.cat([*(gradient.flatten() for gradient in small), loss.reshape(1)])
    with _talking():
        for buffer in (together, *(g for g in gradients if g.numel() >= _LARGE)):
            dist.all_reduce(buffer)
    *pieces, total = together.split([*(gradient.numel() for gradient in small), 1])
    for gradient, piece in zip(small, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))
    return total[0]


def any_process(answer: bool) -> bool:
    """Tell whether the answer is yes in any process."""
    if size() == 1:
        return answer
    answers = torch.tensor(int(answer))
    with _talking():
        dist.all_reduce(answers, dist.ReduceOp.MAX)
    return bool(answers)


def gather(value: T) -> list[T]:
    """Return the value of every process, in their order."""
    if size() == 1:
        return [value]
    values: list[T] = [value] * size()
    with _talking():
        dist.all_gather_object(values, value)
    return values


def lead(order: Order, work: Callable[[], T]) -> T:
    """In the first process: do a run's work while the others follow.

    Raises:
        PeerLost: one of them ended, now or in an earlier run.
    """
    if _group is None:
        return work()
    if _group.ended:
        raise PeerLost(
            "the run before this one failed, and with it ended the processes that shared its work; "
            "the same command goes on with the others"
        )
    _tell(order)
    try:
        return work()
    except Exception:  # the others wait for numbers that will never come
        _group.ended = True
        raise


def dismiss() -> None:
    """In the first process: let the others end, unless they have."""
    if _group is not None and not _group.ended:
        _tell(None)


def follow(work: Callable[[str, Any], object]) -> None:
    """In any other process: do what the first one leads, until it says that all is done.

    Raises:
        PeerLost: another process ended.
    """
    assert _group is not None
    while (order := _tell(None)) is not None:
        try:
            work(*order)
        except PeerLost:
            raise
        except Exception as error:
            _group.ended = True
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            with suppress(RuntimeError):  # where the first process has gone, nobody listens
                _group.store.set(_REASON, f"process {rank()} failed ({problem:.500})")
            raise


def _tell(order: Order | None) -> Order | None:
    """Return the first process's order; what the others pass is not looked at."""
    assert _group is not None
    orders = [order]
    with _talking():
        dist.broadcast_object_list(orders, src=0, group=_group.orders)
    return orders[0]


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        log.debug("%s", error)
        why = "another process of this run ended without a word, or cannot be reached"
        if _group is not None:
            _group.ended = True
            with suppress(RuntimeError):
                if _group.store.check([_REASON]):
                    why = _group.store.get(_REASON).decode()
        raise PeerLost(f"{why}; all end, and the same command goes on where they were") from error

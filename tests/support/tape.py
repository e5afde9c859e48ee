"""What a CUDA graph does, on a CPU: the operations of a computation, with their memory, again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
"""Operations whose result the host reads; no graph can hold them."""


@dataclass
class _Operation:
    """One call; what it makes stays in `made`, as a kernel's output stays at its address."""

    function: Any
    args: Any
    kwargs: Any
    made: list[Tensor]

    def again(self) -> None:
        """Carry it out with what its inputs hold now."""
        found = self.function(*self.args, **self.kwargs)
        if not any(value.alias_info for value in self.function._schema.returns):
            new = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
            for own, value in zip(self.made, new, strict=True):
                own.copy_(value)


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[_Operation] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        kwargs = kwargs or {}
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info and argument.alias_info.is_write and argument.name in given:
                written = given[argument.name]
                self.before.append((written, written.clone()))
        found = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.operations.append(_Operation(func, args, kwargs, made))
        return found


@dataclass
class Tape:
    """Records as `graphs.CudaRecorder` does: nothing that is recorded has happened afterwards."""

    recordings: int = 0
    replays: int = 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
        """Record."""
        recording = _Recording()
        with recording:
            output = compute()
        for written, value in reversed(recording.before):
            written.detach().copy_(value)
        self.recordings += 1

        @torch.no_grad()
        def replay() -> None:
            self.replays += 1
            for operation in recording.operations:
                operation.again()

        return output, replay

"""`Kernels` in C for bf16 on a CPU, compiled when the package is installed (`kernels.c`).

Each kernel makes one pass over memory where PyTorch's operations make three to six. Dropout bits
are drawn on all threads, and drawn again for the gradient instead of being stored. Without a C
compiler at installation, and on other processors, PyTorch's operations compute the same, slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.models.fused.kernels import Again, Dropout, Kernels, NormGradients, draw_seed
from spafit_bench.models.numerics import Numerics, has_bf16_instructions
from spafit_bench.models.ragged import LENGTH_MULTIPLE, Ragged

SWITCH = "SPAFIT_BENCH_KERNELS"
"""Environment variable; `torch` switches the compiled kernels off."""

_KEEP_ALL = (0, 1 << 15)
"""Seed and threshold of a dropout that keeps every element."""
_POINTERS = {"b": torch.bfloat16, "s": torch.float32, "i": torch.int64}
_KINDS = {"n": ctypes.c_int64, "f": ctypes.c_float} | dict.fromkeys(_POINTERS, ctypes.c_void_p)
_SIGNATURES = {
    "gelu": "bsbnnn",
    "gelu_backward": "bbsnnn",
    "add_norm": "bsssssbssnnffnnn",
    "add_norm_backward": "sbssssbsnnfnnn",
    "split_heads": "bsbiinnnnnfn",
    "join_heads": "bbiinnnnnfnn",
    "softmax": "bbinnnnnnn",
    "softmax_backward": "bbbinnnnn",
    "column_sums": "bsnnn",
    "add": "sbnn",
}
"""Kernel -> argument types: bf16, fp32 and int64 tensors (b, s, i; or None), integers, floats. The
last argument is the number of threads."""


def choose_kernels(numerics: Numerics) -> Kernels:
    """Return the fastest kernels for a device and a precision."""
    return Kernels() if why_not_native(numerics) else NativeKernels(_library())


def kernels_name(numerics: Numerics) -> str:
    """Return `native` or `torch`."""
    return choose_kernels(numerics).name


def why_not_native(numerics: Numerics) -> str | None:
    """Return why the compiled kernels cannot be used with these numerics; None if they can."""
    if numerics.device.type != "cpu" or numerics.dtype != torch.bfloat16:
        return "they are for bf16 on a CPU"
    wanted = os.environ.get(SWITCH, "native")
    if wanted not in ("native", "torch"):
        raise UserError(f"{SWITCH}={wanted}: {nearest(wanted, ('native', 'torch'))}")
    if wanted == "torch":
        return f"switched off by {SWITCH}=torch"
    if not has_bf16_instructions():
        return "this processor has no AVX-512 with bf16"
    if _find() is None:
        return "they could not be compiled at installation"
    try:
        _library()
    except OSError as error:
        return f"they cannot be loaded: {error}"
    return None


def _find() -> str | None:
    spec = importlib.util.find_spec("spafit_bench.models.fused._kernels")
    return spec.origin if spec else None


@cache
def _library() -> ctypes.CDLL:
    """Load the compiled kernels.

    Raises:
        OSError: they cannot be loaded, or were compiled from another version of `kernels.c`.
    """
    package = Path(torch.__file__).parent
    folders = (package / "lib", package.with_name("torch.libs"))
    openmp = [path for folder in folders for path in sorted(folder.glob("libgomp*.so*"))]
    for path in openmp[:1]:  # so that torch and the kernels share one pool of threads
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    loaded = ctypes.CDLL(_find())
    source = Path(__file__).with_name("kernels.c")  # in a checkout
    built_from = getattr(loaded, "built_from", None)
    if built_from is not None:
        built_from.restype = ctypes.c_char_p
    if source.exists():
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        if built_from is None or built_from() != digest.encode():
            raise OSError("compiled from another version of kernels.c")
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = [_KINDS[kind] for kind in signature], None
    return loaded


class NativeKernels(Kernels):
    """The compiled kernels; methods are documented in `Kernels`."""

    name = "native"
    takes_bias = True

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def _call(self, name: str, *arguments: Tensor | float | None) -> None:
        """Call a kernel with the addresses of tensors, all numbers, and the number of threads."""
        values: list[float | None] = []
        for kind, value in zip(_SIGNATURES[name], arguments, strict=False):
            if isinstance(value, Tensor):  # the address is all that a kernel gets
                assert value.dtype == _POINTERS[kind], (kind, value.dtype)
                assert value.is_contiguous(), (kind, value.shape, value.stride())
                values.append(value.data_ptr())
            else:
                values.append(value)
        getattr(self.library, name)(*values, torch.get_num_threads())

    def split(
        self, x: Tensor, bias: Tensor | None, layout: Ragged, heads: int, count: int, scale: float
    ) -> Tensor:
        """Pads with zeros."""
        size = x.shape[1] // count // heads
        parts = x.new_empty(count, layout.size * heads, layout.length, size)
        places = (layout.starts, layout.lengths, layout.size, layout.length)
        self._call("split_heads", x.contiguous(), bias, parts, *places, count, heads, size, scale)
        return parts

    def split_gradient(self, x: Tensor, layout: Ragged, heads: int, scale: float) -> Tensor:
        return self.split(x, None, layout, heads, 1, scale)[0]

    def join(self, parts: Tensor, layout: Ragged, scale: float = 1.0) -> Tensor:
        """Fills padding rows with zeros."""
        count, pairs, length, size = parts.shape
        heads, rows = pairs // layout.size, layout.num_rows
        x = parts.new_empty(rows, count * heads * size)
        places = (layout.starts, layout.lengths, layout.size, length)
        self._call("join_heads", parts.contiguous(), x, *places, count, heads, size, scale, rows)
        return x

    def softmax(
        self, scores: Tensor, layout: Ragged, dropout: Dropout | None
    ) -> tuple[Tensor, Again, Callable[[Tensor], Tensor]]:
        """Overwrites the scores with the probabilities before dropout."""
        pairs, queries, length = scores.shape
        assert length % LENGTH_MULTIPLE == 0, length
        shape = (layout.lengths, layout.size, pairs // layout.size, queries, length)
        after = torch.empty_like(scores) if dropout else None
        draw = (draw_seed(), dropout.threshold) if dropout else _KEEP_ALL
        self._call("softmax", scores, after, *shape, *draw)
        dropped = scores if after is None else after

        def backward(gradient: Tensor) -> Tensor:
            self._call("softmax_backward", gradient, scores, dropped, *shape)
            return gradient

        return dropped, lambda: dropped, backward

    def gelu(
        self, u: Tensor, bias: Tensor | None, *, differentiable: bool, output_needed: bool
    ) -> tuple[Tensor, Again, Callable[[Tensor], tuple[Tensor, Tensor | None]]]:
        """Works in place; computes the slope in the same pass, rounded to bf16."""
        slope = torch.empty_like(u) if differentiable else None
        self._call("gelu", u, bias, slope, *u.shape)
        output = u if output_needed else u.new_empty(0)

        def backward(gradient: Tensor) -> tuple[Tensor, Tensor | None]:
            sums = torch.zeros(torch.get_num_threads(), gradient.shape[1])
            self._call("gelu_backward", gradient, slope, sums, *gradient.shape)
            return gradient, sums[0]

        return u, lambda: output, backward

    def add_norm(
        self,
        stream: Tensor,
        branch: Tensor,
        bias: Tensor | None,
        norm: nn.LayerNorm,
        dropout: Dropout | None,
        *,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor | None], NormGradients]]:
        """Writes the sum (or, without gradients, the result) over `stream`.

        The gradient draws the same dropout bits again, and is written over the sum.
        """
        z, low, dtype = stream.contiguous(), torch.empty_like(branch), branch.dtype
        y = torch.empty_like(z) if differentiable else z
        mean, deviation = y.new_empty(2, len(y))
        draw = (draw_seed(), dropout.threshold) if dropout else _KEEP_ALL
        scale = dropout.scale if dropout else 1.0
        given, found = (branch, bias, norm.weight, norm.bias), (z, y, low, mean, deviation)
        self._call("add_norm", *given, *found, *y.shape, norm.eps, scale, *draw)

        def backward(gradient: Tensor, more: Tensor | None) -> NormGradients:
            of_branch = torch.empty_like(z, dtype=dtype)
            sums = z.new_zeros(torch.get_num_threads(), 3, z.shape[1])
            given = (gradient.contiguous(), more, mean, deviation, norm.weight)
            self._call("add_norm_backward", *given, z, of_branch, sums, *z.shape, scale, *draw)
            own = zip((norm.weight, norm.bias), sums[0], strict=False)
            return z, of_branch, [g for parameter, g in own if parameter.requires_grad], sums[0, 2]

        return y, low, backward

    def column_sums(self, x: Tensor) -> Tensor:
        """Sums in fp32."""
        sums = torch.zeros(torch.get_num_threads(), x.shape[1])
        self._call("column_sums", x.contiguous(), sums, *x.shape)
        return sums[0]

    def add_(self, x: Tensor, more: Tensor) -> Tensor:
        self._call("add", x, more.contiguous(), x.numel())
        return x

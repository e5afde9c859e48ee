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
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from spafit_bench.base.errors import UserError, nearest
from spafit_bench.models.fused.dropout import Dropout, draw_seed
from spafit_bench.models.fused.kernels import (
    Activation,
    Kernels,
    Normed,
    NormGradients,
    Probabilities,
)
from spafit_bench.models.numerics import Numerics, has_bf16_instructions
from spafit_bench.models.ragged import LENGTH_MULTIPLE, Ragged

SWITCH = "SPAFIT_BENCH_KERNELS"
"""Environment variable; `torch` switches the compiled kernels off."""

_ALL = 1 << 15
"""The dropout threshold that keeps every element."""
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
"""Kernel -> argument types: bf16, fp32 and int64 tensors (b, s, i; or None), integers, floats."""


def choose_kernels(numerics: Numerics) -> Kernels:
    """Return the fastest kernels for a device and a precision."""
    return Kernels() if why_not_native(numerics) else NativeKernels(_library())


def kernels_name(numerics: Numerics) -> str:
    """Return `native` or `torch`."""
    return choose_kernels(numerics).name


def why_not_native(numerics: Numerics) -> str | None:
    """Return why compiled kernels do not serve this device and precision; None if they do."""
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
    for openmp in _openmp_of_torch():  # one pool of threads for both
        ctypes.CDLL(str(openmp), mode=ctypes.RTLD_GLOBAL)
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


def _openmp_of_torch() -> list[Path]:
    package = Path(torch.__file__).parent
    folders = (package / "lib", package.with_name("torch.libs"))
    return [path for folder in folders for path in sorted(folder.glob("libgomp*.so*"))][:1]


class NativeKernels(Kernels):
    """The compiled kernels; methods are documented in `Kernels`."""

    name = "native"
    takes_bias = True

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def _call(self, name: str, *arguments: Tensor | float | None) -> None:
        values = [
            _address(value, kind) if isinstance(value, Tensor) else value
            for kind, value in zip(_SIGNATURES[name], arguments, strict=True)
        ]
        getattr(self.library, name)(*values)

    def split(
        self,
        x: Tensor,
        bias: Tensor | None,
        layout: Ragged,
        num_heads: int,
        count: int,
        *,
        scale: float = 1.0,
    ) -> Tensor:
        """Pads with zeros."""
        size = x.shape[1] // count // num_heads
        apart = x.new_empty(count, layout.size * num_heads, layout.length, size)
        places = (layout.starts, layout.lengths, layout.size, layout.length)
        shape, threads = (count, num_heads, size), torch.get_num_threads()
        self._call("split_heads", x.contiguous(), bias, apart, *places, *shape, scale, threads)
        return apart

    def split_gradient(self, x: Tensor, layout: Ragged, num_heads: int, *, scale: float) -> Tensor:
        return self.split(x, None, layout, num_heads, 1, scale=scale)[0]

    def join(self, heads: Tensor, layout: Ragged, *, scale: float = 1.0) -> Tensor:
        """Fills padding rows with zeros."""
        count, pairs, length, size = heads.shape
        num_heads = pairs // layout.size
        x = heads.new_empty(layout.num_rows, count * num_heads * size)
        places = (layout.starts, layout.lengths, layout.size, length)
        shape, threads = (count, num_heads, size), torch.get_num_threads()
        rows = layout.num_rows
        self._call("join_heads", heads.contiguous(), x, *places, *shape, scale, rows, threads)
        return x

    def softmax(
        self, scores: Tensor, layout: Ragged, dropout: Dropout | None
    ) -> tuple[Tensor, Probabilities]:
        """Overwrites the scores with the probabilities."""
        after = torch.empty_like(scores) if dropout else None
        draw = (draw_seed(), dropout.threshold) if dropout else (0, _ALL)
        shape, threads = _attention(scores, layout), torch.get_num_threads()
        self._call("softmax", scores, after, layout.lengths, *shape, *draw, threads)
        return scores if after is None else after, Probabilities(scores, after)

    def dropped(self, kept: Probabilities) -> Tensor:
        return kept.before if kept.after is None else kept.after

    def softmax_backward(self, gradient: Tensor, layout: Ragged, kept: Probabilities) -> Tensor:
        given = (gradient, kept.before, self.dropped(kept), layout.lengths)
        shape = _attention(gradient, layout)
        self._call("softmax_backward", *given, *shape, torch.get_num_threads())
        return gradient

    def gelu(
        self, u: Tensor, bias: Tensor | None, *, differentiable: bool, output_needed: bool
    ) -> tuple[Tensor, Activation]:
        """Works in place; computes the slope in the same pass, rounded to bf16."""
        slope = torch.empty_like(u) if differentiable else None
        self._call("gelu", u, bias, slope, *u.shape, torch.get_num_threads())
        return u, Activation(u if output_needed else None, slope)

    def activated(self, kept: Activation) -> Tensor:
        assert kept.output is not None
        return kept.output

    def gelu_backward(self, gradient: Tensor, kept: Activation) -> tuple[Tensor, Tensor | None]:
        (rows, width), threads = gradient.shape, torch.get_num_threads()
        sums = torch.zeros(threads, width, dtype=torch.float32)
        self._call("gelu_backward", gradient, kept.kept, sums, rows, width, threads)
        return gradient, sums[0]

    def add_norm(
        self,
        stream: Tensor,
        branch: Tensor,
        bias: Tensor | None,
        norm: nn.LayerNorm,
        dropout: Dropout | None,
        *,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Normed]:
        """Writes the sum (or, without gradients, the result) over `stream`.

        The gradient draws the same dropout bits again.
        """
        z, low = stream.contiguous(), torch.empty_like(branch)
        y = torch.empty_like(z) if differentiable else z
        mean, deviation = y.new_empty(2, len(y))
        seed = draw_seed() if dropout else 0
        given = (branch, bias, norm.weight, norm.bias)
        found = (z, y, low, mean, deviation)
        draw = _draw(dropout, seed)
        self._call("add_norm", *given, *found, *y.shape, norm.eps, *draw, torch.get_num_threads())
        return y, low, Normed(z, mean, deviation, dropout, seed)

    def add_norm_backward(
        self,
        gradient: Tensor,
        more: Tensor | None,
        norm: nn.LayerNorm,
        kept: Normed,
        dtype: torch.dtype,
    ) -> NormGradients:
        """Overwrites the tensors in `kept`."""
        assert isinstance(kept.dropped, int)
        stream, threads = kept.z, torch.get_num_threads()
        branch = torch.empty_like(stream, dtype=dtype)
        sums = stream.new_zeros(threads, 3, stream.shape[1])
        given = (gradient.contiguous(), more, kept.mean, kept.inverse_deviation, norm.weight)
        found, draw = (stream, branch, sums), _draw(kept.dropout, kept.dropped)
        self._call("add_norm_backward", *given, *found, *stream.shape, *draw, threads)
        of_weight, of_bias, of_branch = sums[0]
        own = [(norm.weight, of_weight), (norm.bias, of_bias)]
        trained = [found for parameter, found in own if parameter.requires_grad]
        return NormGradients(stream, branch, trained, of_branch)

    def column_sums(self, x: Tensor) -> Tensor:
        """Sums in fp32."""
        threads = torch.get_num_threads()
        sums = torch.zeros(threads, x.shape[1], dtype=torch.float32)
        self._call("column_sums", x.contiguous(), sums, *x.shape, threads)
        return sums[0]

    def add_(self, x: Tensor, more: Tensor) -> Tensor:
        self._call("add", x, more.contiguous(), x.numel(), torch.get_num_threads())
        return x


def _address(tensor: Tensor, kind: str) -> int:
    """Return the address of a tensor's data, which is all that a kernel gets."""
    assert tensor.dtype == _POINTERS[kind], (kind, tensor.dtype)
    assert tensor.is_contiguous(), (kind, tensor.shape, tensor.stride())
    return tensor.data_ptr()


def _attention(scores: Tensor, layout: Ragged) -> tuple[int, int, int, int]:
    """Return the numbers of sequences, heads, queries and keys."""
    pairs, queries, length = scores.shape
    assert length % LENGTH_MULTIPLE == 0, length
    return layout.size, pairs // layout.size, queries, length


def _draw(dropout: Dropout | None, seed: int) -> tuple[float, int, int]:
    """Return scale, seed and threshold."""
    return (dropout.scale, seed, dropout.threshold) if dropout else (1.0, 0, _ALL)

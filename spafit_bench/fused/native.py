"""`Kernels` in C for bf16 on a CPU, compiled when the package is installed (`kernels.c`).

A pass over memory instead of three to six, and dropout bits drawn on all threads and drawn again
for the gradient instead of kept. Without a C compiler at installation, and on other processors,
PyTorch's operations do the same, slower.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from spafit_bench.fused.dropout import Dropout, draw_seed
from spafit_bench.fused.kernels import Kernels, Normed, NormGradients
from spafit_bench.numerics import Numerics, has_bf16_instructions
from spafit_bench.ragged import Ragged

SWITCH = "SPAFIT_BENCH_KERNELS"
"""`torch` in this environment variable does without."""

_ALL = 1 << 15
"""The threshold that keeps everything; see `Dropout`."""
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}
_SIGNATURES = {
    "add_norm": "pppppppppnnffnnn",
    "add_norm_backward": "pppppppppppnnfnnn",
    "split_heads": "ppppnnnnnfn",
    "join_heads": "ppppnnnnnfnn",
    "softmax": "pppnnnnnnn",
    "softmax_backward": "ppppnnnnn",
    "gelu": "pppnn",
    "gelu_backward": "pppnnn",
    "column_sums": "ppnnn",
    "add": "ppnn",
}
"""Arguments: pointers, integers, floats."""


def choose_kernels(numerics: Numerics) -> Kernels:
    """Return the fastest kernels for a device and a precision."""
    return Kernels() if why_not_native(numerics) else NativeKernels(_library())


def why_not_native(numerics: Numerics) -> str | None:
    """Return why compiled kernels do not serve this device and precision; None if they do."""
    if numerics.device.type != "cpu" or numerics.dtype != torch.bfloat16:
        return "they are for bf16 on a CPU"
    if os.environ.get(SWITCH) == "torch":
        return f"{SWITCH}=torch"
    if not has_bf16_instructions():
        return "this processor has no AVX-512 with bf16"
    if _find() is None:
        return "no C compiler was there at installation"
    try:
        _library()
    except OSError as error:
        return f"they cannot be loaded: {error}"
    return None


def _find() -> str | None:
    spec = importlib.util.find_spec("spafit_bench.fused._kernels")
    return spec.origin if spec else None


@cache
def _library() -> ctypes.CDLL:
    for openmp in _openmp_of_torch():  # one pool of threads for both
        ctypes.CDLL(str(openmp), mode=ctypes.RTLD_GLOBAL)
    loaded = ctypes.CDLL(_find())
    for name, signature in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = [_KINDS[kind] for kind in signature], None
    return loaded


def _openmp_of_torch() -> list[Path]:
    package = Path(torch.__file__).parent
    folders = (package / "lib", package.with_name("torch.libs"))
    return [path for folder in folders for path in sorted(folder.glob("libgomp*.so*"))]


class NativeKernels(Kernels):
    """The compiled ones; tensors are contiguous, in bf16 or fp32 as they are in `Kernels`."""

    name = "native"

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def split(
        self, x: Tensor, layout: Ragged, num_heads: int, count: int, *, scale: float = 1.0
    ) -> Tensor:
        """Do `Kernels.split`, with zero past the end of a sequence."""
        x, head_size = x.contiguous(), x.shape[1] // count // num_heads
        apart = x.new_empty(count, layout.size * num_heads, layout.length, head_size)
        self.library.split_heads(
            x.data_ptr(),
            apart.data_ptr(),
            layout.starts.data_ptr(),
            layout.lengths.data_ptr(),
            layout.size,
            layout.length,
            count,
            num_heads,
            head_size,
            scale,
            torch.get_num_threads(),
        )
        return apart

    def split_gradient(self, x: Tensor, layout: Ragged, num_heads: int, *, scale: float) -> Tensor:
        """Do `Kernels.split_gradient`."""
        return self.split(x, layout, num_heads, 1, scale=scale)[0]

    def join(self, heads: Tensor, layout: Ragged, *, scale: float = 1.0) -> Tensor:
        """Do `Kernels.join`, with zero in rows of no sequence."""
        heads = heads.contiguous()
        count, pairs, length, head_size = heads.shape
        num_heads = pairs // layout.size
        x = heads.new_empty(layout.num_rows, count * num_heads * head_size)
        self.library.join_heads(
            heads.data_ptr(),
            x.data_ptr(),
            layout.starts.data_ptr(),
            layout.lengths.data_ptr(),
            layout.size,
            length,
            count,
            num_heads,
            head_size,
            scale,
            layout.num_rows,
            torch.get_num_threads(),
        )
        return x

    def softmax(
        self, scores: Tensor, layout: Ragged, dropout: Dropout | None
    ) -> tuple[Tensor, Tensor]:
        """Do `Kernels.softmax`; probabilities take the place of the scores."""
        pairs, queries, length = scores.shape
        kept = torch.empty_like(scores) if dropout else scores
        self.library.softmax(
            scores.data_ptr(),
            kept.data_ptr() if dropout else None,
            layout.lengths.data_ptr(),
            layout.size,
            pairs // layout.size,
            queries,
            length,
            draw_seed() if dropout else 0,
            dropout.threshold if dropout else _ALL,
            torch.get_num_threads(),
        )
        return scores, kept

    def softmax_backward(
        self, gradient: Tensor, layout: Ragged, probabilities: Tensor, kept: Tensor
    ) -> Tensor:
        """Do `Kernels.softmax_backward`, in place."""
        pairs, queries, length = gradient.shape
        self.library.softmax_backward(
            gradient.data_ptr(),
            probabilities.data_ptr(),
            kept.data_ptr(),
            layout.lengths.data_ptr(),
            layout.size,
            pairs // layout.size,
            queries,
            length,
            torch.get_num_threads(),
        )
        return gradient

    def gelu(self, u: Tensor, *, differentiable: bool) -> tuple[Tensor, Tensor]:
        """Do `Kernels.gelu`; its slope, in bf16, is what is kept."""
        y, slope = torch.empty_like(u), torch.empty_like(u) if differentiable else u
        self.library.gelu(
            u.data_ptr(),
            y.data_ptr(),
            slope.data_ptr() if differentiable else None,
            u.numel(),
            torch.get_num_threads(),
        )
        return y, slope

    def gelu_backward(self, gradient: Tensor, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        """Do `Kernels.gelu_backward`, in place."""
        (rows, width), threads = gradient.shape, torch.get_num_threads()
        sums = torch.zeros(threads, width)
        pointers = (gradient.data_ptr(), kept.data_ptr(), sums.data_ptr())
        self.library.gelu_backward(*pointers, rows, width, threads)
        return gradient, sums.sum(0)

    def add_norm(
        self,
        stream: Tensor,
        branch: Tensor,
        norm: nn.LayerNorm,
        dropout: Dropout | None,
        *,
        differentiable: bool,
    ) -> tuple[Tensor, Tensor, Normed]:
        """Do `Kernels.add_norm`; the mask is drawn again for the gradient."""
        rows, width = branch.shape
        stream, y = stream.contiguous(), torch.empty_like(branch, dtype=torch.float32)
        z = torch.empty_like(y) if differentiable else y
        low, mean, deviation = torch.empty_like(branch), *stream.new_empty(2, rows)
        seed = draw_seed() if dropout else 0
        self.library.add_norm(
            stream.data_ptr(),
            branch.data_ptr(),
            norm.weight.data_ptr(),
            norm.bias.data_ptr(),
            z.data_ptr() if differentiable else None,
            y.data_ptr(),
            low.data_ptr(),
            mean.data_ptr(),
            deviation.data_ptr(),
            rows,
            width,
            norm.eps,
            dropout.scale if dropout else 1.0,
            seed,
            dropout.threshold if dropout else _ALL,
            torch.get_num_threads(),
        )
        return y, low, Normed(z, mean, deviation, dropout, seed)

    def add_norm_backward(
        self,
        gradient: Tensor,
        more: Tensor | None,
        norm: nn.LayerNorm,
        kept: Normed,
        dtype: torch.dtype,
    ) -> NormGradients:
        """Do `Kernels.add_norm_backward`."""
        (rows, width), threads = kept.z.shape, torch.get_num_threads()
        gradient = gradient.contiguous()
        stream, branch = torch.empty_like(kept.z), torch.empty_like(kept.z, dtype=dtype)
        sums = kept.z.new_zeros(3, threads, width)
        assert isinstance(kept.dropped, int)
        self.library.add_norm_backward(
            gradient.data_ptr(),
            None if more is None else more.data_ptr(),
            kept.z.data_ptr(),
            kept.mean.data_ptr(),
            kept.inverse_deviation.data_ptr(),
            norm.weight.data_ptr(),
            stream.data_ptr(),
            branch.data_ptr(),
            *(part.data_ptr() for part in sums),
            rows,
            width,
            kept.dropout.scale if kept.dropout else 1.0,
            kept.dropped,
            kept.dropout.threshold if kept.dropout else _ALL,
            threads,
        )
        of_weight, of_bias, of_branch = sums.sum(1)
        own = [(norm.weight, of_weight), (norm.bias, of_bias)]
        trained = [gradient for parameter, gradient in own if parameter.requires_grad]
        return NormGradients(stream, branch, trained, of_branch)

    def column_sums(self, x: Tensor) -> Tensor:
        """Do `Kernels.column_sums` in fp32."""
        x, (rows, width), threads = x.contiguous(), x.shape, torch.get_num_threads()
        sums = torch.zeros(threads, width)
        self.library.column_sums(x.data_ptr(), sums.data_ptr(), rows, width, threads)
        return sums.sum(0)

    def add_(self, x: Tensor, more: Tensor) -> Tensor:
        """Do `Kernels.add_`."""
        more = more.contiguous()
        self.library.add(x.data_ptr(), more.data_ptr(), x.numel(), torch.get_num_threads())
        return x

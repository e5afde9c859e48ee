"""What pyproject.toml cannot say: kernels that are compiled where that is possible.

Without a compiler, or on another processor, PyTorch's operations do the same, slower. OpenMP is
not linked: PyTorch's own is found when the kernels are loaded (spafit_bench/fused/native.py).
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "spafit_bench.fused._kernels",
            ["spafit_bench/fused/kernels.c"],
            extra_compile_args=["-O3", "-march=x86-64-v4", "-mavx512bf16", "-fopenmp"],
            optional=True,
        )
    ]
)

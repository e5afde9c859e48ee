"""What pyproject.toml cannot say: kernels that are compiled where that is possible.

Without a compiler, or on another processor, PyTorch's operations do the same, slower. OpenMP is
not linked: PyTorch's own is found when the kernels are loaded (models/fused/native.py).
"""

import hashlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

KERNELS = "spafit_bench/models/fused/kernels.c"
SOURCE = hashlib.sha256((Path(__file__).parent / KERNELS).read_bytes()).hexdigest()
FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16", "fma")

setup(
    packages=[*find_packages(include=["spafit_bench", "spafit_bench.*"]), "spafit_bench.configs"],
    ext_modules=[
        Extension(
            "spafit_bench.models.fused._kernels",
            [KERNELS],
            define_macros=[("SOURCE", f'"{SOURCE}"')],
            extra_compile_args=["-O3", "-fopenmp", *(f"-m{name}" for name in FEATURES)],
            depends=["setup.py"],
            optional=True,
            py_limited_api=True,  # nothing of Python is in it
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)

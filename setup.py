"""Compiles the kernels for processors with AVX-512 and with AVX2, if there is a compiler; without one the package is
complete too."""

import platform
import sys

from setuptools import Extension, setup

FOLDER = "src/capsnet/kernels"
LEVELS = {
    "_avx512": ["-march=x86-64-v4", "-mtune=icelake-server", "-mprefer-vector-width=512"],
    "_avx2": ["-march=x86-64-v3"],
}

kernels = [
    Extension(
        f"capsnet.kernels.{name}",
        [f"{FOLDER}/{part}.c" for part in ("parallel", "products", "routing", "squash")],
        depends=[f"{FOLDER}/parallel.h", f"{FOLDER}/simd.h"],
        # `capsnet.kernels` loads only what the processor can run.
        extra_compile_args=["-O3", "-std=gnu11", *flags],
        optional=True,
    )
    for name, flags in LEVELS.items()
]
fitting = sys.platform.startswith("linux") and platform.machine() == "x86_64"

setup(ext_modules=kernels if fitting else [])

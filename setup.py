"""Compiles the kernels for processors with AVX-512, if there is a compiler; without one the package is complete too."""

import platform
import sys

from setuptools import Extension, setup

FOLDER = "src/capsnet/kernels"

kernels = Extension(
    "capsnet.kernels._compiled",
    [f"{FOLDER}/parallel.c", f"{FOLDER}/products.c", f"{FOLDER}/routing.c"],
    depends=[f"{FOLDER}/parallel.h"],
    # Only processors that have all of x86-64-v4 ever load this; `capsnet.kernels` looks before it does.
    extra_compile_args=["-O3", "-march=x86-64-v4", "-mtune=icelake-server", "-mprefer-vector-width=512", "-std=gnu11"],
    optional=True,
)
fitting = sys.platform.startswith("linux") and platform.machine() == "x86_64"

setup(ext_modules=[kernels] if fitting else [])

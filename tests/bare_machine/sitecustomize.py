"""Python as it is on the machine that docs/gpu.md describes: of what is installed here, it finds what is there too.

In effect for processes with this folder on their PYTHONPATH.
"""

import sys
from importlib.machinery import PathFinder

THERE = [
    "_pytest",
    "_yaml",
    "absl",
    "attr",
    "attrs",
    "click",
    "cloudpickle",
    "contourpy",
    "cycler",
    "dateutil",
    "einops",
    "execnet",
    "filelock",
    "fontTools",
    "fsspec",
    "functorch",
    "hypothesis",
    "iniconfig",
    "jaxtyping",
    "jinja2",
    "joblib",
    "kiwisolver",
    "lightning",
    "lightning_utilities",
    "markdown_it",
    "markupsafe",
    "matplotlib",
    "mdurl",
    "mpl_toolkits",
    "mpmath",
    "networkx",
    "numpy",
    "packaging",
    "pandas",
    "PIL",
    "pluggy",
    "py",
    "pygments",
    "pylab",
    "pyparsing",
    "pytest",
    "pytorch_lightning",
    "pytest_timeout",
    "rich",
    "safetensors",
    "scipy",
    "setuptools",
    "six",
    "sklearn",
    "sortedcontainers",
    "sympy",
    "threadpoolctl",
    "torch",
    "torchgen",
    "torchmetrics",
    "tqdm",
    "triton",
    "typer",
    "typing_extensions",
    "typing_inspect",
    "wadler_lindig",
    "xdist",
    "yaml",
    "_distutils_hack",
]
CARRIED = ["docstring_parser", "platformdirs", "typeguard", "tyro"]  # by: make gpu-wheels


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        spec = super().find_spec(fullname, path, target)
        if path is None and spec and "site-packages" in str(spec.origin) and fullname not in (*THERE, *CARRIED):
            return None
        return spec


sys.meta_path[sys.meta_path.index(PathFinder)] = Bare

"""Python as it is on the machine that docs/gpu.md describes: of what is installed here, it finds what is there too.

In effect for processes with this folder on their PYTHONPATH.
"""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

THERE = set(Path(__file__).with_name("there.txt").read_text().split())
CARRIED = {"docstring_parser", "platformdirs", "typeguard", "tyro"}
"""By `make gpu-wheels`."""


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        spec = super().find_spec(fullname, path, target)
        if path is None and spec and "site-packages" in str(spec.origin) and fullname not in THERE | CARRIED:
            return None
        return spec


sys.meta_path[sys.meta_path.index(PathFinder)] = Bare

"""Python as on the machine of docs/gpu.md: of what is installed here, it finds what is there or is carried along.

In effect for processes with this folder on their PYTHONPATH.
"""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

FOLDER = Path(__file__).parent
FOUND = {name for file in ("there.txt", "carried.txt") for name in (FOLDER / file).read_text().split()}


class Bare(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        spec = super().find_spec(fullname, path, target)
        if path is None and spec and "site-packages" in str(spec.origin) and fullname not in FOUND:
            return None
        return spec


sys.meta_path[sys.meta_path.index(PathFinder)] = Bare

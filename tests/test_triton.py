"""Triton's kernels against float64, without a graphics card.

Triton's interpreter does what a kernel says, in NumPy, in a process of its own (`interpreted.py`): it replaces parts of
Triton for good. What it cannot show are the limits of a card and the order in which its threads come;
`scripts/gpu_routing.py` checks those.
"""

import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:
    pytest.skip("Triton is not installed: there is none for this system", allow_module_level=True)
if tuple(map(int, metadata.version("triton").split(".")[:2])) < (3, 7):
    pytest.skip("the interpreter of Triton before 3.7 fails with NumPy 2.4", allow_module_level=True)


def interpret(*names):
    command = [sys.executable, Path(__file__).with_name("interpreted.py"), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split() == list(names), done.stderr


def test_routing_is_that_of_float64():
    interpret("cases")


def test_routing_by_all_who_ask_for_it():
    interpret("public_function", "huge_and_none", "half_precision_passes", "compiled", "memory")


def test_squash_is_that_of_float64():
    interpret("squashing")

"""Where to compute, and how a training step is computed there."""

import importlib.util
import shutil
from collections.abc import Callable
from typing import Literal

import torch

from capsnet.errors import InputError
from capsnet.models import Model

_WORTH_COMPILING = 5000
"""Training steps that repay compiling. An estimate: no GPU was at hand to measure it."""
_WORTH_A_GRAPH = 50
"""Training steps that repay the warm-up before a CUDA graph is captured."""


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto` is a GPU if there is one, else the CPU. Raises `InputError` for a device that is not there."""
    if isinstance(name, torch.device):
        return name
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if name not in present:
        raise InputError(f"unknown device {name!r}; there are: auto, {', '.join(present)}")
    if not present[name]:
        here = ", ".join(kind for kind, there in present.items() if there)
        raise InputError(f"this machine has no device {name!r} that PyTorch can use; it has: {here}")
    return torch.device(name)


def training_precision(device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    """As Lightning names it: float32, on a GPU with bfloat16 where that is enough."""
    return "bf16-mixed" if device.type == "cuda" else "32-true"


def has_compiler(device: torch.device) -> bool:
    """Whether `torch.compile` can make kernels for this GPU: it wants Triton, and that a C compiler."""
    there = any(map(shutil.which, ("cc", "gcc", "clang")))
    return device.type == "cuda" and there and importlib.util.find_spec("triton") is not None


def training_loss(model: Model, device: torch.device, steps: int) -> Callable:
    """`model.loss`, for so many steps on batches of one size.

    On a GPU it is compiled, which fuses what lies between the convolutions.
    """
    if steps < _WORTH_COMPILING or not has_compiler(device):
        return model.loss
    return torch.compile(model.loss, dynamic=False)


def worth_a_graph(device: torch.device, steps: int) -> bool:
    """Whether to capture the whole step as a CUDA graph (`capsnet.cuda_graph`)."""
    return device.type == "cuda" and steps >= _WORTH_A_GRAPH

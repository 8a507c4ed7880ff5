"""Where to compute, and how a training step is computed there."""

from typing import Literal

import torch

from capsnet.errors import InputError

STEPS_AT_ONCE = 50
"""Training steps that a GPU takes in one go."""


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


def seed_generators(seed: int, device: torch.device) -> None:
    """What `torch.manual_seed` does for the CPU and one device.

    That seeds every kind of device that PyTorch knows; for each that is not there it keeps the call, with a written
    stack, for the day on which it is. At every step this takes longer than a GPU for the step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[number].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def training_precision(device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    """As Lightning names it: float32, on a GPU with bfloat16 where that is enough."""
    return "bf16-mixed" if device.type == "cuda" else "32-true"


def worth_at_once(device: torch.device, steps: int) -> int:
    """How many steps to take in one go (`capsnet.training.GroupedTraining`); 1 where a few are all of the run."""
    return STEPS_AT_ONCE if device.type == "cuda" and steps >= STEPS_AT_ONCE else 1

"""Where to compute."""

import torch

from capsnet.errors import InputError


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

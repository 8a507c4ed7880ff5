"""Routing alone, with stored votes as a textbook does it and without."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from capsnet import routing
from capsnet.benchmark import textbook
from capsnet.benchmark.measure import forget_peak, peak_memory, synchronize

MANY_CAPSULES = (32, 3872, 196)
"""Images, capsules, and capsules above them; each capsule has 8 dimensions, those above 16."""


def time_routing(
    device: torch.device, sizes: tuple[int, int, int] = MANY_CAPSULES, repeats: int = 10
) -> dict[str, Any]:
    """Median milliseconds forward and backward on both sides, and the extra memory as multiples of the logits.

    Extra is what is held at the peak beside the arguments and their gradients; the logits are those of float32.
    """
    batch, inputs, outputs = sizes
    torch.manual_seed(0)
    u = (torch.randn(batch, inputs, 8, device=device) / 8**0.5 / 2).requires_grad_()
    weight = (torch.randn(outputs, inputs, 8, 16, device=device) / 10).requires_grad_()
    logits = 4 * batch * inputs * outputs / 1e6
    found: dict[str, Any] = {"batch_size": batch, "in_capsules": inputs, "out_capsules": outputs, "logits_mb": logits}
    for name, function in {"capsnet": routing.route, "textbook": textbook.route}.items():
        step = partial(_forward_backward, function, u, weight)
        for _ in range(2):
            step()
        u.grad = weight.grad = None
        synchronize(device)
        forget_peak(device)
        before = peak_memory(device) + (u.nbytes + weight.nbytes) / 1e6
        step()
        found[f"{name}_logits"] = max(0.0, peak_memory(device) - before) / logits
        found[name] = 1000 * statistics.median(_seconds(step, device) for _ in range(repeats))
        u.grad = weight.grad = None
    if device.type == "cuda":
        torch.cuda.empty_cache()  # other processes want the memory
    return found | {"ratio": found["textbook"] / found["capsnet"]}


def _forward_backward(function: Callable[..., Tensor], u: Tensor, weight: Tensor) -> None:
    u.grad = weight.grad = None
    out = function(u, weight)
    out.backward(torch.ones_like(out))


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - started

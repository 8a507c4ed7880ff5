"""Equation 1 by the compiled kernel, for vectors whose numbers do not lie side by side; `squash.c` has the formulas."""

import ctypes
import math

import torch
from jaxtyping import Float
from torch import Tensor

from capsnet.kernels import parts, run

_SMALL = 2**15  # numbers that one thread alone is quicker with
_SHORTEST = 8  # numbers side by side, of different vectors, for which it is worth while


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("s", "g", "to")),
        *((name, ctypes.c_long) for name in ("outer", "dim", "inner", "parts")),
    ]


def layout(s: Tensor, dim: int) -> tuple[int, int, int] | None:
    """Sizes ``(outer, dim, inner)`` as the numbers lie in memory; None where the kernel is of no use."""
    if s.dim() == 0 or s.numel() == 0:
        return None
    slowest_first = sorted(range(s.dim()), key=s.stride, reverse=True)
    place = slowest_first.index(dim % s.dim())
    lying = s.permute(slowest_first)
    outer, inner = math.prod(lying.shape[:place]), math.prod(lying.shape[place + 1 :])
    return (outer, s.shape[dim], inner) if inner >= _SHORTEST and lying.is_contiguous() else None


def squash(s: Float[Tensor, "*shape"], sizes: tuple[int, int, int]) -> Float[Tensor, "*shape"]:
    """Squashed vectors, which lie as ``s`` does; ``sizes`` are its `layout`."""
    return _run(s, None, sizes)


def squash_backward(
    s: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], sizes: tuple[int, int, int]
) -> Float[Tensor, "*shape"]:
    """The gradient for ``s``."""
    return _run(s, grad if grad.stride() == s.stride() else torch.empty_like(s).copy_(grad), sizes)


def _run(s: Tensor, grad: Tensor | None, sizes: tuple[int, int, int]) -> Tensor:
    to = torch.empty_like(s)
    tasks = 1 if s.numel() < _SMALL else parts(sizes[0])
    run("capsnet_squash", _Job(s.data_ptr(), None if grad is None else grad.data_ptr(), to.data_ptr(), *sizes, tasks))
    return to

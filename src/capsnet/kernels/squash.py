"""Equation 1 by the compiled kernel, for vectors whose numbers do not lie side by side; `squash.c` has the formulas."""

import ctypes
import math

import torch
from jaxtyping import Float
from torch import Tensor

from capsnet.kernels import address, parts, run

_SMALL = 2**15  # numbers that one thread alone is quicker with
_SHORTEST = 8  # numbers side by side, of different vectors, for which it is worth while


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("s", "g", "to")),
        *((name, ctypes.c_long) for name in ("outer", "dim", "inner", "parts")),
    ]


def order(s: Tensor, dim: int) -> list[int] | None:
    """The dimensions as they lie in memory, the slowest first; None where the kernel is of no use."""
    if s.dim() == 0 or s.numel() == 0:
        return None
    slowest_first = sorted(range(s.dim()), key=s.stride, reverse=True)
    lying = s.permute(slowest_first)
    inner = math.prod(lying.shape[slowest_first.index(dim % s.dim()) + 1 :])
    return slowest_first if inner >= _SHORTEST and lying.is_contiguous() else None


def squash(s: Float[Tensor, "*shape"], dim: int, order: list[int]) -> Float[Tensor, "*shape"]:
    """Squashed vectors, which lie as ``s`` does, in that `order`."""
    return _run(s, None, dim, order)


def squash_backward(
    s: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], dim: int, order: list[int]
) -> Float[Tensor, "*shape"]:
    """The gradient for ``s``."""
    return _run(s, grad.permute(order).contiguous(), dim, order)


def _run(s: Tensor, grad: Tensor | None, dim: int, order: list[int]) -> Tensor:
    lying, place = s.permute(order), order.index(dim % s.dim())
    to = torch.empty_like(s)
    outer, inner = math.prod(lying.shape[:place]), math.prod(lying.shape[place + 1 :])
    addresses = address(lying), None if grad is None else address(grad), address(to.permute(order))
    run("capsnet_squash", _Job(*addresses, outer, s.shape[dim], inner, 1 if s.numel() < _SMALL else parts(outer)))
    return to

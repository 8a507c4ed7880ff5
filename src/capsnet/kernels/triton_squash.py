"""Equation 1 in Triton, for vectors whose numbers lie side by side: one pass over memory each way.

A vector is ``s = scale · x``, where the largest number of ``x`` is ±1. With ``m = ‖x‖`` and ``n = scale · m``::

    v      = n / (1 + n²) · s
    grad s = n / (1 + n²) · (g + (1 − n²) / (1 + n²) · (g · x) / m² · x)

The fractions are expanded by ``scale²`` or by its inverse, whichever is below one, so that nothing overflows.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

_NUMBERS = 2048  # that one program squashes


def squash(s: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Squashed vectors."""
    return _run(s.contiguous(), None)


def squash_backward(s: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The gradient for ``s``."""
    return _run(s.contiguous(), grad.contiguous())


def _run(s: Tensor, grad: Tensor | None) -> Tensor:
    to = torch.empty_like(s)
    dim = s.shape[-1]
    rows, block_dim = s.numel() // dim, triton.next_power_of_2(dim)
    block_rows = max(1, _NUMBERS // block_dim)
    with torch.cuda.device_of(s):
        _kernel[(triton.cdiv(rows, block_rows),)](
            s, grad, to, rows, DIM=dim, GRAD=grad is not None, BLOCK_ROWS=block_rows, BLOCK_DIM=block_dim
        )
    return to


@triton.jit(do_not_specialize=("rows",))
@no_type_check
def _kernel(
    s, grad, to, rows, DIM: tl.constexpr, GRAD: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    number = tl.arange(0, BLOCK_DIM)[None, :]
    at, there = row * DIM + number, (row < rows) & (number < DIM)
    x = tl.load(s + at, mask=there, other=0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 1), 1.1754943508222875e-38)[:, None]  # the smallest normal number
    x = x / scale
    inverse = 1 / scale
    squared = tl.sum(x * x, 1)[:, None]
    small = tl.minimum(scale, 1.0) * tl.minimum(scale, 1.0)
    large = tl.minimum(inverse, 1.0) * tl.minimum(inverse, 1.0)
    below = large + small * squared  # 1 + n², expanded
    if GRAD:
        g = tl.load(grad + at, mask=there, other=0).to(tl.float32)
        along = tl.sum(g * x, 1)[:, None] / tl.where(squared > 0, squared, 1)
        g = g + (large - small * squared) / below * along * x
        x = tl.sqrt(squared) * (tl.minimum(scale, inverse) / below) * g
    else:
        x = x * (tl.sqrt(squared) * (small / below))
    tl.store(to + at, x.to(to.dtype.element_ty), mask=there)

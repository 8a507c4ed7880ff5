"""Passes of routing by the compiled kernel. `routing.c` has the layouts; `capsnet.routing` what the passes are for."""

import ctypes

import torch
from jaxtyping import Float
from torch import Tensor

from capsnet.kernels import lanes, run

DIM = -2  # of a capsule's numbers, in the layout of the output capsules: (blocks, J, D, lanes)
_PARTS_A_THREAD = 4  # so that a thread which another program holds up does not hold up all


class _Pass(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("u", "weight", "total", "g", "total_rows", "g_rows")),
        *((name, ctypes.c_void_p) for name in ("sum", "grad_u", "grad_weight", "scratch")),
        *((name, ctypes.c_long) for name in ("blocks", "I", "J", "d", "D", "parts", "scratch_size")),
        *((name, ctypes.c_int) for name in ("leaky", "constant")),
    ]


def arrange(x: Float[Tensor, "batch capsules dim"]) -> Float[Tensor, "blocks capsules dim lanes"]:
    """As many images side by side in memory as a vector has lanes; zeros fill up the last block."""
    missing = -len(x) % lanes()
    if missing:
        x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
    return x.unflatten(0, (-1, lanes())).permute(0, 2, 3, 1).contiguous()


def restore(x: Float[Tensor, "blocks capsules dim lanes"], batch: int) -> Float[Tensor, "batch capsules dim"]:
    """Back from `arrange`."""
    return x.permute(0, 3, 1, 2).flatten(0, 1)[:batch]


arrange_inputs, restore_inputs = arrange, restore


def sum_votes(
    u: Float[Tensor, "blocks i d lanes"],
    weight: Float[Tensor, "j i d e"],
    total: Float[Tensor, "blocks j e lanes"] | None,
    leaky: bool,
) -> Float[Tensor, "blocks j e lanes"]:
    """``Σ_i c û``, with the couplings that follow from ``total``; without it, all are equal."""
    return _run("capsnet_sum_votes", u, weight, total, leaky)


def sum_votes_backward(
    u: Float[Tensor, "blocks i d lanes"],
    weight: Float[Tensor, "j i d e"],
    total: Float[Tensor, "blocks j e lanes"] | None,
    grad: Float[Tensor, "blocks j e lanes"],
    leaky: bool,
    constant: bool,
    grad_u: Float[Tensor, "blocks i d lanes"] | None,
    grad_weight: Float[Tensor, "j i d e"] | None,
) -> Float[Tensor, "blocks j e lanes"] | None:
    """Add the gradients of `sum_votes` to ``grad_u`` and ``grad_weight``; return that of ``total``, if it has one."""
    grad_u = torch.zeros_like(u) if grad_u is None else grad_u
    grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight
    summed = _run(
        "capsnet_sum_votes_backward", u, weight, total, leaky, constant, grad.contiguous(), grad_u, grad_weight
    )
    return None if total is None or constant else summed


def _run(name, u, weight, total, leaky, constant=False, grad=None, grad_u=None, grad_weight=None) -> Tensor:
    (j, i, d, e), blocks = weight.shape, len(u)
    parts = min(i, _PARTS_A_THREAD * torch.get_num_threads())
    summed = u.new_zeros(parts, blocks, j, e, lanes())
    scratch = u.new_empty(parts, (j * e + 2 * j + e) * lanes())
    rows = [None if x is None else x.transpose(2, 3).contiguous() for x in (total, grad)] if grad is not None else []
    kept = [u, weight, total, grad, *(rows or [None, None]), summed, grad_u, grad_weight, scratch]
    sizes = (blocks, i, j, d, e, parts, scratch.shape[1])
    job = _Pass(*(None if x is None else x.data_ptr() for x in kept), *sizes, leaky, constant)
    run(name, job)
    return summed.sum(0)

"""Passes of routing by the compiled kernel. `routing.c` has the layouts; `capsnet.routing` what the passes are for."""

import ctypes

import torch
from jaxtyping import Float
from torch import Tensor

from capsnet.kernels import address, lanes, parts, run

DIM = -2  # of a capsule's numbers, in the layout of the output capsules: (blocks, J, D, lanes)


class _Pass(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("u", "weight", "total", "g")),
        *((name, ctypes.c_void_p) for name in ("sum", "grad_u", "grad_weight", "scratch")),
        *((name, ctypes.c_long) for name in ("blocks", "I", "J", "d", "D", "parts", "scratch_size", "totals", "gs")),
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
    return _sums(u, weight, total, None, leaky)


class Gradients:
    """Those of `sum_votes` for inputs and weight, of all iterations, which are added from the last to the first.

    What an iteration hands down to the one before needs the votes alone; inputs and weight wait for all of them, so
    that there is one pass that writes.
    """

    def __init__(
        self,
        u: Float[Tensor, "blocks i d lanes"],
        weight: Float[Tensor, "j i d e"],
        leaky: bool,
        constant: bool,
    ) -> None:
        self.u, self.weight, self.leaky, self.constant = u, weight, leaky, constant
        self.totals: list[Tensor] = []
        self.grads: list[Tensor] = []

    def add(
        self, total: Float[Tensor, "blocks j e lanes"] | None, grad: Float[Tensor, "blocks j e lanes"]
    ) -> Float[Tensor, "blocks j e lanes"] | None:
        """``grad`` is the gradient of the sum; that of ``total``, if it has one."""
        self.grads.append(grad)
        if total is None:
            return None
        self.totals.append(total)
        return None if self.constant else _sums(self.u, self.weight, total, grad.contiguous(), self.leaky)

    def finish(self) -> tuple[Float[Tensor, "blocks i d lanes"], Float[Tensor, "j i d e"]]:
        u, weight = self.u, self.weight
        totals, grads = (torch.stack(x).contiguous() if x else None for x in (self.totals, self.grads))
        grad_u, grad_weight = torch.zeros_like(u), torch.zeros_like(weight)
        counts = len(self.totals), len(self.grads)
        _run(
            "capsnet_gradients", u, weight, totals, grads, None, grad_u, grad_weight, counts, self.leaky, self.constant
        )
        return grad_u, grad_weight


def _sums(u: Tensor, weight: Tensor, total: Tensor | None, grad: Tensor | None, leaky: bool) -> Tensor:
    """Of parts of the input capsules, added up."""
    j, i, _, e = weight.shape
    # Each part has sums of its own, which together are never more than the logits, and less on few threads.
    count = min(parts(i), max(1, i // (4 * e), min(torch.get_num_threads(), i // e)))
    summed = u.new_zeros(count, len(u), j, e, lanes())
    _run("capsnet_sums", u, weight, total, grad, summed, None, None, (1, 1), leaky, False)
    return summed.sum(0)


def _run(name, u, weight, total, grad, summed, grad_u, grad_weight, counts, leaky, constant) -> None:
    j, i, d, e = weight.shape
    count = parts(i) if summed is None else len(summed)
    scratch = u.new_empty(count, (j * e + 2 * counts[0] * j + e) * lanes())
    kept = [u, weight, total, grad, summed, grad_u, grad_weight, scratch]
    sizes = (len(u), i, j, d, e, *scratch.shape, *counts)
    run(name, _Pass(*(None if x is None else address(x) for x in kept), *sizes, leaky, constant))

"""Passes of routing for NVIDIA's graphics cards, in Triton; `capsnet.routing` says what the passes are for.

Every kernel looks at a block of images, a tile of output capsules and one input capsule at a time. Their votes are one
small matrix product, whose result stays in registers. Where one tile is not enough, the softmax is cut as it is in
attention: a first kernel finds what the couplings of an input capsule share, which is the largest of its logits and the
sum of the exponentials, and the others then need the output capsules of their tile alone.

Nothing is added by atomic operations: where several programs contribute to a sum, each has a slice of its own, and
results repeat bit for bit. All tensors have the layout that the user knows: ``u`` is ``(batch, in_capsules, in_dim)``,
what belongs to output capsules is ``(batch, out_capsules, out_dim)``.

The matrix units multiply numbers of 11 bits (tf32). Each number is cut into a large and a small part of so many bits,
and the parts lie side by side along the dimension that is summed: one product is then exact to float32's rounding.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

DIM = -1  # of a capsule's numbers, in the layout of the output capsules

# Of each kernel's programs: images, columns (output capsules times their numbers), how many to aim at (as many as a
# large card runs at once), warps, stages of the pipeline that loads.
SHARES = {"images": 64, "columns": 64, "programs": 264, "num_warps": 8, "num_stages": 2}
SUMS = {"images": 64, "columns": 64, "programs": 264, "num_warps": 8, "num_stages": 2}
SUMS_AT_ONCE = {"images": 64, "columns": 256, "programs": 132, "num_warps": 16, "num_stages": 1}  # one tile is enough
GRADIENTS = {"images": 64, "columns": 32, "programs": 528, "num_warps": 4, "num_stages": 1}
_FEW_PARTS = 8
_LARGEST = 2**14  # numbers of a product's factor, which have to fit into the memory that a program's threads share


def arrange_inputs(inputs: Float[Tensor, "b i d"]) -> Float[Tensor, "b i d"]:
    return inputs.contiguous()


def restore_inputs(u: Float[Tensor, "b i d"], batch: int) -> Float[Tensor, "b i d"]:
    return u


def arrange(v: Float[Tensor, "b j e"]) -> Float[Tensor, "b j e"]:
    return v.contiguous()


def restore(v: Float[Tensor, "b j e"], batch: int) -> Float[Tensor, "b j e"]:
    return v


def sum_votes(
    u: Float[Tensor, "b i d"], weight: Float[Tensor, "j i d e"], total: Float[Tensor, "b j e"] | None, leaky: bool
) -> Float[Tensor, "b j e"]:
    """``Σ_i c û``, with the couplings that follow from ``total``; without it, all are equal."""
    if total is None:
        return _add_up(u, weight, None, None, leaky)[0].div_(len(weight) + leaky)
    return _add_up(u, weight, total, None, leaky)[0]


class Gradients:
    """Those of `sum_votes` for inputs and weight, of all iterations, which are added from the last to the first.

    With ``g`` the gradient of the sum and ``û`` in every place where it stands::

        grad c = û · g,    grad b = c (grad c − Σ_j c grad c),    grad V = Σ_i grad b · û,    grad û = c g + grad b · V

    What an iteration hands down to the one before is ``grad V``; inputs and weight wait for all of them, so that there
    is one pass that writes. ``constant`` couplings have no gradient: ``grad û = c g`` is all.
    """

    def __init__(
        self, u: Float[Tensor, "b i d"], weight: Float[Tensor, "j i d e"], leaky: bool, constant: bool
    ) -> None:
        self.u, self.weight, self.leaky, self.constant = u, weight, leaky, constant
        self.totals: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.shares: list[Tensor] = []
        self.equal: Tensor | None = None

    def add(self, total: Float[Tensor, "b j e"] | None, grad: Float[Tensor, "b j e"]) -> Float[Tensor, "b j e"] | None:
        """``grad`` is the gradient of the sum; that of ``total``, if it has one."""
        if total is None:
            self.equal = grad / (len(self.weight) + self.leaky)
            return None
        self.totals.append(total)
        self.grads.append(grad)
        if self.constant:
            self.shares.append(_shares(self.u, self.weight, total, None, self.leaky))
            return None
        grad_total, shares = _add_up(self.u, self.weight, total, grad, self.leaky)
        assert shares is not None
        self.shares.append(shares)
        return grad_total

    def finish(self) -> tuple[Float[Tensor, "b i d"], Float[Tensor, "j i d e"]]:
        u, weight = self.u, self.weight
        sizes, _, blocks, options = _sizes(u, weight, GRADIENTS)
        totals, grads, shares = (torch.stack(x) if x else None for x in (self.totals, self.grads, self.shares))
        grad_u = u.new_empty(u.shape, dtype=torch.float32)
        grad_weight = weight.new_empty(blocks, *weight.shape)
        per, splits = _cut(u.shape[1], GRADIENTS["programs"] // blocks)
        flags = {"TOTALS": len(self.totals), "EQUAL": self.equal is not None, "CONSTANT": self.constant}
        with torch.cuda.device_of(u):
            _gradients_kernel[(splits, blocks)](
                u, weight, totals, grads, self.equal, shares, grad_u, grad_weight, per, *sizes, **flags, **options
            )
        return grad_u, _sum(grad_weight)


def _shares(
    u: Float[Tensor, "b i d"],
    weight: Float[Tensor, "j i d e"],
    total: Float[Tensor, "b j e"],
    grad: Float[Tensor, "b j e"] | None,
    leaky: bool,
) -> Float[Tensor, "3 b i"]:
    """What the couplings of an input capsule share: the largest logit, the factor of the exponentials, and with
    ``grad`` the mean of ``grad c``, weighted by the couplings."""
    sizes, _, blocks, options = _sizes(u, weight, SHARES)
    per, splits = _cut(u.shape[1], SHARES["programs"] // blocks)
    shares = u.new_empty(3, *u.shape[:2], dtype=torch.float32)
    with torch.cuda.device_of(u):
        _shares_kernel[(splits, blocks)](
            u, weight, total, grad, shares, per, *sizes, LEAKY=leaky, GRAD=grad is not None, **options
        )
    return shares


def _add_up(
    u: Float[Tensor, "b i d"],
    weight: Float[Tensor, "j i d e"],
    total: Float[Tensor, "b j e"] | None,
    grad: Float[Tensor, "b j e"] | None,
    leaky: bool,
) -> tuple[Float[Tensor, "b j e"], Tensor | None]:
    """``Σ_i c û``, with ``grad`` ``Σ_i grad b · û`` and the shares, and without ``total`` ``Σ_i û``."""
    j, i, _, e = weight.shape
    program = SUMS_AT_ONCE
    sizes, tiles, blocks, options = _sizes(u, weight, program)
    at_once = tiles == 1
    if not at_once:
        program = SUMS
        sizes, tiles, blocks, options = _sizes(u, weight, program)
    shares = None
    if total is not None and not at_once:
        shares = _shares(u, weight, total, grad, leaky)
    elif grad is not None:
        shares = u.new_empty(3, len(u), i, dtype=torch.float32)
    # All parts together are never more than the logits, unless those are few.
    per, splits = _cut(i, min(program["programs"] // (blocks * tiles), max(_FEW_PARTS, i // e)))
    parts = weight.new_empty(splits, len(u), j, e)
    flags = {"EQUAL": total is None, "GRAD": grad is not None, "AT_ONCE": at_once, "LEAKY": leaky}
    with torch.cuda.device_of(u):
        _sums_kernel[(splits, blocks, tiles)](u, weight, total, grad, shares, parts, per, *sizes, **flags, **options)
    return _sum(parts), shares


def _sum(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _sizes(u: Tensor, weight: Tensor, program: dict) -> tuple[tuple[int, ...], int, int, dict]:
    """Sizes of the tensors, tiles of output capsules, blocks of images, and the options of a kernel."""
    (batch, i, d), (j, _, _, e) = u.shape, weight.shape
    parts = 4 if u.dtype == torch.float32 else 2
    block_e, block_d = _power_of_2(e), max(16 // parts, _power_of_2(d))
    columns = min(program["columns"], _LARGEST // (parts * block_d))
    block_j = max(1, min(columns // block_e, _power_of_2(j)), 16 // block_e)
    block_b = max(16, min(program["images"], _power_of_2(batch)))
    options = {
        "PARTS": parts,
        "BLOCK_B": block_b,
        "BLOCK_J": block_j,
        "BLOCK_E": block_e,
        "BLOCK_D": block_d,
        "num_warps": program["num_warps"],
        "num_stages": program["num_stages"],
    }
    return (batch, i, j, d, e), -(-j // block_j), -(-batch // block_b), options


def _power_of_2(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _cut(capsules: int, parts: int) -> tuple[int, int]:
    """How many input capsules each part has, and into how many parts that cuts them."""
    per = -(-capsules // max(1, parts))
    return per, -(-capsules // per)


@triton.jit
@no_type_check
def _large(x):
    """The part of a number that the matrix units' 19 bits hold. They hold the rest, too, but for one bit."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _inputs(u, b, i, B, I, D: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr):
    """Input capsules ``i`` of the images, each number twice or, if it is no half-precision one, large and small parts:
    ``(BLOCK_B, PARTS · BLOCK_D)``."""
    k = tl.arange(0, PARTS * BLOCK_D)[None, :]
    d = k % BLOCK_D
    x = tl.load(u + (b[:, None] * I + i) * D + d, mask=(b[:, None] < B) & (d < D), other=0).to(tl.float32)
    if PARTS == 4:
        large = _large(x)
        x = tl.where(k < 2 * BLOCK_D, large, x - large)
    return x


@triton.jit
@no_type_check
def _weights(weight, j, e, i, I, D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr):
    """What they are to be multiplied by, large and small parts in turn: ``(PARTS · BLOCK_D, BLOCK_J · BLOCK_E)``."""
    k = tl.arange(0, PARTS * BLOCK_D)[:, None]
    d = k % BLOCK_D
    w = tl.load(weight + ((j[None, :] * I + i) * D + d) * E + e[None, :], mask=(d < D) & (e[None, :] < E), other=0)
    large = _large(w)
    return tl.where(k // BLOCK_D % 2 == 0, large, w - large)


@triton.jit
@no_type_check
def _agreement(votes, x, BLOCK_B: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_E: tl.constexpr):
    """``û · x`` for each output capsule: ``(BLOCK_B, BLOCK_J)``."""
    return tl.sum(tl.reshape(votes * x, (BLOCK_B, BLOCK_J, BLOCK_E)), 2)


@triton.jit
@no_type_check
def _times(factor, x, BLOCK_B: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_E: tl.constexpr):
    """A factor for each output capsule times its numbers: ``(BLOCK_B, BLOCK_J · BLOCK_E)``."""
    return tl.reshape(factor[:, :, None] * tl.reshape(x, (BLOCK_B, BLOCK_J, BLOCK_E)), (BLOCK_B, BLOCK_J * BLOCK_E))


@triton.jit
@no_type_check
def _outputs(x, b, j, e, B, J: tl.constexpr, E: tl.constexpr):
    """A tile of what belongs to output capsules; zeros where there are none."""
    there = (b[:, None] < B) & (j[None, :] < J) & (e[None, :] < E)
    return tl.load(x + (b[:, None] * J + j[None, :]) * E + e[None, :], mask=there, other=0)


@triton.jit
@no_type_check
def _couplings(agreement, shares, b, i, B, I):
    """From logits. Those of this kernel may differ from the largest one by rounding, which must not overflow."""
    top = tl.load(shares + b * I + i, mask=b < B, other=0)
    scale = tl.load(shares + (B + b) * I + i, mask=b < B, other=0)
    return tl.exp(tl.minimum(agreement - top[:, None], 0)) * scale[:, None]


@triton.jit(do_not_specialize=("per", "B", "I"))
@no_type_check
def _shares_kernel(
    u, weight, total, grad, shares, per, B, I,
    J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, LEAKY: tl.constexpr, GRAD: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    n = tl.arange(0, BLOCK_J * BLOCK_E)
    first = tl.program_id(0) * per
    for i in range(first, tl.minimum(first + per, I)):
        x = _inputs(u, b, i, B, I, D, BLOCK_D, PARTS)
        # The leaky logit is zero, and there from the start.
        top = tl.full((BLOCK_B,), 0.0 if LEAKY else float("-inf"), tl.float32)
        rest = tl.full((BLOCK_B,), 1.0 if LEAKY else 0.0, tl.float32)
        mean = tl.zeros((BLOCK_B,), tl.float32)
        for tile in range(0, J, BLOCK_J):
            j, e = tile + n // BLOCK_E, n % BLOCK_E
            w = _weights(weight, tl.minimum(j, J - 1), e, i, I, D, E, BLOCK_D, PARTS)
            votes = tl.dot(x, w, input_precision="tf32")
            logits = _agreement(votes, _outputs(total, b, j, e, B, J, E), BLOCK_B, BLOCK_J, BLOCK_E)
            logits = tl.where((tile + tl.arange(0, BLOCK_J))[None, :] < J, logits, float("-inf"))
            above = tl.maximum(top, tl.max(logits, 1))
            exponentials = tl.exp(logits - above[:, None])
            shrink = tl.exp(top - above)
            rest = rest * shrink + tl.sum(exponentials, 1)
            if GRAD:
                grad_c = _agreement(votes, _outputs(grad, b, j, e, B, J, E), BLOCK_B, BLOCK_J, BLOCK_E)
                mean = mean * shrink + tl.sum(exponentials * grad_c, 1)
            top = above
        tl.store(shares + b * I + i, top, mask=b < B)
        tl.store(shares + (B + b) * I + i, 1 / rest, mask=b < B)
        if GRAD:
            tl.store(shares + (2 * B + b) * I + i, mean / rest, mask=b < B)


@triton.jit(do_not_specialize=("per", "B", "I"))
@no_type_check
def _sums_kernel(
    u, weight, total, grad, shares, parts, per, B, I,
    J: tl.constexpr, D: tl.constexpr, E: tl.constexpr, PARTS: tl.constexpr,
    EQUAL: tl.constexpr, GRAD: tl.constexpr, AT_ONCE: tl.constexpr, LEAKY: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    n = tl.arange(0, BLOCK_J * BLOCK_E)
    j, e = tl.program_id(2) * BLOCK_J + n // BLOCK_E, n % BLOCK_E
    last = tl.minimum(j, J - 1)  # what is computed for the output capsules that are not there is not stored
    if not EQUAL:
        v = _outputs(total, b, j, e, B, J, E)
    if GRAD:
        g = _outputs(grad, b, j, e, B, J, E)
    s = tl.zeros((BLOCK_B, BLOCK_J * BLOCK_E), tl.float32)
    first = tl.program_id(0) * per
    for i in range(first, tl.minimum(first + per, I)):
        x = _inputs(u, b, i, B, I, D, BLOCK_D, PARTS)
        w = _weights(weight, last, e, i, I, D, E, BLOCK_D, PARTS)
        votes = tl.dot(x, w, input_precision="tf32")
        if EQUAL:
            s += votes
        else:
            factor = _agreement(votes, v, BLOCK_B, BLOCK_J, BLOCK_E)
            if AT_ONCE:
                factor = tl.where(tl.arange(0, BLOCK_J)[None, :] < J, factor, float("-inf"))
                top = tl.max(factor, 1)
                if LEAKY:
                    top = tl.maximum(top, 0)
                factor = tl.exp(factor - top[:, None])
                rest = tl.sum(factor, 1)
                if LEAKY:
                    rest += tl.exp(-top)
                scale = 1 / rest
                factor *= scale[:, None]
            else:
                factor = _couplings(factor, shares, b, i, B, I)
            if GRAD:
                grad_c = _agreement(votes, g, BLOCK_B, BLOCK_J, BLOCK_E)
                if AT_ONCE:
                    mean = tl.sum(factor * grad_c, 1)
                    tl.store(shares + b * I + i, top, mask=b < B)
                    tl.store(shares + (B + b) * I + i, scale, mask=b < B)
                    tl.store(shares + (2 * B + b) * I + i, mean, mask=b < B)
                else:
                    mean = tl.load(shares + (2 * B + b) * I + i, mask=b < B, other=0)
                factor *= grad_c - mean[:, None]
            s += _times(factor, votes, BLOCK_B, BLOCK_J, BLOCK_E)
    there = (b[:, None] < B) & (j[None, :] < J) & (e[None, :] < E)
    part = tl.program_id(0).to(tl.int64)
    tl.store(parts + ((part * B + b[:, None]) * J + j[None, :]) * E + e[None, :], s, mask=there)


@triton.jit(do_not_specialize=("per", "B", "I"))
@no_type_check
def _gradients_kernel(
    u, weight, totals, grads, equal, shares, grad_u, grad_weight, per, B, I,
    J: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    TOTALS: tl.constexpr, EQUAL: tl.constexpr, CONSTANT: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    n = tl.arange(0, BLOCK_J * BLOCK_E)
    k = tl.arange(0, 2 * BLOCK_D)  # large and small parts
    d = k % BLOCK_D
    numbers = tl.arange(0, BLOCK_D)
    part = grad_weight + tl.program_id(1).to(tl.int64) * (J * I * D * E)
    first = tl.program_id(0) * per
    for tile in range(0, J, BLOCK_J):
        j, e = tile + n // BLOCK_E, n % BLOCK_E
        last = tl.minimum(j, J - 1)
        there = (j < J) & (e < E)
        v, g = (), ()
        for t in tl.static_range(TOTALS):
            v = v + (_outputs(totals + t * B * J * E, b, j, e, B, J, E),)
            g = g + (_outputs(grads + t * B * J * E, b, j, e, B, J, E),)
        if EQUAL:
            constant = _outputs(equal, b, j, e, B, J, E)
        else:
            constant = tl.zeros((BLOCK_B, BLOCK_J * BLOCK_E), tl.float32)
        for i in range(first, tl.minimum(first + per, I)):
            x = _inputs(u, b, i, B, I, D, BLOCK_D, PARTS)
            w = _weights(weight, last, e, i, I, D, E, BLOCK_D, PARTS)
            votes = tl.dot(x, w, input_precision="tf32")
            grad_votes = constant
            for t in tl.static_range(TOTALS):
                here = shares + t * 3 * B * I
                c = _couplings(_agreement(votes, v[t], BLOCK_B, BLOCK_J, BLOCK_E), here, b, i, B, I)
                grad_votes += _times(c, g[t], BLOCK_B, BLOCK_J, BLOCK_E)
                if not CONSTANT:
                    mean = tl.load(here + (2 * B + b) * I + i, mask=b < B, other=0)
                    grad_logits = c * (_agreement(votes, g[t], BLOCK_B, BLOCK_J, BLOCK_E) - mean[:, None])
                    grad_votes += _times(grad_logits, v[t], BLOCK_B, BLOCK_J, BLOCK_E)
            large = _large(grad_votes)
            small = grad_votes - large

            there_w = there[:, None] & (d[None, :] < D)
            w = tl.load(weight + ((last[:, None] * I + i) * D + d[None, :]) * E + e[:, None], mask=there_w, other=0)
            w = tl.where(k[None, :] < BLOCK_D, _large(w), w - _large(w))
            pulled = tl.dot(small, w, input_precision="tf32")
            pulled = tl.dot(large, w, pulled, input_precision="tf32")
            pulled = tl.sum(tl.reshape(pulled, (BLOCK_B, 2, BLOCK_D)), 1)
            # The same program, and the same thread of it, adds what the next output capsules say.
            to = grad_u + (b[:, None] * I + i) * D + numbers[None, :]
            there_u = (b[:, None] < B) & (numbers[None, :] < D)
            pulled += tl.load(to, mask=there_u & (tile > 0), other=0)
            tl.store(to, pulled, mask=there_u)

            there_u = (b[None, :] < B) & (d[:, None] < D)
            x = tl.load(u + (b[None, :] * I + i) * D + d[:, None], mask=there_u, other=0).to(tl.float32)
            x = tl.where(k[:, None] < BLOCK_D, _large(x), x - _large(x))
            outer = tl.dot(x, small, input_precision="tf32")
            outer = tl.dot(x, large, outer, input_precision="tf32")
            outer = tl.sum(tl.reshape(outer, (2, BLOCK_D, BLOCK_J * BLOCK_E)), 0)
            to = part + ((j[None, :] * I + i) * D + numbers[:, None]) * E + e[None, :]
            tl.store(to, outer, mask=there[None, :] & (numbers[:, None] < D))

"""Routing by agreement between two layers of capsules (Sabour, Frosst and Hinton 2017, Procedure 1), without the votes.

The votes ``û[b,j,i] = inputs[b,i] @ weight[j,i]`` are the largest tensor of a capsule network, and they are never
needed. After ``t`` iterations the logits are ``b[b,j,i] = Σ_τ û · v^τ = û[b,j,i] · V[b,j]``, where ``V`` is the sum of
the outputs so far. One iteration is therefore a function of the small ``V`` alone::

    logits    = û · V        = Σ_d inputs[b,i,d] · (weight[j,i] @ V[b,j])[d]
    couplings = softmax of the logits over j
    s         = Σ_i c · û    = Σ_(i,d) (c[b,j,i] · inputs[b,i,d]) · weight[j,i,d]

Both sums are matrix products with the weight as it is stored. They run over a chunk of input capsules at a time, small
enough to stay in the processor's cache; the backward pass recomputes what it needs and keeps only the sums ``s``.

Inside this file the batch comes last, ``(in_capsules, in_dim, batch)``: every elementwise step then runs along
contiguous memory, and a chunk of input capsules is a contiguous slice.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from capsnet.functional import squash
from capsnet.tracing import is_traced

# Elements of the largest temporary: on a processor 1 MiB of float32, which two or three of fit in the cache;
# on an accelerator enough work to hide the launch of a kernel.
_CHUNK_CPU = 2**18
_CHUNK_ACCELERATOR = 2**22


def route(
    inputs: Float[Tensor, "batch in_capsules in_dim"],
    weight: Float[Tensor, "out_capsules in_capsules in_dim out_dim"],
    iterations: int = 3,
    *,
    leaky: bool = False,
    detach_early: bool = False,
) -> Float[Tensor, "batch out_capsules out_dim"]:
    """Output capsules after dynamic routing (equations 2 and 3, Procedure 1).

    Args:
        inputs: the lower capsules ``u``.
        weight: the matrices ``W`` that turn each lower capsule into its vote for each higher one.
        iterations: ``r`` in the paper, 1 to 3; more tends to overfit.
        leaky: let a lower capsule route to "none of the above": one more logit, always zero, whose share is dropped.
        detach_early: gradients flow through the last iteration only, its couplings taken as constants. By default they
            flow through all of them, as in the authors' code.

    Half precision is routed in float32, also under autocast. Memory beyond the arguments and their gradients is a few
    chunks. Under ``torch.compile``, export and ``torch.func``, and where the votes are few, the votes are stored.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    dtype = torch.promote_types(inputs.dtype, weight.dtype)
    precise = torch.promote_types(dtype, torch.float32)
    with torch.autocast(inputs.device.type, enabled=False):
        inputs, weight = inputs.to(precise), weight.to(precise)
        # A fused kernel for an accelerator would be a third branch here.
        if is_traced() or _votes_fit(inputs, weight):
            capsules = _procedure(inputs, weight, iterations, leaky, detach_early)
        else:
            capsules = _Routing.apply(inputs, weight, iterations, leaky, detach_early)
    return capsules.to(dtype)


@torch.no_grad()
def couplings(
    inputs: Float[Tensor, "batch in_capsules in_dim"],
    weight: Float[Tensor, "out_capsules in_capsules in_dim out_dim"],
    iterations: int = 3,
    *,
    leaky: bool = False,
) -> Float[Tensor, "iterations batch in_capsules out_capsules"]:
    """Coupling coefficients ``c`` that each iteration of `route` uses (equation 3), to look at; no gradients."""
    with torch.autocast(inputs.device.type, enabled=False):
        inputs, weight = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (inputs, weight))
        u = inputs.permute(1, 2, 0).contiguous()
        history = []
        total = torch.zeros_like(_first_sum(inputs, weight, leaky))
        for _ in range(iterations):
            chunks = [_softmax(_agreement(u[i], weight[:, i], total), 0, leaky) for i in _chunks(u, weight)]
            history.append(torch.cat(chunks, dim=1).permute(2, 1, 0))
            total = total + squash(_next_sum(u, weight, total, leaky))
        return torch.stack(history)


def _procedure(inputs: Tensor, weight: Tensor, iterations: int, leaky: bool, detach_early: bool) -> Tensor:
    """Procedure 1 as the paper has it, with the votes: for compilers and transforms, and where the votes are small."""
    votes = torch.einsum("bid,jide->bjie", inputs, weight).contiguous()
    early = votes.detach() if detach_early else votes
    logits = votes.new_zeros(votes.shape[:3])
    for _ in range(iterations - 1):
        v = squash(_softmax(logits, 1, leaky).unsqueeze(2) @ early)
        logits = logits + (early @ v.mT).squeeze(3)
    return squash(_softmax(logits, 1, leaky).unsqueeze(2) @ votes).squeeze(2)


class _Routing(torch.autograd.Function):
    """Procedure 1 chunk by chunk; see the head of this file."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, iterations: int, leaky: bool, detach_early: bool) -> Tensor:
        u = inputs.permute(1, 2, 0).contiguous()
        sums = [_first_sum(inputs, weight, leaky)]
        v = total = squash(sums[0])
        for _ in range(iterations - 1):
            sums.append(_next_sum(u, weight, total, leaky))
            v = squash(sums[-1])
            total = total + v
        ctx.save_for_backward(inputs, weight, *sums)
        ctx.options = iterations, leaky, detach_early
        return v.transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        inputs, weight, *sums = ctx.saved_tensors
        _, leaky, detach_early = ctx.options
        if torch.is_grad_enabled() or is_traced():  # the gradient is to be differentiated again, or vectorized
            return _procedure_backward(ctx, grad)
        with torch.autocast(inputs.device.type, enabled=False):
            u = inputs.permute(1, 2, 0).contiguous()
            grad_u = torch.zeros_like(u) if ctx.needs_input_grad[0] else None
            grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
            totals = [squash(s) for s in sums[:-1]]  # totals[t - 1] is V before iteration t
            for t in range(1, len(totals)):
                totals[t] += totals[t - 1]
            grad_v = grad.transpose(0, 1)
            grad_total = torch.zeros_like(grad_v)
            while totals:
                grad_s = _squash_backward(sums.pop(), grad_v)
                grad_total = grad_total + _next_sum_backward(
                    u, weight, totals.pop(), grad_s, leaky, detach_early, grad_u, grad_weight
                )
                grad_v = grad_total  # only the last output is returned; each earlier one is in all later totals
                if detach_early:
                    break
            else:
                _first_sum_backward(u, weight, _squash_backward(sums.pop(), grad_v), leaky, grad_u, grad_weight)
        return grad_u if grad_u is None else grad_u.permute(2, 0, 1), grad_weight, None, None, None


def _procedure_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `_procedure`, themselves differentiable."""
    arguments = ctx.saved_tensors[:2]
    needed = [x for x, need in zip(arguments, ctx.needs_input_grad, strict=False) if need]
    with torch.enable_grad():
        grads = iter(torch.autograd.grad(_procedure(*arguments, *ctx.options), needed, grad, create_graph=True))
    return *(next(grads) if need else None for need in ctx.needs_input_grad[:2]), None, None, None


def _first_sum(inputs: Float[Tensor, "b i d"], weight: Float[Tensor, "j i d e"], leaky: bool) -> Float[Tensor, "j b e"]:
    """``s`` of the first iteration: all couplings are equal, so it is one matrix product."""
    return torch.matmul(inputs.flatten(1), weight.flatten(1, 2)).div_(len(weight) + leaky)


def _first_sum_backward(u, weight, grad_s: Float[Tensor, "j b e"], leaky: bool, grad_u, grad_weight) -> None:
    """Add the gradients of `_first_sum` to ``grad_u`` and ``grad_weight``."""
    grad_s = grad_s / (len(weight) + leaky)
    if grad_u is not None:
        grad_u.flatten(0, 1).addbmm_(weight.flatten(1, 2), grad_s.transpose(1, 2))
    if grad_weight is not None:
        grad_weight.flatten(1, 2).baddbmm_(u.flatten(0, 1).expand(len(weight), -1, -1), grad_s)


def _next_sum(
    u: Float[Tensor, "i d b"], weight: Float[Tensor, "j i d e"], total: Float[Tensor, "j b e"], leaky: bool
) -> Float[Tensor, "j b e"]:
    """``s`` of a later iteration, given the sum ``V`` of all outputs before it."""
    s = torch.zeros_like(total)
    for i in _chunks(u, weight):
        c = _softmax(_agreement(u[i], weight[:, i], total), 0, leaky)
        routed = (c.unsqueeze(2) * u[i]).flatten(1, 2)
        s.baddbmm_(routed.transpose(1, 2), weight[:, i].flatten(1, 2))
    return s


def _next_sum_backward(u, weight, total, grad_s, leaky: bool, constant: bool, grad_u, grad_weight) -> Tensor:
    """Add the gradients of `_next_sum` to ``grad_u`` and ``grad_weight``; return that of ``total``.

    With ``g`` the gradient of ``s`` and ``û`` in every place where it stands::

        grad c = û · g,    grad b = c (grad c − Σ_j c grad c),    grad V = Σ_i grad b · û,    grad û = c g + grad b · V

    ``constant`` couplings have no gradient: ``grad û = c g`` is all.
    """
    grad_total = torch.zeros_like(total)
    for i in _chunks(u, weight):
        w = weight[:, i].flatten(1, 2)
        pulled_total, pulled_grad = _pull(w, total, u[i].shape), _pull(w, grad_s, u[i].shape)
        c = _softmax((pulled_total * u[i]).sum(2), 0, leaky)
        terms = [(c, grad_s, pulled_grad)]  # of grad û: a factor for each vote times a vector for each output capsule
        if not constant:
            grad_c = (pulled_grad * u[i]).sum(2)
            grad_logits = c * (grad_c - (c * grad_c).sum(0))
            terms.append((grad_logits, total, pulled_total))
        if grad_u is not None:
            grad_u[i] += sum((factor.unsqueeze(2) * pulled).sum(0) for factor, _, pulled in terms)
        routed = [(factor.unsqueeze(2) * u[i]).flatten(1, 2) for factor, _, _ in terms]
        if not constant:
            grad_total.baddbmm_(routed[-1].transpose(1, 2), w)
        if grad_weight is not None:  # summed in one buffer first: products into a slice are made one by one
            grad_w = torch.bmm(routed[0], terms[0][1])
            for r, (_, x, _) in zip(routed[1:], terms[1:], strict=True):
                grad_w.baddbmm_(r, x)
            grad_weight[:, i] += grad_w.view_as(weight[:, i])
    return grad_total


def _agreement(u: Float[Tensor, "n d b"], weight: Float[Tensor, "j n d e"], total: Float[Tensor, "j b e"]) -> Tensor:
    """Logits ``û · V`` of a chunk of input capsules, shape ``(j, n, b)``."""
    return _pull(weight.flatten(1, 2), total, u.shape).mul_(u).sum(2)


def _pull(weight: Float[Tensor, "j nd e"], x: Float[Tensor, "j b e"], shape: torch.Size) -> Float[Tensor, "j n d b"]:
    """Output vectors seen from the input capsules: ``weight[j,i] @ x[b,j]``."""
    return torch.bmm(weight, x.transpose(1, 2)).unflatten(1, shape[:2])


def _softmax(logits: Tensor, dim: int, leaky: bool) -> Tensor:
    """Softmax over the output capsules; leaky: as if one more logit, zero, took its share and dropped it."""
    c = logits.softmax(dim)
    return c * logits.logsumexp(dim, keepdim=True).sigmoid() if leaky else c


def _squash_backward(s: Tensor, grad: Tensor) -> Tensor:
    with torch.enable_grad():
        s = s.detach().requires_grad_()
        return torch.autograd.grad(squash(s), s, grad)[0]


def _chunks(u: Float[Tensor, "i d b"], weight: Float[Tensor, "j i d e"]) -> Iterator[slice]:
    """Slices of input capsules whose ``(j, n, d, b)`` temporaries are of the size of a chunk."""
    size = max(1, _chunk(u) // (len(weight) * u[0].numel()))
    return (slice(start, start + size) for start in range(0, len(u), size))


def _chunk(x: Tensor) -> int:
    return _CHUNK_CPU if x.device.type == "cpu" else _CHUNK_ACCELERATOR


def _votes_fit(inputs: Float[Tensor, "b i d"], weight: Float[Tensor, "j i d e"]) -> bool:
    """Whether the votes are so few (a batch of 20 for MNIST on a processor) that it is quicker to store them.

    Chunks repeat a product of ``2 d`` operations for each vote, stored votes are read from memory instead: the more
    operations are saved, and the more of the votes stay in the cache, the better to store them.
    """
    votes = len(inputs) * weight[:, :, 0].numel()
    return votes <= 2 * _chunk(inputs) * inputs.shape[2]

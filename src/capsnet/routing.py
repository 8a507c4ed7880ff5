"""Routing by agreement between two layers of capsules (Sabour, Frosst and Hinton 2017, Procedure 1), without the votes.

The votes ``û[b,j,i] = inputs[b,i] @ weight[j,i]`` are the largest tensor of a capsule network, and they are never
needed. After ``t`` iterations the logits are ``b[b,j,i] = Σ_τ û · v^τ = û[b,j,i] · V[b,j]``, where ``V`` is the sum of
the outputs so far. One iteration is therefore a function of the small ``V`` alone::

    logits    = û · V        = Σ_d inputs[b,i,d] · (weight[j,i] @ V[b,j])[d]
    couplings = softmax of the logits over j
    s         = Σ_i c · û    = Σ_(i,d) (c[b,j,i] · inputs[b,i,d]) · weight[j,i,d]

A temperature multiplies the logits, which is to multiply ``V``.

Each iteration is a pass over the weight as it is stored, which keeps votes for a few capsules and images at a time; the
backward pass recomputes what it needs and keeps only the sums ``s``. The passes exist three times: in C and in Triton
(`capsnet.kernels`), and in PyTorch (`capsnet.routing_passes`). Each has its own layout, in which the numbers of a
capsule lie along ``DIM``.
"""

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType, SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor

from capsnet import kernels, routing_passes
from capsnet.functional import squash
from capsnet.kernels import routing as compiled_passes
from capsnet.routing_passes import softmax
from capsnet.tracing import is_compiled, is_traced

_FEW_VOTES = 2**22  # 16 MiB


def route(
    inputs: Float[Tensor, "batch in_capsules in_dim"],
    weight: Float[Tensor, "out_capsules in_capsules in_dim out_dim"],
    iterations: int = 3,
    *,
    leaky: bool = False,
    detach_early: bool = False,
    temperature: float = 1.0,
) -> Float[Tensor, "batch out_capsules out_dim"]:
    """Output capsules after dynamic routing (equations 2 and 3, Procedure 1).

    Args:
        inputs: the lower capsules ``u``.
        weight: the matrices ``W`` that turn each lower capsule into its vote for each higher one.
        iterations: ``r`` in the paper, 1 to 3; more tends to overfit.
        leaky: let a lower capsule route to "none of the above": one more logit, always zero, whose share is dropped.
        detach_early: gradients flow through the last iteration only, its couplings taken as constants. By default they
            flow through all of them, as in the authors' code.
        temperature: what the logits are multiplied by before the softmax; 1 in the paper. An output capsule 0.9 long,
            of many inputs, has votes of which each is only about ``3 · out_capsules / in_capsules`` long, and logits
            of that size leave the couplings even.

    Half precision is routed in float32, also under autocast. Memory beyond the arguments and their gradients is that
    of the logits or less, but for small batches. Under export, ``torch.func`` and, without Triton's kernels,
    ``torch.compile``, and where they are few, the votes are stored.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if inputs.dim() != 3 or weight.dim() != 4 or inputs.shape[1:] != weight.shape[1:3]:
        raise ValueError(
            f"inputs (batch, in_capsules, in_dim) and weight (out_capsules, in_capsules, in_dim, out_dim) do not fit: "
            f"{tuple(inputs.shape)} and {tuple(weight.shape)}"
        )
    dtype = torch.promote_types(inputs.dtype, weight.dtype)
    precise = torch.promote_types(dtype, torch.float32)
    with _no_autocast(inputs):
        weight = weight.to(precise)
        if not (precise == torch.float32 and kernels.suit_triton(inputs, weight)):  # Triton's passes widen them
            inputs = inputs.to(precise)
        if is_compiled() and kernels.suit_triton(inputs, weight):
            capsules = _route(inputs, weight, iterations, leaky, detach_early, temperature)[0]
        elif is_traced() or _better_stored(inputs, weight):
            capsules = _procedure(inputs, weight, iterations, leaky, detach_early, temperature)
        else:
            capsules = _Routing.apply(inputs, weight, iterations, leaky, detach_early, temperature)
    return capsules.to(dtype)


@torch.no_grad()
def couplings(
    inputs: Float[Tensor, "batch in_capsules in_dim"],
    weight: Float[Tensor, "out_capsules in_capsules in_dim out_dim"],
    iterations: int = 3,
    *,
    leaky: bool = False,
    temperature: float = 1.0,
) -> Float[Tensor, "iterations batch in_capsules out_capsules"]:
    """Coupling coefficients ``c`` that each iteration of `route` uses (equation 3), to look at; no gradients."""
    with _no_autocast(inputs):
        inputs, weight = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (inputs, weight))
        u = routing_passes.arrange_inputs(inputs)
        total = u.new_zeros(len(weight), len(inputs), weight.shape[3])
        history = []
        for left in reversed(range(iterations)):
            history.append(routing_passes.couplings(u, weight, total, leaky).permute(2, 1, 0))
            if left:
                total = total + temperature * squash(routing_passes.sum_votes(u, weight, total, leaky))
        return torch.stack(history)


def _procedure(
    inputs: Tensor, weight: Tensor, iterations: int, leaky: bool, detach_early: bool, temperature: float
) -> Tensor:
    """Procedure 1 as the paper has it, with the votes: for compilers and transforms, and where the votes are small."""
    votes = torch.einsum("bid,jide->bjie", inputs.to(weight.dtype), weight).contiguous()
    early = votes.detach() if detach_early else votes
    logits = votes.new_zeros(votes.shape[:3])
    for _ in range(iterations - 1):
        v = squash(softmax(logits, 1, leaky).unsqueeze(2) @ early)
        logits = logits + temperature * (early @ v.mT).squeeze(3)
    return squash(softmax(logits, 1, leaky).unsqueeze(2) @ votes).squeeze(2)


class _Routing(torch.autograd.Function):
    """Procedure 1 in passes; see the head of this file."""

    @staticmethod
    def forward(
        ctx,
        inputs: Tensor,
        weight: Tensor,
        iterations: int,
        leaky: bool,
        detach_early: bool,
        temperature: float,
    ) -> Tensor:
        passes = _passes(inputs, weight)
        u, w = passes.arrange_inputs(inputs), weight.contiguous()
        sums: list[Tensor] = []
        v = total = None
        for _ in range(iterations):
            sums.append(passes.sum_votes(u, w, total, leaky))
            v = squash(sums[-1], passes.DIM)
            total = temperature * v if total is None else total + temperature * v
        ctx.save_for_backward(inputs, weight, *sums)
        ctx.options = iterations, leaky, detach_early, temperature
        return passes.restore(v, len(inputs)).data  # no view, so that it may be changed in place

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        inputs, weight, *sums = ctx.saved_tensors
        _, leaky, detach_early, temperature = ctx.options
        passes = _passes(inputs, weight)
        # The gradient is to be differentiated again, or vectorized.
        if torch.is_grad_enabled() or is_traced() or _passes(inputs, weight, grad) is not passes:
            return _procedure_backward(ctx, grad)
        with _no_autocast(inputs):
            u, weight = passes.arrange_inputs(inputs), weight.contiguous()
            gradients = passes.Gradients(u, weight, leaky, detach_early)
            sums = [s.contiguous() for s in sums]  # as they were saved, also if they were kept elsewhere
            totals = [temperature * squash(s, passes.DIM) for s in sums[:-1]]  # totals[t - 1] is V before iteration t
            for t in range(1, len(totals)):
                totals[t] += totals[t - 1]
            grad_v = passes.arrange(grad)
            grad_total = torch.zeros_like(grad_v)
            while sums:
                grad_s = _squash_backward(sums.pop(), grad_v, passes.DIM)
                total = totals.pop() if totals else None
                more = gradients.add(total, grad_s)
                if more is None:  # the first iteration, or the only one that has gradients
                    break
                grad_total = grad_total + more
                grad_v = temperature * grad_total  # only the last output is returned; earlier ones are in totals
            grad_u, grad_weight = gradients.finish()
        grad_inputs = passes.restore_inputs(grad_u, len(inputs)).to(inputs.dtype)
        return grad_inputs, grad_weight, None, None, None, None


def _no_autocast(x: Tensor) -> AbstractContextManager:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _passes(*tensors: Tensor) -> ModuleType:
    if kernels.fit(*tensors):
        return compiled_passes
    if kernels.fit_triton(*tensors):
        from capsnet.kernels import triton_routing  # imports Triton

        return triton_routing
    return routing_passes


def _procedure_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of `_procedure`, themselves differentiable."""
    arguments = ctx.saved_tensors[:2]
    needed = [x for x, need in zip(arguments, ctx.needs_input_grad, strict=False) if need]
    with torch.enable_grad():
        grads = iter(torch.autograd.grad(_procedure(*arguments, *ctx.options), needed, grad, create_graph=True))
    return *(next(grads) if need else None for need in ctx.needs_input_grad[:2]), None, None, None, None


def _squash_backward(s: Tensor, grad: Tensor, dim: int) -> Tensor:
    if kernels.fit_triton(s, grad):
        from capsnet.kernels import triton_squash  # imports Triton

        return triton_squash.squash_backward(s, grad)
    with torch.enable_grad():
        s = s.detach().requires_grad_()
        return torch.autograd.grad(squash(s, dim), s, grad)[0]


def _better_stored(inputs: Float[Tensor, "b i d"], weight: Float[Tensor, "j i d e"]) -> bool:
    """Whether the votes are so few that it is quicker to store them.

    The kernel computes sixteen images at a time, and breaks even at half of them (measured with 36 to 2,048 input and
    2 to 64 output capsules); however few, they may have more votes than there is memory for. PyTorch's passes repeat a
    product of ``2 d`` operations for each vote, stored votes are read from memory instead: it breaks even at about 20
    MNIST images.
    """
    votes = len(inputs) * weight[:, :, 0].numel()
    if kernels.fit_triton(inputs, weight):
        return False
    if kernels.fit(inputs, weight):
        return len(inputs) < 8 and votes <= _FEW_VOTES
    return votes <= 2 * routing_passes.chunk_size(inputs) * inputs.shape[2]


@torch.library.custom_op("capsnet::route", mutates_args=())
def _route(
    inputs: Tensor, weight: Tensor, iterations: int, leaky: bool, detach_early: bool, temperature: float
) -> tuple[Tensor, Tensor]:
    """`_Routing` as one operation, into which `torch.compile` does not look. Returns the sums, too."""
    saved: list[Tensor] = []
    ctx = SimpleNamespace(save_for_backward=lambda *tensors: saved.extend(tensors))
    with torch.no_grad():
        v = _Routing.forward(ctx, inputs, weight, iterations, leaky, detach_early, temperature)
        return v, torch.stack(saved[2:])


@torch.library.custom_op("capsnet::route_backward", mutates_args=())
def _route_backward(
    grad: Tensor, inputs: Tensor, weight: Tensor, sums: Tensor, leaky: bool, detach_early: bool, temperature: float
) -> tuple[Tensor, Tensor]:
    ctx = SimpleNamespace(saved_tensors=(inputs, weight, *sums), options=(len(sums), leaky, detach_early, temperature))
    with torch.no_grad():
        grad_inputs, grad_weight = _Routing.backward(ctx, grad)[:2]
    assert grad_inputs is not None
    assert grad_weight is not None
    return grad_inputs, grad_weight


@_route.register_fake
def _(inputs, weight, iterations, leaky, detach_early, temperature):
    v = weight.new_empty(inputs.shape[0], weight.shape[0], weight.shape[3])
    return v, v.new_empty(iterations, *v.shape)


@_route_backward.register_fake
def _(grad, inputs, weight, sums, leaky, detach_early, temperature):
    return inputs.new_empty(inputs.shape), weight.new_empty(weight.shape)


def _route_keeps(ctx, inputs, output) -> None:
    *arguments, _, leaky, detach_early, temperature = inputs
    ctx.save_for_backward(*arguments, output[1])
    ctx.options = leaky, detach_early, temperature


def _route_goes_back(ctx, grad, _) -> tuple[Tensor | None, ...]:
    return *_route_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


_route.register_autograd(_route_goes_back, setup_context=_route_keeps)

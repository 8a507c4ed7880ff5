"""The passes of routing in plain PyTorch, a chunk of input capsules at a time; `capsnet.routing` says what for.

The batch comes last, ``u`` is ``(in_capsules, in_dim, batch)``: every elementwise step then runs along contiguous
memory, and a chunk of input capsules is a contiguous slice. What belongs to output capsules is ``(out_capsules, batch,
out_dim)``.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

DIM = -1  # of a capsule's numbers, in the layout of the output capsules
# Elements of the largest temporary: on a processor 1 MiB of float32, which two or three of fit in the cache;
# on an accelerator enough work to hide the launch of a kernel.
CHUNK_CPU = 2**18
CHUNK_ACCELERATOR = 2**22


def chunk_size(x: Tensor) -> int:
    return CHUNK_CPU if x.device.type == "cpu" else CHUNK_ACCELERATOR


def arrange_inputs(inputs: Float[Tensor, "b i d"]) -> Float[Tensor, "i d b"]:
    return inputs.permute(1, 2, 0).contiguous()


def restore_inputs(u: Float[Tensor, "i d b"], batch: int) -> Float[Tensor, "b i d"]:
    return u.permute(2, 0, 1)


def arrange(v: Float[Tensor, "b j e"]) -> Float[Tensor, "j b e"]:
    return v.transpose(0, 1)


def restore(v: Float[Tensor, "j b e"], batch: int) -> Float[Tensor, "b j e"]:
    return v.transpose(0, 1).contiguous()


def sum_votes(
    u: Float[Tensor, "i d b"], weight: Float[Tensor, "j i d e"], total: Float[Tensor, "j b e"] | None, leaky: bool
) -> Float[Tensor, "j b e"]:
    """``Σ_i c û``, with the couplings that follow from ``total``; without it, all are equal: one matrix product."""
    if total is None:
        return torch.matmul(u.flatten(0, 1).T, weight.flatten(1, 2)).div_(len(weight) + leaky)
    s = torch.zeros_like(total)
    for i in _chunks(u, weight):
        c = softmax(_agreement(u[i], weight[:, i], total), 0, leaky)
        routed = (c.unsqueeze(2) * u[i]).flatten(1, 2)
        s.baddbmm_(routed.transpose(1, 2), weight[:, i].flatten(1, 2))
    return s


class Gradients:
    """Those of `sum_votes` for inputs and weight, of all iterations, which are added from the last to the first.

    With ``g`` the gradient of the sum and ``û`` in every place where it stands::

        grad c = û · g,    grad b = c (grad c − Σ_j c grad c),    grad V = Σ_i grad b · û,    grad û = c g + grad b · V

    ``constant`` couplings have no gradient: ``grad û = c g`` is all.
    """

    def __init__(
        self,
        u: Float[Tensor, "i d b"],
        weight: Float[Tensor, "j i d e"],
        leaky: bool,
        constant: bool,
    ) -> None:
        self.u, self.weight, self.leaky, self.constant = u, weight, leaky, constant
        self.grad_u, self.grad_weight = torch.zeros_like(u), torch.zeros_like(weight)

    def add(self, total: Float[Tensor, "j b e"] | None, grad: Float[Tensor, "j b e"]) -> Float[Tensor, "j b e"] | None:
        """``grad`` is the gradient of the sum; that of ``total``, if it has one."""
        u, weight, leaky, constant = self.u, self.weight, self.leaky, self.constant
        grad_u, grad_weight = self.grad_u, self.grad_weight
        if total is None:
            grad = grad / (len(weight) + leaky)
            grad_u.flatten(0, 1).addbmm_(weight.flatten(1, 2), grad.transpose(1, 2))
            grad_weight.flatten(1, 2).baddbmm_(u.flatten(0, 1).expand(len(weight), -1, -1), grad)
            return None
        grad_total = torch.zeros_like(grad)
        for i in _chunks(u, weight):
            w = weight[:, i].flatten(1, 2)
            pulled_total, pulled_grad = _pull(w, total, u[i].shape), _pull(w, grad, u[i].shape)
            c = softmax((pulled_total * u[i]).sum(2), 0, leaky)
            terms = [(c, grad, pulled_grad)]  # of grad û: a factor for each vote times a vector for each output capsule
            if not constant:
                grad_c = (pulled_grad * u[i]).sum(2)
                grad_logits = c * (grad_c - (c * grad_c).sum(0))
                terms.append((grad_logits, total, pulled_total))
            grad_u[i] += sum((factor.unsqueeze(2) * pulled).sum(0) for factor, _, pulled in terms)
            routed = [(factor.unsqueeze(2) * u[i]).flatten(1, 2) for factor, _, _ in terms]
            if not constant:
                grad_total.baddbmm_(routed[-1].transpose(1, 2), w)
            grad_w = torch.bmm(routed[0], terms[0][1])  # one buffer first: products into a slice are made one by one
            for r, (_, x, _) in zip(routed[1:], terms[1:], strict=True):
                grad_w.baddbmm_(r, x)
            grad_weight[:, i] += grad_w.view_as(weight[:, i])
        return None if constant else grad_total

    def finish(self) -> tuple[Float[Tensor, "i d b"], Float[Tensor, "j i d e"]]:
        return self.grad_u, self.grad_weight


def couplings(
    u: Float[Tensor, "i d b"], weight: Float[Tensor, "j i d e"], total: Float[Tensor, "j b e"], leaky: bool
) -> Float[Tensor, "j i b"]:
    """The couplings that follow from ``total``."""
    chunks = [softmax(_agreement(u[i], weight[:, i], total), 0, leaky) for i in _chunks(u, weight)]
    return torch.cat(chunks, dim=1)


def softmax(logits: Tensor, dim: int, leaky: bool) -> Tensor:
    """Softmax over the output capsules; leaky: as if one more logit, zero, took its share and dropped it."""
    c = logits.softmax(dim)
    return c * logits.logsumexp(dim, keepdim=True).sigmoid() if leaky else c


def _agreement(u: Float[Tensor, "n d b"], weight: Float[Tensor, "j n d e"], total: Float[Tensor, "j b e"]) -> Tensor:
    """Logits ``û · V`` of a chunk of input capsules, shape ``(j, n, b)``."""
    return _pull(weight.flatten(1, 2), total, u.shape).mul_(u).sum(2)


def _pull(weight: Float[Tensor, "j nd e"], x: Float[Tensor, "j b e"], shape: torch.Size) -> Float[Tensor, "j n d b"]:
    """Output vectors seen from the input capsules: ``weight[j,i] @ x[b,j]``."""
    return torch.bmm(weight, x.transpose(1, 2)).unflatten(1, shape[:2])


def _chunks(u: Float[Tensor, "i d b"], weight: Float[Tensor, "j i d e"]) -> Iterator[slice]:
    """Slices of input capsules whose ``(j, n, d, b)`` temporaries are of the size of a chunk."""
    size = max(1, chunk_size(u) // max(1, len(weight) * u[0].numel()))
    return (slice(start, start + size) for start in range(0, len(u), size))

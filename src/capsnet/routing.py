"""Routing by agreement (paper, Procedure 1)."""

import torch
from jaxtyping import Float
from torch import Tensor

from capsnet.functional import squash


def route(
    inputs: Float[Tensor, "batch in_capsules in_dim"],
    weight: Float[Tensor, "out_capsules in_capsules in_dim out_dim"],
    iterations: int = 3,
    *,
    leaky: bool = False,
    detach_early: bool = False,
) -> Float[Tensor, "batch out_capsules out_dim"]:
    """Route lower capsules to higher ones: votes `û_{j|i} = W_ij u_i`, then `iterations` rounds of Procedure 1.

    Gradients flow through every iteration; with `detach_early` only through the last one, the couplings then being
    constants. `leaky` adds a "none of the above" column of zeros to the softmax, whose share is dropped.
    Raises `ValueError` for less than one iteration.
    """
    votes = torch.einsum("bid,jide->bjie", inputs, weight)
    logits = votes.new_zeros(votes.shape[:3])
    _check_iterations(iterations)
    for _ in range(iterations - 1):
        early_votes = votes.detach() if detach_early else votes
        v = squash(torch.einsum("bji,bjie->bje", couple(logits, leaky), early_votes))
        logits = logits + torch.einsum("bjie,bje->bji", early_votes, v)
    return squash(torch.einsum("bji,bjie->bje", couple(logits, leaky), votes))


def couplings(
    inputs: Float[Tensor, "batch in_capsules in_dim"],
    weight: Float[Tensor, "out_capsules in_capsules in_dim out_dim"],
    iterations: int = 3,
    *,
    leaky: bool = False,
) -> Float[Tensor, "iterations batch out_capsules in_capsules"]:
    """The coupling coefficients that each iteration of `route` uses."""
    votes = torch.einsum("bid,jide->bjie", inputs, weight)
    logits = votes.new_zeros(votes.shape[:3])
    history = []
    for _ in range(iterations):
        history.append(couple(logits, leaky))
        v = squash(torch.einsum("bji,bjie->bje", history[-1], votes))
        logits = logits + torch.einsum("bjie,bje->bji", votes, v)
    return torch.stack(history)


def couple(
    logits: Float[Tensor, "batch out_capsules in_capsules"], leaky: bool = False
) -> Float[Tensor, "batch out_capsules in_capsules"]:
    """Coupling coefficients (equation 3): a softmax over the higher capsules, for each lower capsule."""
    if not leaky:
        return logits.softmax(dim=1)
    leak = torch.zeros_like(logits[:, :1])
    return torch.cat([leak, logits], dim=1).softmax(dim=1)[:, 1:]


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"routing needs at least 1 iteration, not {iterations}")

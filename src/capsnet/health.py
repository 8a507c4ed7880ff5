"""Vital signs of a capsule network: the first thing to look at when training does not work."""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from capsnet.data.image_set import to_float
from capsnet.functional import lengths
from capsnet.models import CapsNet, Labels

PROBE = 128
"""So many images are enough: the signs are coarse."""
DEAD = 0.05
"""A capsule that is nowhere longer than this has nothing to say."""


@torch.no_grad()
def vital_signs(
    model: CapsNet, images: UInt8[Tensor, "count channels height width"], labels: Labels | None = None
) -> dict[str, float]:
    """A few numbers that tell a network that learns from one that does not, measured on about `PROBE` images.

    * `dead_primary` and `dead_classes`: the share of primary capsule types, and of class capsules, that are shorter
      than `DEAD` on every image and everywhere on it.
    * `primary_length_10`, `_50`, `_90`: lengths of primary capsules, of which 10, 50 and 90% are shorter. All near 1
      means that they are saturated: they say the same whatever the image shows, and hardly learn.
      `primary_length_std`: by how much the length of one capsule differs between images (standard deviation).
    * `logit_std`: by how much the logits of a capsule differ between classes in the last iteration (standard
      deviation, root mean square over the capsules). Far below 1, a softmax leaves the couplings even.
      `coupling_entropy`: of those couplings, as a share of what equal ones have, weighted by how long the capsules
      are. Near 1 the couplings are even; routing may still lengthen the right class by adding up small differences.
    * `routing_gain`: length of the right classes after all iterations over that after one, by `labels`; without them,
      of the longest class. `routing_changes`: the share of images for which routing changes the answer.
    * `conv_norm`, `primary_norm`, `class_norm`: root mean square of Conv1, mean length of a primary capsule, and of
      the longest class capsule. With hidden capsules, `dead_hidden` and `hidden_norm` are those of the last layer.
    """
    training = model.training
    model.eval()  # in training, batch normalisation would go by these images
    device = next(model.parameters()).device
    features = model.features(to_float(images.to(device)))
    primary = model.primary(features)
    voters = model.voters(primary)
    active, voting = lengths(primary).float(), lengths(voters).float()
    classes = lengths(model.classes(voters)).float()
    unrouted = lengths(model.classes.after_one_iteration(voters)).float()
    answers = classes.argmax(1, keepdim=True) if labels is None else labels.to(device).reshape(len(labels), -1)
    couplings = model.classes.couplings(voters)
    choices = classes.shape[1] + model.classes.leaky
    quantiles = _quantiles(active, (0.1, 0.5, 0.9))
    signs = {
        "dead_primary": _dead(active, model.primary.types),
        "dead_classes": _dead(classes, classes.shape[1]),
        "primary_length_10": quantiles[0],
        "primary_length_50": quantiles[1],
        "primary_length_90": quantiles[2],
        "primary_length_std": float(active.std(0, correction=0).mean()),
        "logit_std": _logit_std(couplings[-1]),
        "coupling_entropy": float(coupling_entropy(couplings, voting)[-1]) / math.log2(choices) if choices > 1 else 0.0,
        "routing_gain": float(classes.gather(1, answers).mean() / unrouted.gather(1, answers).mean().clamp_min(1e-6)),
        "routing_changes": _changes(unrouted, classes, answers.shape[1]),
        "conv_norm": float(features.float().square().mean().sqrt()),
        "primary_norm": float(active.mean()),
        "class_norm": float(classes.amax(1).mean()),
    }
    if model.hidden:
        signs |= {"dead_hidden": _dead(voting, model.voter_types), "hidden_norm": float(voting.mean())}
    model.train(training)
    return signs


def _quantiles(values: Tensor, shares: tuple[float, ...]) -> list[float]:
    """The values that these shares of all are below; `torch.quantile` takes no more than 16 million."""
    ordered = values.flatten().sort().values
    return [float(ordered[round(share * (len(ordered) - 1))]) for share in shares]


def _logit_std(couplings: Float[Tensor, "count capsules classes"]) -> float:
    """From the couplings: their logarithms are the logits but for what all classes of a capsule have in common."""
    logits = couplings.clamp_min(torch.finfo(couplings.dtype).tiny).log()
    return float(logits.var(-1, correction=0).mean().sqrt())


def _changes(before: Float[Tensor, "count classes"], after: Float[Tensor, "count classes"], present: int) -> float:
    """The share of images whose longest classes, of which so many are present, are others after routing."""
    chosen = [scores.topk(present).indices.sort().values for scores in (before, after)]
    return float((chosen[0] != chosen[1]).any(1).float().mean())


def _dead(active: Float[Tensor, "count capsules"], types: int) -> float:
    """The share of capsule types that are nowhere alive."""
    return float((active.unflatten(1, (-1, types)).amax((0, 1)) < DEAD).float().mean())


def coupling_entropy(
    couplings: Float[Tensor, "iterations *capsules classes"], activity: Float[Tensor, "*capsules"]
) -> Float[Tensor, " iterations"]:
    """Entropy of couplings over the classes in bits, averaged over the capsules, each weighted by its length.

    0 where each capsule has one parent. What leaky routing drops counts as one more class.
    """
    shares = torch.cat([couplings, (1 - couplings.sum(-1, keepdim=True)).clamp_min(0)], dim=-1)
    entropy = torch.special.entr(shares).sum(-1) / math.log(2)
    return (entropy * activity).flatten(1).sum(1) / activity.sum().clamp_min(1e-12)

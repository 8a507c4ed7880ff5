"""Vital signs of a capsule network: the first thing to look at when training does not work."""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from capsnet.data.image_set import to_float
from capsnet.functional import lengths
from capsnet.models import CapsNet

PROBE = 128
"""So many images are enough: the signs are coarse."""
DEAD = 0.05
"""A capsule that is nowhere longer than this has nothing to say."""


@torch.no_grad()
def vital_signs(model: CapsNet, images: UInt8[Tensor, "count channels height width"]) -> dict[str, float]:
    """A few numbers that tell a network that learns from one that does not, measured on about `PROBE` images.

    `dead_primary` and `dead_classes`: the share of primary capsule types, and of class capsules, that are shorter than
    `DEAD` on every image and everywhere on it. `coupling_entropy`: of the last iteration below the classes, as a share
    of what equal couplings have, weighted by how long the capsules are; 1 means that routing decides nothing.
    `conv_norm`, `primary_norm`, `class_norm`: root mean square of Conv1, mean length of a primary capsule, and of the
    longest class capsule. With hidden capsules, `dead_hidden` and `hidden_norm` are those of the last layer of them.
    """
    training = model.training
    model.eval()  # in training, batch normalisation would go by these images
    device = next(model.parameters()).device
    features = model.features(to_float(images.to(device)))
    primary = model.primary(features)
    voters = model.voters(primary)
    active, voting = lengths(primary).float(), lengths(voters).float()
    classes = lengths(model.classes(voters)).float()
    entropy = float(coupling_entropy(model.classes.couplings(voters), voting)[-1])
    choices = classes.shape[1] + model.classes.leaky
    signs = {
        "dead_primary": _dead(active, model.primary.types),
        "dead_classes": _dead(classes, classes.shape[1]),
        "coupling_entropy": entropy / math.log2(choices) if choices > 1 else 0.0,
        "conv_norm": float(features.float().square().mean().sqrt()),
        "primary_norm": float(active.mean()),
        "class_norm": float(classes.amax(1).mean()),
    }
    if model.hidden:
        signs |= {"dead_hidden": _dead(voting, model.voter_types), "hidden_norm": float(voting.mean())}
    model.train(training)
    return signs


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

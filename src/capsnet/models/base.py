"""What all models share: how images and labels come in, how a loss goes out."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from capsnet.functional import multi_hot
from capsnet.models.settings import checked

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, "batch *present"]
"""The class of each image `(B,)`, or the classes of the several things on it `(B, K)`, all different."""
Targets = Float[Tensor, "batch present channels height width"]
"""What each thing on an image looks like alone; a decoder is trained against it."""


class Loss(NamedTuple):
    """What training minimises, the parts worth logging by name, and the scores that came out on the way."""

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]
    scores: Float[Tensor, "batch classes"]


def sigmoid_loss(logits: Float[Tensor, "batch classes"], labels: Labels) -> Float[Tensor, ""]:
    """Sigmoid cross-entropy of each class for itself, summed over the classes and averaged over the images."""
    present = multi_hot(labels, logits.shape[1])
    return binary_cross_entropy_with_logits(logits, present, reduction="sum") / len(logits)


def scaled(size: int, width: float) -> int:
    """`width` times the size of a layer, at least 1. Raises `InputError` if no layer can be so wide."""
    return max(1, round(size * checked({"width": width})["width"]))

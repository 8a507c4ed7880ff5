"""What all models share: how images and labels come in, how a loss goes out."""

import math
import warnings
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from capsnet.errors import InputError
from capsnet.functional import class_numbers, multi_hot
from capsnet.models.settings import checked
from capsnet.tracing import is_traced

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, "batch *present"]
"""The class of each image `(B,)`, or the classes of the several things on it `(B, K)`, all different, as
`functional.class_numbers` has them."""
Targets = Float[Tensor, "batch present channels height width"]
"""What each thing on an image looks like alone; a decoder is trained against it."""

BYTES = 16.0
"""Pixels above that are no normalised ones either, but bytes."""


class Loss(NamedTuple):
    """What training minimises, the parts worth logging by name, and the scores that came out on the way."""

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]
    scores: Float[Tensor, "batch classes"]


def check_images(images: Images, in_shape: tuple[int, int, int]) -> None:
    """Raises `InputError`, a `ValueError`, unless these are images for a model of this shape.

    Pixels are only looked at on the CPU, because on a GPU every look waits for it: NaN is refused, and of bytes that
    were made floats and not divided by 255 it is warned.
    """
    if is_traced():
        return
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images are floating-point tensors, not {kind}; bytes become pixels by images.float() / 255")
    shape, wanted = tuple(images.shape), tuple(in_shape)
    if shape == wanted:
        raise InputError(f"images come in batches (B, C, H, W); this is a single one of {shape}: images[None]")
    if len(shape) != 4 or shape[1:] != wanted:
        raise InputError(f"this model takes images (B, C, H, W) of (C, H, W) = {wanted}, not of shape {shape}")
    if images.device.type != "cpu" or not images.numel():
        return
    low, high = map(float, images.detach().aminmax())
    if not math.isfinite(high - low):
        raise InputError("images hold pixels that are not finite")
    if high > BYTES:
        warnings.warn(f"pixels are 0 to 1, but these reach {high:g}; divide bytes by 255", stacklevel=3)


def sigmoid_loss(logits: Float[Tensor, "batch classes"], labels: Labels) -> Float[Tensor, ""]:
    """Sigmoid cross-entropy of each class for itself, summed over the classes and averaged over the images."""
    present = multi_hot(class_numbers(labels, logits.shape[1], len(logits)), logits.shape[1])
    return binary_cross_entropy_with_logits(logits, present, reduction="sum") / len(logits)


def scaled(size: int, width: float) -> int:
    """`width` times the size of a layer, at least 1. Raises `InputError` if no layer can be so wide."""
    return max(1, round(size * checked({"width": width})["width"]))

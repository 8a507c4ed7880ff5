"""What all models share: how images and labels come in, how a loss goes out."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from capsnet.errors import InputError
from capsnet.functional import multi_hot

Images = Float[Tensor, "batch channels height width"]
Labels = Int[Tensor, "batch *present"]
"""The class of each image `(B,)`, or the classes of the several things on it `(B, K)`, all different."""
Targets = Float[Tensor, "batch present channels height width"]
"""What each thing on an image looks like alone; a decoder is trained against it."""

MAX_WIDTH = 16.0


class Loss(NamedTuple):
    """What training minimises, the parts worth logging by name, and the scores that came out on the way."""

    total: Float[Tensor, ""]
    parts: dict[str, Tensor]
    scores: Float[Tensor, "batch classes"]


def sigmoid_loss(logits: Float[Tensor, "batch classes"], labels: Labels) -> Float[Tensor, ""]:
    """Sigmoid cross-entropy of each class for itself, summed over the classes and averaged over the images."""
    present = multi_hot(labels, logits.shape[1])
    return binary_cross_entropy_with_logits(logits, present, reduction="sum") / len(logits)


def checked_shape(in_shape: tuple[int, int, int], num_classes: int) -> tuple[int, int, int]:
    """(channels, height, width). Raises `InputError` if they, or the classes, are none."""
    if len(in_shape) != 3:
        raise InputError(f"in_shape is (channels, height, width), not {in_shape}")
    check_sizes(num_classes, *in_shape)
    return in_shape


def check_sizes(*sizes: int) -> None:
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"sizes of a model are whole numbers from 1, not {size!r}")


def check_batch(images: Tensor) -> Tensor:
    """The same images. Raises `InputError` if they are no batch."""
    if images.ndim != 4:
        raise InputError(
            f"a model takes a batch of images (count, channels, height, width), not {tuple(images.shape)}; "
            "one image alone is image[None]"
        )
    return images


def scaled(size: int, width: float) -> int:
    """`width` times the size of a layer, at least 1. Raises `InputError` if no layer can be so wide."""
    if not 0 < width <= MAX_WIDTH:
        raise InputError(f"the width of a network is above 0 and at most {MAX_WIDTH}, not {width}")
    return max(1, round(size * width))

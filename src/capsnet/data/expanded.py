"""Expanded MNIST: digits on a black background of 40×40 (paper, section 5.2)."""

import torch
from jaxtyping import Int64
from torch import Tensor

from capsnet.data.augment import shift
from capsnet.data.draws import below, draw
from capsnet.data.image_set import ImageSet
from capsnet.data.mnist import load_mnist
from capsnet.errors import InputError

SIZE = 40
SEEDS = {"train": 0, "test": 1}


def load_expanded_mnist(split: str) -> ImageSet:
    """MNIST, each digit placed once and for all at random on 1×40×40: up to 6 pixels from the middle either way.

    For training that places every digit anew in each epoch, take `centred(digits)` and a recipe with `max_shift=6`.
    """
    return placed(load_mnist(split), seed=SEEDS[split])


def centred(image_set: ImageSet, size: int = SIZE) -> ImageSet:
    """The images in the middle of a black square of `size`. Raises `InputError` if they are larger."""
    _, height, width = image_set.image_shape
    if max(height, width) > size:
        raise InputError(f"images of {height}×{width} do not fit on {size}×{size}")
    top, left = (size - height) // 2, (size - width) // 2
    borders = (left, size - width - left, top, size - height - top)
    return ImageSet(torch.nn.functional.pad(image_set.images, borders), image_set.labels, image_set.class_names)


def placed(image_set: ImageSet, size: int = SIZE, seed: int = 0) -> ImageSet:
    """The images at random places of a black square of `size`, all places equally likely, each image whole."""
    middle = centred(image_set, size)
    offsets = _offsets(image_set, size, seed).to(middle.images.device)
    images = shift(middle.images, offsets, reach=int(offsets.abs().max())).contiguous()
    return ImageSet(images, middle.labels, middle.class_names)


def _offsets(image_set: ImageSet, size: int, seed: int) -> Int64[Tensor, "count 2"]:
    """How far (down, right) of the middle each image comes to lie."""
    room = [size - side for side in image_set.image_shape[1:]]
    numbers = draw(seed, 0, len(image_set))
    corners = torch.stack([torch.from_numpy(below(numbers[:, k], room[k] + 1)) for k in range(2)], dim=1)
    return corners - torch.tensor([side // 2 for side in room])

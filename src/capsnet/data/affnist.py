"""affNIST made here: MNIST digits under random small affine transformations on 40×40, with the published ranges.

`affnist_files.py` reads the published set itself.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from capsnet.data.augment import affine, pose_matrices
from capsnet.data.draws import between, draw
from capsnet.data.image_set import ImageSet
from capsnet.data.mnist import load_mnist
from capsnet.errors import InputError

SIZE = 40
ROTATION = 20.0
"""Degrees, either way."""
SHEAR = 0.2
"""Pixels that each row moves beside the one above, either way."""
SCALE = (0.8, 1.2)
"""Of the height and of the width, independently."""
BATCH = 500


def load_affnist_synthetic(split: str) -> ImageSet:
    """The 10,000 test digits of MNIST, each transformed at random once, 1×40×40. There is no training split."""
    if split != "test":
        raise InputError("affnist-synthetic is a test set; the training set that goes with it is expanded-mnist")
    return transformed(load_mnist("test"))


def transformed(image_set: ImageSet, copies: int = 1, size: int = SIZE, seed: int = 0) -> ImageSet:
    """Images under transformations drawn from affNIST's ranges, each whole on a black square of `size`.

    First all images once, then all of them once more, `copies` times; the published test set has 32.
    """
    total = copies * len(image_set)
    images = torch.empty(total, image_set.image_shape[0], size, size, dtype=torch.uint8)
    for start in range(0, total, BATCH):
        stop = min(start + BATCH, total)
        chosen = image_set.images_at(torch.arange(start, stop) % len(image_set))
        images[start:stop] = affine(chosen, _poses(chosen, size, seed, start, stop), (size, size)).cpu()
    return ImageSet(images, image_set.labels.cpu().repeat(copies), image_set.class_names)


def _poses(
    images: UInt8[Tensor, "batch channels height width"], size: int, seed: int, start: int, stop: int
) -> Float[Tensor, "batch 2 3"]:
    numbers = draw(seed, start, stop)
    rotation = torch.from_numpy(between(numbers[:, 0], -ROTATION, ROTATION))
    shear = torch.from_numpy(between(numbers[:, 1], -SHEAR, SHEAR))
    scale = torch.from_numpy(between(numbers[:, 2:4], *SCALE))
    poses = pose_matrices(rotation, shear, scale, torch.zeros(stop - start, 2))
    low, high = _room(images.cpu(), poses[:, :, :2], size)
    poses[:, :, 2] = low + (high - low) * torch.from_numpy(between(numbers[:, 4:6], 0.0, 1.0)).float()
    return poses


def _room(
    images: UInt8[Tensor, "batch channels height width"], linear: Float[Tensor, "batch 2 2"], size: int
) -> tuple[Float[Tensor, "batch 2"], Float[Tensor, "batch 2"]]:
    """The least and the largest offset (down, right) that leave all ink inside the frame after `linear`."""
    height, width = images.shape[2:]
    points = torch.cartesian_prod(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2)
    moved = points @ linear.mT  # (batch, points, 2)
    ink = images.amax(dim=1).flatten(1).bool()[:, :, None]
    reach = linear.abs().sum(dim=2)  # linear interpolation carries a pixel's ink up to a pixel further
    low = torch.where(ink, moved, torch.inf).amin(dim=1) - reach
    high = torch.where(ink, moved, -torch.inf).amax(dim=1) + reach
    empty = ~ink.any(dim=1)
    low, high = -size / 2 - low.masked_fill(empty, 0), size / 2 - high.masked_fill(empty, 0)
    middle = (low + high) / 2
    return torch.minimum(low, middle), torch.maximum(high, middle)  # what is too large for the frame is centred

"""The one form in which every data set reaches the models."""

from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from capsnet.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory: `images` uint8 `(N, C, H, W)`, `labels` int64 `(N,)`, a name for each class.

    Raises `InputError` if the parts do not fit together.
    """

    images: UInt8[Tensor, "count channels height width"]
    labels: Int64[Tensor, " count"]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InputError(
                "images must be uint8 of shape (N, C, H, W), "
                f"not {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise InputError(
                f"labels must be int64 of shape ({len(self.images)},), one for each image, "
                f"not {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        if not len(self.images):
            raise InputError("there are no images in this set")
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        if lowest < 0 or highest >= len(self.class_names):
            raise InputError(
                f"labels must be 0 to {len(self.class_names) - 1}, but they reach from {lowest} to {highest}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def require(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Raises `InputError` unless a model for such images and so many classes fits this set."""
        check_fit(image_shape, num_classes, self.image_shape, self.num_classes)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same images and labels on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.class_names)

    def batch(self, start: int, stop: int) -> "ImageSet":
        """The images `start` to `stop`, or to the end, if that comes first."""
        return self.select(slice(start, stop))

    def first(self, count: int) -> "ImageSet":
        """The first images only, for a quick look."""
        return self.select(slice(count))

    def centre(self, size: int) -> "ImageSet":
        """The square of `size` pixels a side in the middle of each image. Raises `InputError` if it is larger."""
        _, height, width = self.image_shape
        if not 0 < size <= min(height, width):
            raise InputError(f"cannot cut {size}×{size} pixels out of images of {height}×{width}")
        top, left = (height - size) // 2, (width - size) // 2
        square = self.images[:, :, top : top + size, left : left + size].contiguous()
        return ImageSet(square, self.labels, self.class_names)

    def select(self, indices: Tensor | slice) -> "ImageSet":
        """The images at these positions, in this order."""
        return ImageSet(self.images[indices], self.labels[indices], self.class_names)

    def hold_out(self, count: int, seed: int = 0) -> tuple["ImageSet", "ImageSet"]:
        """Split into (the rest, `count` images drawn at random by `seed`), for choosing without the test set."""
        if not 0 < count < len(self):
            raise InputError(f"cannot hold out {count} of {len(self)} images; at least one must be on either side")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.select(order[count:].sort().values), self.select(order[:count].sort().values)


def check_fit(
    model_shape: tuple[int, int, int], model_classes: int, image_shape: tuple[int, int, int], num_classes: int
) -> None:
    """Raises `InputError` unless a model for the first two fits images of the last two."""
    if tuple(model_shape) != image_shape:
        raise InputError(
            f"the model takes images of (channels, height, width) {tuple(model_shape)}, "
            f"but those of this set are {image_shape}"
        )
    if model_classes != num_classes:
        raise InputError(f"the model has {model_classes} classes, but this set has {num_classes}")


def to_float(images: UInt8[Tensor, "..."]) -> Tensor:
    """Pixels 0 to 255 become 0.0 to 1.0."""
    return images.float().div_(255)

"""The one form in which every data set reaches the models."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from capsnet.data.framing import Framing
from capsnet.errors import InputError
from capsnet.functional import class_numbers
from capsnet.text import printable

PIECE = 2**24
"""Bytes of images that are looked at or moved at a time, where all of them may not fit into memory."""


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: `images` uint8 `(N, C, H, W)`, `labels` `(N,)`, a name for each class.

    Labels are class numbers of any integer type, also as a column `(N, 1)`; here they are int64 `(N,)`.

    The images lie in memory, or in a file that is mapped into it; such a file may be larger than memory, and its images
    cannot be written to. `framing` says how pictures were made into these images; None where that is not known.
    Raises `InputError` if the parts do not fit together.
    """

    images: UInt8[Tensor, "count channels height width"]
    labels: Int[Tensor, "count *one"]
    class_names: tuple[str, ...]
    framing: Framing | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise InputError(
                "images must be uint8 of shape (N, C, H, W), "
                f"not {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        labels = class_numbers(self.labels, len(self.class_names), len(self.images))
        if labels.ndim > 1:
            raise InputError(f"an image of a set has one class, but the labels are of shape {tuple(labels.shape)}")
        object.__setattr__(self, "labels", labels)  # this class is frozen
        if not len(self.images):
            raise InputError("there are no images in this set")
        lowest, highest = int(self.labels.min()), int(self.labels.max())  # also on a GPU
        if lowest < 0 or highest >= len(self.class_names):
            raise InputError(
                f"labels must be 0 to {len(self.class_names) - 1}, but they reach from {lowest} to {highest}"
            )
        names = tuple(map(printable, self.class_names))
        if len(set(names)) < len(set(self.class_names)):
            raise InputError("the names of two classes differ only in characters that cannot be shown; rename one")
        object.__setattr__(self, "class_names", names)

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

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.images.device

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return len(self) * math.prod(self.image_shape)

    def images_at(self, indices: Int[Tensor, " some"] | slice) -> UInt8[Tensor, "some channels height width"]:
        """The images at these positions alone: nothing else is read."""
        return self.images[indices]

    def pieces(self) -> Iterator[UInt8[Tensor, "some channels height width"]]:
        """All images in order, a few megabytes at a time."""
        step = max(1, PIECE // math.prod(self.image_shape))
        for start in range(0, len(self), step):
            yield self.images_at(slice(start, start + step))

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same images and labels on `device`."""
        return self._like(self.images.to(device), self.labels.to(device))

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
        return self._like(self.images[:, :, top : top + size, left : left + size], self.labels)

    def select(self, indices: Tensor | slice) -> "ImageSet":
        """The images at these positions, in this order."""
        return self._like(self.images_at(indices), self.labels[indices])

    def hold_out(self, count: int, seed: int = 0) -> tuple["ImageSet", "ImageSet"]:
        """Split into (the rest, `count` images drawn at random by `seed`), for choosing without the test set.

        No image is copied: both know their positions in this set.
        """
        rest, held_out = self._draw(count, seed)
        return Selection(self, rest), Selection(self, held_out)

    def with_classes(self, names: tuple[str, ...]) -> "ImageSet":
        """The same images with labels among `names`. Raises `InputError` if the set has a class of another name."""
        unknown = [name for name in self.class_names if name not in names]
        if unknown:
            raise InputError(f"this set has a class {unknown[0]!r}, which is none of: {', '.join(names)}")
        places = torch.tensor([names.index(name) for name in self.class_names], device=self.labels.device)
        return ImageSet(self.images, places[self.labels], names, self.framing)

    def _draw(self, count: int, seed: int) -> tuple[Int64[Tensor, " rest"], Int64[Tensor, " drawn"]]:
        """Positions of the rest, and of `count` images drawn at random."""
        if not 0 < count < len(self):
            raise InputError(f"cannot hold out {count} of {len(self)} images; at least one must be on either side")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return order[count:].sort().values, order[:count].sort().values

    def _like(self, images: Tensor, labels: Tensor) -> "ImageSet":
        return ImageSet(images, labels, self.class_names, self.framing)


class Selection(ImageSet):
    """The images of another set at some positions, gathered when they are asked for."""

    def __init__(self, whole: ImageSet, positions: Int64[Tensor, " count"]) -> None:
        labels = whole.labels[positions.to(whole.labels.device)]
        parts = {"whole": whole, "positions": positions, "labels": labels}
        for name, value in (parts | {"class_names": whole.class_names, "framing": whole.framing}).items():
            object.__setattr__(self, name, value)  # the class above is frozen

    whole: ImageSet
    positions: Int64[Tensor, " count"]

    @cached_property
    def images(self) -> UInt8[Tensor, "count channels height width"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A copy of all of them; `images_at` and `batch` copy no more than is asked for."""
        return self.images_at(slice(None))

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.whole.image_shape

    @property
    def device(self) -> torch.device:
        return self.whole.device

    def images_at(self, indices: Int[Tensor, " some"] | slice) -> UInt8[Tensor, "some channels height width"]:
        chosen = indices if isinstance(indices, slice) else indices.to(self.positions.device)
        return self.whole.images_at(self.positions[chosen].to(self.whole.device))

    def to(self, device: torch.device | str) -> ImageSet:
        if torch.device(device) == self.device:
            return self
        images = torch.empty(len(self), *self.image_shape, dtype=torch.uint8, device=device)
        start = 0
        for piece in self.pieces():
            images[start : start + len(piece)] = piece
            start += len(piece)
        return self._like(images, self.labels.to(device))

    def first(self, count: int) -> ImageSet:
        return Selection(self.whole, self.positions[:count])

    def centre(self, size: int) -> ImageSet:
        return Selection(self.whole.centre(size), self.positions)


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


def prints_of(images: ImageSet) -> Iterator[str]:
    """Tells each image from others."""
    for piece in images.pieces():
        yield from (hashlib.sha256(image.cpu().contiguous().numpy().data).hexdigest()[:16] for image in piece)


def to_float(images: UInt8[Tensor, "..."]) -> Tensor:
    """Pixels 0 to 255 become 0.0 to 1.0."""
    return images.float().div_(255)

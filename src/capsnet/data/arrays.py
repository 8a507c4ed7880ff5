"""Images that lie in an array, which may be too large for memory, as one part of a user's set."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from capsnet.data.framing import PixelRange
from capsnet.data.pictures import Measured, frame
from capsnet.errors import InputError

PIECE = 2**20
"""Bytes that are read, or made, at a time; at least one image."""

Shape = tuple[int, int, int]
Images = UInt8[np.ndarray, "some channels height width"]


@dataclass(frozen=True)
class Arrays:
    """Images of one shape (channels, height, width), which `read` gives in order, a few at a time.

    Of those that are read, the ones at `rows` (ascending) belong to this part; by default all. `measure` finds the
    lowest and highest number where those are no ordinary ones; `read` is given what is to become 0 and 255.
    """

    labels: Int64[np.ndarray, " count"]
    shape: Shape
    read: Callable[[PixelRange | None], Iterator[Images]]
    rows: Int64[np.ndarray, " count"] | None = None
    measure: Callable[[], PixelRange | None] = lambda: None

    def measures(self, values: bool) -> Iterator[Callable[[], Measured]]:
        channels, height, width = self.shape
        measured = Measured(height, width, channels, self.measure() if values else None)
        yield lambda: measured  # and what is wrong with the arrays was raised: it is no single picture's damage

    def tasks(self, shape: Shape, pixel_range: PixelRange | None) -> Iterator[Callable[[], Images]]:
        if shape[0] != self.shape[0] and not {shape[0], self.shape[0]} <= {1, 3}:
            raise InputError(f"images of {self.shape[0]} channels cannot be made into images of {shape[0]}")
        start, step = 0, max(1, PIECE // math.prod(shape))  # images may be made larger
        for images in self.read(pixel_range):
            if self.rows is not None:
                first, last = np.searchsorted(self.rows, [start, start + len(images)])
                start += len(images)
                images = images[self.rows[first:last] - (start - len(images))]
            if images.nbytes > PIECE:  # no more than one large image in memory, where as many wait as there are tasks
                images = _fitted(images, shape)
            for position in range(0, len(images), step):
                yield partial(_fitted, images[position : position + step], shape)


def _fitted(images: Images, shape: Shape) -> UInt8[np.ndarray, "some bands rows columns"]:
    if images.shape[1:] == shape:
        return images
    return np.stack([_fit(image, shape) for image in images])


def _fit(image: UInt8[np.ndarray, "channels height width"], shape: Shape) -> UInt8[np.ndarray, "bands rows columns"]:
    """As `predict` frames the picture that this image would be; channels that make no picture, each for itself."""
    if len(image) == 3:
        return frame(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), shape).numpy()
    if len(image) == 1:
        return frame(Image.fromarray(np.ascontiguousarray(image[0])), shape).numpy()
    return np.concatenate([_fit(band[None], (1, *shape[1:])) for band in image])

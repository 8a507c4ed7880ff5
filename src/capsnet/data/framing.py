"""How the images of a training set are framed, so that foreign pictures can be framed alike."""

import math
from dataclasses import dataclass
from typing import Literal

from capsnet.errors import InputError

PixelRange = tuple[float | int, float | int]
"""What becomes 0 and 255 of pictures with more than 8 bits a pixel."""

MEASURED: Literal["measured"] = "measured"
"""The lowest and the highest number in the whole set."""

WantedRange = PixelRange | Literal["measured"] | None
"""None where each picture is scaled by what its own type can hold."""


@dataclass(frozen=True)
class Framing:
    """What stands where on the images of a set. `Framing()`: pictures are scaled to fit, and nothing else.

    `background` is "black" or "white" where the set has a plain background, else None. `extent` is the usual size
    of what stands on that background, as a share of the image's longer side (20/28 in MNIST), or None where things
    shall stay as large as they are, and where; `centre` is where its centre of mass usually lies, as a share of height
    and width. Where the model sees squares cut out of the images, `whole` is the height and width of those.
    `pixel_range` is what became 0 and 255 of pictures with more than 8 bits a pixel, where the set has such pictures.
    """

    background: Literal["black", "white"] | None = None
    extent: float | None = 1.0
    centre: tuple[float, float] = (0.5, 0.5)
    whole: tuple[int, int] | None = None
    pixel_range: PixelRange | None = None

    def __post_init__(self) -> None:
        if self.pixel_range is not None:
            check_pixel_range(self.pixel_range)
        shares = (1.0 if self.extent is None else self.extent, *self.centre)
        sound = all(isinstance(s, int | float) and s is not True and 0 < s <= 1 for s in shares)
        if self.background not in ("black", "white", None) or len(shares) != 3 or not sound:
            raise InputError(f"{self} is no framing: extent and centre are shares of the image, above 0 and up to 1")


def check_pixel_range(pixel_range: PixelRange) -> PixelRange:
    """Raises `InputError` unless these are two finite numbers, the lower one first."""
    if len(pixel_range) != 2 or not all(map(math.isfinite, pixel_range)) or not pixel_range[0] < pixel_range[1]:
        raise InputError(f"a range of pixels is two numbers, the lower one first, not {pixel_range!r}")
    return float(pixel_range[0]), float(pixel_range[1])

"""Pictures of more than 8 bits a pixel: which they are, what numbers are in them, and how these become bytes."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from capsnet.data.framing import PixelRange
from capsnet.data.kinds import sample_of

DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")
"""Of more than 8 bits a pixel."""

OTHER_ORDER = {
    f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBA") for order, other in ("BL", "LB", "NB")
}
"""How colours of 16 bits lie in a file, and what takes the lower byte of each for the upper one then."""

OTHER_NUMBERS = {("signed", 8): np.int8, ("unsigned", 32): np.uint32}
"""What the numbers of a TIFF are where Pillow takes them for others of as many bits."""

MANY_VALUES = 2**20
"""Of larger pictures not every pixel is looked at to find the lowest and highest."""

RARE = 0.001
"""Of the pixels of a picture: so few may be lower, or higher, than what counts as its lowest and highest. They may be
dead ones of a sensor."""


def is_costly(picture: ImageFile.ImageFile) -> bool:
    """Whether the numbers are found in a second copy of the picture."""
    return raw_mode(picture) in OTHER_ORDER or sample_of(picture) in OTHER_NUMBERS


def is_deep(picture: ImageFile.ImageFile) -> bool:
    return picture.mode in DEEP_MODES or sample_of(picture) == ("signed", 8) or raw_mode(picture) in OTHER_ORDER


def raw_mode(picture: ImageFile.ImageFile) -> str:
    args = picture.tile[0].args if picture.tile else ""
    return str(args if isinstance(args, str) or not args else args[0])


def true_numbers(picture: ImageFile.ImageFile) -> Image.Image:
    """Of bytes with a sign and of 32 bits without one Pillow gives numbers of the other kind; as floats these are."""
    kind = OTHER_NUMBERS.get(sample_of(picture))
    if kind is None or picture.mode not in ("L", "I"):
        return picture
    return Image.fromarray(np.asarray(picture).view(kind).astype(np.float32))


def lower_bytes(picture: ImageFile.ImageFile) -> Image.Image | None:
    """Of colours of 16 bits Pillow keeps the upper byte; read in the other order of bytes, that is the lower one."""
    if raw_mode(picture) not in OTHER_ORDER or picture.fp is None:
        return None
    file: Any = picture.fp
    position = file.tell()
    file.seek(0)
    lower: Any = Image.open(file, formats=(picture.format or "",))
    (tile, *others), swapped = lower.tile, OTHER_ORDER[raw_mode(picture)]
    args = swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:])
    lower.tile = [each._replace(args=args) for each in (tile, *others)]
    lower.load()
    file.seek(position)
    return lower


def whole_numbers(upper: Image.Image, lower: Image.Image) -> np.ndarray:
    """(height, width, 3)"""
    return np.asarray(upper)[..., :3].astype(np.uint16) * 256 + np.asarray(lower)[..., :3]


def measure_values(picture: ImageFile.ImageFile) -> PixelRange | None:
    lower = lower_bytes(picture)
    step = max(1.0, math.sqrt(picture.width * picture.height / MANY_VALUES))
    size = max(1, int(picture.width / step)), max(1, int(picture.height / step))
    numbers = true_numbers(picture).resize(size, Image.Resampling.NEAREST)
    if lower is None:
        return extremes(np.asarray(numbers))
    return extremes(whole_numbers(numbers, lower.resize(size, Image.Resampling.NEAREST)))


def extremes(values: np.ndarray) -> PixelRange | None:
    """The lowest and the highest of numbers, but for a few (`RARE`); None if none is finite."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    few = int(RARE * finite.size)
    ordered = np.partition(finite, (few, finite.size - 1 - few))
    return float(ordered[few]), float(ordered[finite.size - 1 - few])


def to_bytes(values: np.ndarray, pixel_range: PixelRange) -> UInt8[np.ndarray, "..."]:
    """Numbers of this range as 0 to 255, what lies outside cut off; what is no number is 0."""
    black, white = pixel_range
    return by_parts(values, lambda part: ((part - black) * (255 / (white - black))).round())


def by_parts(values: np.ndarray, scale: Callable[[np.ndarray], np.ndarray]) -> UInt8[np.ndarray, "..."]:
    parts = np.array_split(values, 1 + values.size // 2**22)
    scaled = (np.nan_to_num(scale(part.astype(np.float32)), nan=0, posinf=0, neginf=0) for part in parts)
    return np.concatenate([part.clip(0, 255).astype(np.uint8) for part in scaled])

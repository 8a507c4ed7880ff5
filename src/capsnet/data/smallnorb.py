"""smallNORB: toys of five kinds, photographed by two cameras (LeCun, Huang and Bottou, 2004).

The published files hold a little-endian header (a magic number for the type, the number of dimensions, and three or
more sizes), then the numbers.
"""

import math
import os
import struct
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from capsnet.data.binary import Bytes, opened
from capsnet.data.image_set import ImageSet
from capsnet.errors import InputError

CLASSES = ("animal", "human", "plane", "truck", "car")
MAGIC = {"dat": 0x1E3D4C55, "cat": 0x1E3D4C54, "info": 0x1E3D4C54}
"""Unsigned bytes, and integers of 32 bits."""
SHAPE = (2, 96, 96)
"""(cameras, height, width) in the files; the size is halved, as in the paper."""
CHUNK = 500
MAX_COUNT = 100_000
"""The published files have 24,300 images each."""
SPLIT_NAMES = {"train": "training", "test": "testing"}


def read_smallnorb(place: str, split: str) -> ImageSet:
    """The published files in a folder (…-training-dat.mat, …-testing-cat.mat.gz, …): images (N, 2, 48, 48).

    The two channels are the two cameras; each pixel is the mean of 2×2. Raises `InputError` if a file is missing,
    damaged or another.
    """
    with opened(_find(place, split, "dat")) as content:
        count = _read_header(content, "dat", SHAPE)
        chunks = []
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            pixels = np.frombuffer(content.take(size * math.prod(SHAPE)), np.uint8).reshape(size, *SHAPE)
            chunks.append(_halved(torch.from_numpy(pixels)))
        content.expect_end()
    images = torch.cat(chunks)
    labels = torch.from_numpy(_read_integers(_find(place, split, "cat"), "cat", ())).long()
    if len(labels) != count:
        raise InputError(f"the {split} files of smallNORB in {place} hold {count:,} images, but {len(labels):,} labels")
    try:
        return ImageSet(images, labels, CLASSES)
    except InputError as error:
        raise InputError(f"{_find(place, split, 'cat')} is damaged: {error}") from None


def read_smallnorb_poses(place: str, split: str) -> Int64[Tensor, "count 4"]:
    """What else is known of each image: instance, elevation, azimuth and lighting.

    Instance 0 to 9; elevation 0 to 8, from 30° in steps of 5°; azimuth 0 to 34, in units of 10°; lighting 0 to 5.
    """
    return torch.from_numpy(_read_integers(_find(place, split, "info"), "info", (4,))).long()


def _read_integers(path: Path, kind: str, shape: tuple[int, ...]) -> Int32[np.ndarray, "count ..."]:
    with opened(path) as content:
        count = _read_header(content, kind, shape)
        values = content.take(4 * count * math.prod(shape))
        content.expect_end()
    return np.frombuffer(values, "<i4").astype(np.int32).reshape(count, *shape)


def _read_header(content: Bytes, kind: str, shape: tuple[int, ...]) -> int:
    """How many there are. Raises `InputError` unless each is of the kind's type and of this shape."""
    magic, dimensions = struct.unpack("<II", content.take(8))
    if magic != MAGIC[kind]:
        raise InputError(f"{content.path} is not a -{kind} file of smallNORB: it begins with {magic:#010x}")
    if dimensions != 1 + len(shape):
        raise InputError(f"{content.path} is damaged: it has {dimensions} dimensions, not {1 + len(shape)}")
    stored = max(dimensions, 3)  # the format has room for three sizes, whether they are used or not
    count, *rest = struct.unpack(f"<{stored}I", content.take(4 * stored))[:dimensions]
    if tuple(rest) != shape or not 0 < count <= MAX_COUNT:
        held, wanted = "×".join(map(str, [count, *rest])), "×".join(map(str, ["N", *shape]))
        raise InputError(f"{content.path} holds {held} numbers; in smallNORB they are {wanted}")
    return count


def _halved(
    pixels: UInt8[Tensor, "count cameras height width"],
) -> UInt8[Tensor, "count cameras half_height half_width"]:
    fours = pixels.short().unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).sum(dim=(3, 5))
    return ((fours + 2) // 4).byte()


def _find(place: str, split: str, kind: str) -> Path:
    folder = Path(os.path.expanduser(place))
    ending = f"{SPLIT_NAMES[split]}-{kind}.mat"
    for path in sorted([*folder.glob(f"smallnorb-*-{ending}"), *folder.glob(f"smallnorb-*-{ending}.gz")]):
        return path
    raise InputError(f"there is no file smallnorb-…-{ending} (or .mat.gz) in {folder}")

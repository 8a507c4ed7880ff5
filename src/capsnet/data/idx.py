"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST: a big-endian header, then unsigned bytes."""

import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from capsnet.data.arrays import PIECE, Arrays
from capsnet.data.binary import Bytes, opened
from capsnet.data.cache import stamp
from capsnet.data.framing import MEASURED, PixelRange, WantedRange
from capsnet.data.image_set import ImageSet
from capsnet.data.pictures import MAX_PIXELS
from capsnet.data.prepared import Source, prepared
from capsnet.data.splits import ALL
from capsnet.errors import InputError

UNSIGNED_BYTES = 0x08
DIMENSIONS = {"images": 3, "labels": 1}
SPLIT_NAMES = {"train": "train", "test": "t10k|test"}
MAX_COUNT = 2**24
"""No known set has as many images; where packed files say more, they unpack to more than memory."""


def read_idx(
    place: str,
    split: str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet:
    """Images (N, 1, H, W) and labels from the four usual files in a folder, compressed or not.

    They are named as those of MNIST: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte.gz`, … If their names begin
    with something more, as those of EMNIST do, `place` is the folder and that beginning: `emnist/emnist-letters`. The
    classes are 0 to the highest label in both splits. Raises `InputError` if a file is missing, damaged or another.
    """
    files = {use: {kind: _find(place, use, kind) for kind in DIMENSIONS} for use in SPLIT_NAMES}
    try:
        states = [(os.path.realpath(path), path.stat()) for own in files.values() for path in own.values()]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None
    split = "test" if split == ALL else split  # which it always has
    return prepared(place, ["idx", stamp(states)], lambda: _describe(place, files), split, size, channels, pixel_range)


def has_idx(folder: Path) -> bool:
    """Whether there is a file in the folder that `read_idx` takes for training images."""
    return any(_pattern("train", "images", "").fullmatch(file.name) for file in folder.glob("*"))


def _describe(place: str, files: Mapping[str, Mapping[str, Path]]) -> Source:
    labels: dict[str, np.ndarray] = {}
    parts: dict[str, Arrays] = {}
    for split, own in files.items():
        count, height, width = _read_shape(own["images"])
        labels[split] = read_idx_file(own["labels"], DIMENSIONS["labels"]).astype(np.int64)
        if count != len(labels[split]) or not count:
            raise InputError(f"the {split} files in {place} hold {count:,} images, but {len(labels[split]):,} labels")
        parts[split] = Arrays(labels[split], (1, height, width), partial(_read_images, own["images"]))
    if len({part.shape for part in parts.values()}) > 1:
        raise InputError(f"the train and test images in {place} have different sizes")
    highest = max(int(own.max()) for own in labels.values())
    names = tuple(str(k) for k in range(highest + 1))
    return Source(names, parts, complete=False, framed=False)


def _read_shape(path: Path) -> tuple[int, int, int]:
    with opened(path) as content:
        count, height, width = _read_header(content, DIMENSIONS["images"])
    if not 0 < height * width <= MAX_PIXELS:
        raise InputError(f"{path} has images of {height}×{width} pixels; 1 to {MAX_PIXELS:,} can be used")
    return count, height, width


def _read_images(path: Path, pixel_range: PixelRange | None) -> Iterator[UInt8[np.ndarray, "some 1 height width"]]:
    with opened(path) as content:
        count, height, width = _read_header(content, DIMENSIONS["images"])
        step = max(1, PIECE // (height * width))
        for start in range(0, count, step):
            rows = min(step, count - start)
            yield np.frombuffer(content.take(rows * height * width), np.uint8).reshape(rows, 1, height, width)
        content.expect_end()


def read_idx_file(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes. Raises `InputError` for any other file."""
    with opened(path) as content:
        shape = _read_header(content, dimensions)
        values = content.take(math.prod(shape))
        content.expect_end()
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_header(content: Bytes, dimensions: int) -> tuple[int, ...]:
    """The shape of the array that follows."""
    zeros, kind, found = struct.unpack(">HBB", content.take(4))
    if zeros:
        raise InputError(f"{content.path} is not an IDX file")
    if kind != UNSIGNED_BYTES or found != dimensions:
        raise InputError(
            f"{content.path} holds numbers of IDX type {kind:#04x} in {found} dimensions; "
            f"it should hold unsigned bytes (0x08) in {dimensions}"
        )
    shape = struct.unpack(f">{dimensions}I", content.take(4 * dimensions))
    if shape[0] > MAX_COUNT:
        raise InputError(f"{content.path} is truncated, or its header is damaged: it speaks of {shape[0]:,} items")
    return shape


def _find(place: str, split: str, kind: str) -> Path:
    path = Path(os.path.expanduser(place))
    folder, prefix = (path, "") if os.path.isdir(path) else (path.parent, f"{path.name}-")
    pattern = _pattern(split, kind, prefix)
    found = sorted(file for file in folder.glob("*") if pattern.fullmatch(file.name))
    if not found:
        usual = SPLIT_NAMES[split].split("|")[0]
        raise InputError(
            f"there is no IDX file {path}{'/' if not prefix else '-'}{usual}-{kind}-idx{DIMENSIONS[kind]}-ubyte(.gz)"
        )
    return found[0]


def _pattern(split: str, kind: str, prefix: str) -> re.Pattern[str]:
    ending = rf"[-.]{kind}[-.]idx{DIMENSIONS[kind]}-ubyte(\.gz)?"
    return re.compile(rf"{re.escape(prefix)}({SPLIT_NAMES[split]}){ending}")

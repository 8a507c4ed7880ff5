"""NumPy archives with images and labels, named as Keras, MedMNIST and most others name them.

They are read a few images at a time, so an archive may be larger than memory, and no pickle in it is ever opened.
"""

import contextlib
import io
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64

from capsnet.data.arrays import PIECE, Arrays, Images, Shape
from capsnet.data.cache import stamp
from capsnet.data.depth import RARE, to_bytes
from capsnet.data.framing import MEASURED, PixelRange, WantedRange
from capsnet.data.image_set import ImageSet
from capsnet.data.pictures import MAX_PIXELS
from capsnet.data.prepared import Part, Source, prepared
from capsnet.data.splits import ALL, DRAWN, NAMES, draw_test, in_order, to_test_on, with_test
from capsnet.disk import NotAFileError, open_file
from capsnet.errors import InputError, gist

IMAGES = ("images", "x", "data", "image", "imgs")
LABELS = ("labels", "y", "label", "targets", "target")
MAX_COUNT, MAX_CLASSES, MAX_LABEL_BYTES, MAX_NAME_BYTES = 2**23, 2**16, 2**29, 2**26
"""Of images, of different labels, of all labels and of those that are text: a small archive may unpack to any size."""
MAX_CHANNELS = 16
"""An axis of more is a side of the images."""


@dataclass(frozen=True)
class Stored:
    """An array of an archive that is not read yet."""

    archive: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def name(self) -> str:
        return f"{self.archive}, {self.member.removesuffix('.npy')}"

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, piece: int) -> Iterator[np.ndarray]:
        """The array along its first axis, about `piece` bytes at a time."""
        count = max(1, piece // max(1, self.row_bytes))
        with _opened(self.archive) as archive, archive.open(self.member) as file:
            _read_header(file)
            for start in range(0, self.shape[0], count):
                rows = min(count, self.shape[0] - start)
                content = file.read(rows * self.row_bytes)
                if len(content) < rows * self.row_bytes:
                    raise InputError(f"{self.name} is truncated")
                yield np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])
            if file.read(1):
                raise InputError(f"{self.name} is longer than its header says")


def read_npz(
    place: str,
    split: str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) of an `.npz` file, and their labels.

    Whole numbers from 0 to 255 and floats from 0 to 1 are taken as they are; of others `pixel_range` becomes 0 to 255.

    The arrays are called `images` and `labels` (`x`, `y`), or `x_train`, `train_images`, `y_test`, …; labels are one
    number or name an image, or one-hot. Raises `InputError` if the file is damaged or holds anything else.
    """
    path = Path(os.path.expanduser(place))
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    identity = ["npz", os.path.realpath(path), stamp([(path.name, state)])]
    return prepared(place, identity, lambda: _describe(path, place, split == ALL), split, size, channels, pixel_range)


def _describe(path: Path, place: str, whole: bool) -> Source:
    arrays = _list(path)
    pairs = _pairs(path, arrays)
    if whole:
        pairs = {"test": pairs[to_test_on(pairs) or next(iter(pairs))]}
    shapes = {split: _image_shape(images) for split, (images, _) in pairs.items()}
    values = {split: _read_labels(labels) for split, (_, labels) in pairs.items()}
    for split, (images, labels) in pairs.items():
        if images.shape[0] != len(values[split]):
            raise InputError(
                f"{images.name} holds {images.shape[0]:,} images, but {labels.name} {len(values[split]):,}"
            )
    class_names, numbers = _classes(values)
    if len(set(shapes.values())) > 1:
        sizes = " and ".join(f"{'×'.join(map(str, shape))} in {split}" for split, shape in shapes.items())
        raise InputError(f"the images of {path} are of different shapes: {sizes}")
    measure = cache(partial(_measure, [images for images, _ in pairs.values()]))
    if "" in pairs:
        images, labels = pairs[""][0], numbers[""]
        drawn = draw_test([str(row) for row in range(len(labels))], labels, class_names, place)
        parts: dict[str, Part] = {
            split: Arrays(labels[rows], shapes[""], partial(_read_images, images), rows, measure)
            for split, rows in ((split, np.sort(rows)) for split, rows in drawn.items())
        }
        return Source(class_names, parts, DRAWN)
    parts = {
        use: Arrays(numbers[split], shapes[split], partial(_read_images, pairs[split][0]), measure=measure)
        for split, use in with_test(pairs).items()
    }
    return Source(class_names, parts, complete=not whole, fewest=1 if whole else 2)


def _pairs(path: Path, arrays: Mapping[str, Stored]) -> dict[str, tuple[Stored, Stored]]:
    """Images and labels of each split, or of "" where there is but one of each."""
    folded = {name.casefold(): stored for name, stored in arrays.items()}
    pairs = {}
    for split, spellings in {**NAMES, "": ("",)}.items():
        images, labels = (_named(folded, things, spellings) for things in (IMAGES, LABELS))
        if pairs and not split:
            break  # what lies beside arrays with a split, as names of the classes may, is not looked at
        if images and labels:
            pairs[split] = (images, labels)
        elif found := images or labels:
            lacking = (LABELS if images else IMAGES)[0]
            raise InputError(f"{found.name} is there, but the {lacking} that go with it are not")
    if "train" in pairs and len(pairs) == 1:
        return {"": pairs["train"]}
    if not pairs:
        there = ", ".join(f"{name} {stored.shape}" for name, stored in list(arrays.items())[:20]) or "none"
        raise InputError(f"{path} has no arrays called images and labels, or x_train, y_train, …; there are: {there}")
    return pairs


def _named(arrays: Mapping[str, Stored], things: tuple[str, ...], splits: tuple[str, ...]) -> Stored | None:
    for thing in things:
        for split in splits:
            for name in (f"{thing}_{split}", f"{split}_{thing}") if split else (thing,):
                if name in arrays:
                    return arrays[name]
    return None


def _image_shape(images: Stored) -> Shape:
    """(channels, height, width)"""
    if images.fortran:
        raise InputError(f"{images.name} lies column by column; save it with np.ascontiguousarray")
    if images.dtype.kind not in "uif":
        raise InputError(f"{images.name} holds {images.dtype}; images are whole numbers or floats")
    sides = images.shape[1:]
    shape: tuple[int, ...] = ()
    if len(sides) == 2:
        shape = (1, *sides)
    elif len(sides) == 3:
        shape = (sides[2], sides[0], sides[1]) if _channels_last(sides) else sides
    if not shape or shape[0] > MAX_CHANNELS:
        raise InputError(
            f"{images.name} has the shape {images.shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if not 0 < images.row_bytes <= MAX_PIXELS:
        raise InputError(f"{images.name} has images of {images.row_bytes:,} bytes; 1 to {MAX_PIXELS:,} can be used")
    return shape[0], shape[1], shape[2]


def _channels_last(sides: tuple[int, ...]) -> bool:
    """As Keras has them, rather than PyTorch, if both could be meant."""
    first, last = sides[0], sides[2]
    return last in (1, 3) or (first not in (1, 3) and last <= first)


def _measure(arrays: list[Stored]) -> PixelRange | None:
    """The lowest and the highest number in the images of all splits, but for a few; None if none needs scaling.

    Those are whole numbers from 0 to 255, and floats from 0 to 1.
    """
    ordinary, lows, highs = True, [], []
    for stored in arrays:
        for values in stored.read(PIECE) if stored.dtype != np.uint8 else ():
            lowest, highest = values.min(), values.max()
            if not np.isfinite(lowest) or not np.isfinite(highest):
                raise InputError(f"{stored.name} reaches from {lowest} to {highest}; images are finite numbers")
            ordinary &= bool(lowest >= 0 and highest <= _white(stored))
            rows = values.reshape(len(values), -1)
            few = int(RARE * rows.shape[1])
            ordered = np.partition(rows, (few, rows.shape[1] - 1 - few), axis=1)
            lows.append(float(ordered[:, few].min()))
            highs.append(float(ordered[:, -1 - few].max()))
    if ordinary:
        return None
    kinds = {_white(stored): stored for stored in arrays}
    if len(kinds) > 1:
        names = " and ".join(f"{stored.name} {stored.dtype}" for stored in kinds.values())
        raise InputError(f"one scale cannot be found for arrays of different kinds: {names}")
    return min(lows), max(highs)


def _white(stored: Stored) -> int:
    return 1 if stored.dtype.kind == "f" else 255


def _read_images(stored: Stored, pixel_range: PixelRange | None) -> Iterator[Images]:
    channels_last = len(stored.shape) == 4 and _channels_last(stored.shape[1:])
    highest = _white(stored)
    for values in stored.read(PIECE):
        if pixel_range and stored.dtype != np.uint8:
            pixels = to_bytes(values, pixel_range)
        elif not (values.min() >= 0 and values.max() <= highest):  # or not a number
            wanted = "floats from 0 to 1" if highest == 1 else "whole numbers from 0 to 255"
            raise InputError(f"{stored.name} reaches from {values.min()} to {values.max()}; images are {wanted}")
        else:
            pixels = values.astype(np.uint8) if highest == 255 else (values * 255).round().astype(np.uint8)
        yield pixels.transpose(0, 3, 1, 2) if channels_last else pixels.reshape(len(pixels), -1, *pixels.shape[-2:])


def _read_labels(stored: Stored) -> np.ndarray:
    """One number or text for each image."""
    if stored.dtype.hasobject:
        raise InputError(f"{stored.name} holds pickled objects, which are never opened; save labels.astype(str)")
    if stored.dtype.kind not in "uifbU" or len(stored.shape) not in (1, 2) or 0 in stored.shape[1:] or stored.fortran:
        raise InputError(f"{stored.name} holds {stored.dtype} of shape {stored.shape}; labels are one number an image")
    size = stored.shape[0] * stored.row_bytes
    if stored.shape[0] > MAX_COUNT or size > (MAX_NAME_BYTES if stored.dtype.kind == "U" else MAX_LABEL_BYTES):
        raise InputError(f"{stored.name} speaks of {stored.shape[0]:,} labels of {size:,} bytes; that is too many")
    return np.concatenate([_one_each(stored, values) for values in stored.read(PIECE)] or [np.empty(0, np.int64)])


def _one_each(stored: Stored, values: np.ndarray) -> np.ndarray:
    """Some of the labels, as one number or text for each image."""
    if values.ndim == 2 and values.shape[1] > 1:
        if values.dtype.kind == "U" or not ((values == 0) | (values == 1)).all() or (values.sum(axis=1) != 1).any():
            raise InputError(
                f"{stored.name} has {values.shape[1]} labels an image; there must be one, or be it one-hot"
            )
        return values.argmax(axis=1)
    values = values.reshape(len(values))
    if values.dtype.kind == "U":
        return values
    if not np.isfinite(values).all() or (values != np.floor(values)).any() or (abs(values) > 2**31).any():
        raise InputError(f"{stored.name} holds labels that are no whole numbers")
    if (values < 0).any():
        raise InputError(f"{stored.name} has the label {int(values.min())}; labels are 0 or more")
    return values.astype(np.int64)


def _classes(values: Mapping[str, np.ndarray]) -> tuple[tuple[str, ...], dict[str, Int64[np.ndarray, " count"]]]:
    """Names of all labels that occur, and each split's labels as numbers of these."""
    different = {split: np.unique(own) for split, own in values.items()}
    for own in different.values():
        if len(own) > MAX_CLASSES:
            raise InputError(f"there are labels of {len(own):,} classes; up to {MAX_CLASSES:,} can be told apart")
    texts = {split: [str(value) for value in own] for split, own in different.items()}
    names = in_order({name for own in texts.values() for name in own})
    places = {name: place for place, name in enumerate(names)}
    numbers = {}
    for split, own in values.items():
        _, inverse = np.unique(own, return_inverse=True)
        numbers[split] = np.array([places[name] for name in texts[split]], np.int64)[inverse]
    return tuple(names), numbers


def _list(path: Path) -> dict[str, Stored]:
    arrays = {}
    with _opened(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack all at once
                raise InputError(f"{path} is not packed as NumPy packs: {member.filename}")
            with archive.open(member) as file:
                shape, fortran, dtype = _read_header(file)
                stored = Stored(path, member.filename, shape, dtype, fortran and len(shape) > 1)
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
                    raise InputError(f"{stored.name} is damaged: its header speaks of another size")
            arrays[member.filename.removesuffix(".npy")] = stored
    return arrays


def _read_header(file: IO[bytes] | io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if any(side < 0 for side in shape):
        raise ValueError(f"negative shape {shape}")
    return shape, fortran, dtype


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive to read; whatever is wrong with it raises `InputError`."""
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except NotAFileError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # of a damaged archive zipfile and NumPy raise whatever they stumble over
        raise InputError(f"{path} is damaged or no .npz file: {gist(error)}") from None

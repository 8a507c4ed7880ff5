"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST: a big-endian header, then unsigned bytes."""

import math
import re
import struct
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from capsnet.data.binary import opened
from capsnet.data.image_set import ImageSet
from capsnet.errors import InputError

UNSIGNED_BYTES = 0x08
DIMENSIONS = {"images": 3, "labels": 1}
SPLIT_NAMES = {"train": "train", "test": "t10k|test"}


def read_idx(place: str, split: str) -> ImageSet:
    """Images (N, 1, H, W) and labels from the four usual files in a folder, compressed or not.

    They are named as those of MNIST: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte.gz`, … If their names begin
    with something more, as those of EMNIST do, `place` is the folder and that beginning: `emnist/emnist-letters`. The
    classes are 0 to the highest label in both splits. Raises `InputError` if a file is missing, damaged or another.
    """
    images, labels = _read(place, split, "images"), _read(place, split, "labels")
    if len(images) != len(labels) or not len(labels):
        raise InputError(f"the {split} files in {place} hold {len(images):,} images, but {len(labels):,} labels")
    highest = max(labels.max(), _read(place, "test" if split == "train" else "train", "labels").max(initial=0))
    names = tuple(str(k) for k in range(int(highest) + 1))
    return ImageSet(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long(), names)


def read_idx_file(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file of unsigned bytes. Raises `InputError` for any other file."""
    with opened(path) as content:
        zeros, kind, found = struct.unpack(">HBB", content.take(4))
        if zeros:
            raise InputError(f"{path} is not an IDX file")
        if kind != UNSIGNED_BYTES or found != dimensions:
            raise InputError(
                f"{path} holds numbers of IDX type {kind:#04x} in {found} dimensions; "
                f"it should hold unsigned bytes (0x08) in {dimensions}"
            )
        shape = struct.unpack(f">{dimensions}I", content.take(4 * dimensions))
        values = content.take(math.prod(shape))
        content.expect_end()
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read(place: str, split: str, kind: str) -> UInt8[np.ndarray, "..."]:
    return read_idx_file(_find(place, split, kind), DIMENSIONS[kind])


def _find(place: str, split: str, kind: str) -> Path:
    path = Path(place).expanduser()
    folder, prefix = (path, "") if path.is_dir() else (path.parent, f"{path.name}-")
    pattern = re.compile(rf"{re.escape(prefix)}({SPLIT_NAMES[split]})[-.]{kind}[-.]idx{DIMENSIONS[kind]}-ubyte(\.gz)?")
    found = sorted(file for file in folder.glob("*") if pattern.fullmatch(file.name))
    if not found:
        usual = SPLIT_NAMES[split].split("|")[0]
        raise InputError(
            f"there is no IDX file {path}{'/' if not prefix else '-'}{usual}-{kind}-idx{DIMENSIONS[kind]}-ubyte(.gz)"
        )
    return found[0]

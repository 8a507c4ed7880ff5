"""affNIST as T. Tieleman published it (2013): MATLAB files with MNIST digits under affine transformations, 40×40.

A file (MATLAB 5) has one structure, `affNISTdata`; read are its `image` (1600, N), a column for each image, row by
row, and its `label_int` (1, N).
"""

import os
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from capsnet.data.image_set import ImageSet
from capsnet.data.matlab import read_structure
from capsnet.errors import InputError

SIZE = 40
DIGITS = 10

NAMES = {
    "train": ("training_and_validation_batches", "training_and_validation.mat", "training_batches", "training.mat"),
    "test": ("test_batches", "test.mat"),
}
"""Of the published files and folders, unpacked; the first that is there is read."""


def read_affnist(place: str, split: str) -> ImageSet:
    """Images (N, 1, 40, 40) from the folder with the published files, unpacked, or from one file, then the test set.

    Of a folder of batches (`test_batches/1.mat`, …) all are read. Raises `InputError` if a file is missing, damaged or
    another.
    """
    parts = [read_affnist_file(path) for path in _files(Path(os.path.expanduser(place)), split)]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return ImageSet(images, labels, tuple(str(digit) for digit in range(DIGITS)))


def read_affnist_file(path: Path) -> tuple[UInt8[Tensor, "count 1 40 40"], Int64[Tensor, " count"]]:
    """Images and labels of one file."""
    images, labels = read_structure(path, "affNISTdata", ("image", "label_int"))
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[0] != SIZE**2 or not images.size:
        raise InputError(
            f"{path} is not an affNIST file: its images should be {SIZE**2}×N unsigned bytes, "
            f"not {'×'.join(map(str, images.shape))} of type {images.dtype}"
        )
    if labels.size != images.shape[1]:
        raise InputError(f"{path} is damaged: it has {images.shape[1]:,} images, but {labels.size:,} labels")
    if not np.isin(labels, range(DIGITS)).all():
        raise InputError(f"{path} is damaged: there are labels other than 0 to {DIGITS - 1}")
    pixels = torch.from_numpy(images.T.copy()).view(-1, 1, SIZE, SIZE)
    return pixels, torch.from_numpy(labels.flatten().astype(np.int64))


def _files(path: Path, split: str) -> list[Path]:
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    if path.is_file():
        if split == "train":
            raise InputError(f"{path} is one file, the test set; to train, give the folder with both, unpacked")
        return [path]
    for name in NAMES[split]:
        if (path / name).is_file():
            return [path / name]
        batches = sorted((path / name).glob("*.mat"), key=lambda file: [int(n) for n in re.findall(r"\d+", file.name)])
        if batches:
            return batches
    raise InputError(f"there is nothing of affNIST in {path}; there should be one of: {', '.join(NAMES[split])}")

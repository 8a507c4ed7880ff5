"""affNIST as T. Tieleman published it (2013): MATLAB files with MNIST digits under affine transformations, 40×40.

A file (MATLAB 5) has one structure, `affNISTdata`; read are its `image` (1600, N), a column for each image, row by
row, and its `label_int` (1, N).
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from capsnet.data.image_set import ImageSet
from capsnet.errors import InputError

SIZE = 40
DIGITS = 10
STRUCTURE = "affNISTdata"
MATLAB_5 = b"MATLAB 5.0"

NAMES = {
    "train": ("training_and_validation_batches", "training_and_validation.mat", "training_batches", "training.mat"),
    "test": ("test_batches", "test.mat"),
}
"""Of the published files and folders, unpacked; the first that is there is read."""


def read_affnist(place: str, split: str) -> ImageSet:
    """Images (N, 1, 40, 40) from the folder with the published files, unpacked, or from one file, then the test set.

    Of a folder of batches (`test_batches/1.mat`, …) all are read. Needs SciPy (extra `affnist`). Raises `InputError`
    if a file is missing, damaged or another.
    """
    parts = [read_affnist_file(path) for path in _files(Path(place).expanduser(), split)]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return ImageSet(images, labels, tuple(str(digit) for digit in range(DIGITS)))


def read_affnist_file(path: Path) -> tuple[UInt8[Tensor, "count 1 40 40"], Int64[Tensor, " count"]]:
    """Images and labels of one file."""
    content = _load(path)
    try:
        images, labels = (np.asarray(content[STRUCTURE][field][0, 0]) for field in ("image", "label_int"))
    except (KeyError, ValueError, IndexError, TypeError):
        raise InputError(f"{path} is not an affNIST file: it has no {STRUCTURE} with image and label_int") from None
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[0] != SIZE**2 or not images.size:
        raise InputError(
            f"{path} is not an affNIST file: its images should be {SIZE**2}×N unsigned bytes, "
            f"not {'×'.join(map(str, images.shape))} of type {images.dtype}"
        )
    if labels.dtype.kind not in "uif" or labels.size != images.shape[1]:
        raise InputError(f"{path} is damaged: it has {images.shape[1]:,} images, but {labels.size:,} labels")
    if not np.isin(labels, range(DIGITS)).all():
        raise InputError(f"{path} is damaged: there are labels other than 0 to {DIGITS - 1}")
    pixels = torch.from_numpy(images.T.copy()).view(-1, 1, SIZE, SIZE)
    return pixels, torch.from_numpy(labels.flatten().astype(np.int64))


def _load(path: Path) -> dict:
    if importlib.util.find_spec("scipy") is None:
        raise InputError("reading MATLAB files needs SciPy; install it with: pip install 'capsnet[affnist]'")
    from scipy.io import loadmat

    try:
        with path.open("rb") as file:
            if not file.read(len(MATLAB_5)) == MATLAB_5:
                raise InputError(f"{path} is not a MATLAB 5 file, the format in which affNIST is published")
            file.seek(0)
            return loadmat(file, variable_names=[STRUCTURE])
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # of a damaged file SciPy trusts sizes and types, and stumbles wherever they lead it
        raise InputError(f"{path} is damaged: {error}") from None


def _files(path: Path, split: str) -> list[Path]:
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

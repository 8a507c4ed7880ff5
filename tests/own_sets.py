"""Data sets of a user's own, as users have them, in a few small files."""

import csv

import numpy as np
import pytest
from PIL import Image

import capsnet


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def draw(path, *shape, seed=0, **options):
    """A picture file of (height, width) or (height, width, channels), in the format that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(*(shape or (8, 8)), seed=seed)).save(path, **options)
    return path


def write_folder(root, *shape, classes=("cats", "dogs"), count=5):
    """A folder of class folders, with so many different pictures in each."""
    for number, name in enumerate(classes):
        for picture in range(count):
            draw(root / name / f"{picture}.png", *shape, seed=number * count + picture)
    return root


def write_table(path, rows, separator=",", header=("path", "label"), encoding="utf-8", end="\n"):
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=separator, lineterminator=end).writerows([header, *rows])
    return path


def opened(place, **options):
    """Both splits."""
    return tuple(capsnet.open_dataset(str(place), split, **options) for split in ("train", "test"))


def told(place, split="train", **options):
    """What is said of a set that cannot be used: one line."""
    with pytest.raises(capsnet.InputError) as refused:
        capsnet.open_dataset(str(place), split, **options)
    answer = str(refused.value)
    assert "\n" not in answer
    return answer

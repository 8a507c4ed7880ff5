"""Images in, batches out."""

from collections.abc import Callable
from typing import Literal, overload

from capsnet.data.affnist import load_affnist_synthetic
from capsnet.data.affnist_files import read_affnist
from capsnet.data.expanded import load_expanded_mnist
from capsnet.data.hub import read_hub
from capsnet.data.idx import read_idx
from capsnet.data.image_set import ImageSet, to_float
from capsnet.data.mnist import load_mnist
from capsnet.data.multimnist import Pairs, PairSet, load_multimnist
from capsnet.data.smallnorb import read_smallnorb
from capsnet.errors import InputError

DATASETS: dict[str, Callable[[str], ImageSet | PairSet]] = {
    "mnist": load_mnist,
    "multimnist": load_multimnist,
    "expanded-mnist": load_expanded_mnist,
    "affnist-synthetic": load_affnist_synthetic,
}
"""What comes with the package or is made from it, by name."""

READERS: dict[str, Callable[[str, str], ImageSet]] = {
    "idx": read_idx,
    "smallnorb": read_smallnorb,
    "affnist": read_affnist,
    "hub": read_hub,
}
"""What is read from files, by the first part of `NAME:PLACE`."""

PLACES = {"idx": "FOLDER", "smallnorb": "FOLDER", "affnist": "FOLDER", "hub": "NAME"}
SPLITS = ("train", "test")
AVAILABLE = ", ".join([*DATASETS, *(f"{name}:{place}" for name, place in PLACES.items())])
"""How a data set is named, for help and error messages."""


@overload
def open_dataset(name: Literal["multimnist"], split: str = "train") -> PairSet: ...
@overload
def open_dataset(name: Literal["mnist", "expanded-mnist", "affnist-synthetic"], split: str = "train") -> ImageSet: ...
@overload
def open_dataset(name: str, split: str = "train") -> ImageSet | PairSet: ...
def open_dataset(name: str, split: str = "train") -> ImageSet | PairSet:
    """The images and labels of a data set: one of `DATASETS`, or `NAME:PLACE` with a name of `READERS`.

    Raises `InputError`, naming what there is, for an unknown name or split, and if files are missing or damaged.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; there are: {', '.join(SPLITS)}")
    kind, _, place = name.partition(":")
    if name in DATASETS:
        return DATASETS[name](split)
    if kind not in READERS:
        raise InputError(f"unknown data set {name!r}; there are: {AVAILABLE}")
    if not place:
        raise InputError(f"{name!r} does not say where: {kind}:{PLACES[kind]}")
    return READERS[kind](place, split)


def open_images(name: str, split: str = "train") -> ImageSet:
    """`open_dataset` for sets with one label for each image; raises `InputError` for pairs."""
    opened = open_dataset(name, split)
    if isinstance(opened, PairSet):
        raise InputError(f"{name} has two digits on each image; this takes images with one label each")
    return opened


__all__ = [
    "AVAILABLE",
    "DATASETS",
    "READERS",
    "SPLITS",
    "ImageSet",
    "PairSet",
    "Pairs",
    "open_dataset",
    "open_images",
    "to_float",
]

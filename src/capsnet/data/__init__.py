"""Images in, batches out."""

from collections.abc import Callable

from capsnet.data.image_set import ImageSet, to_float
from capsnet.data.mnist import load_mnist
from capsnet.errors import InputError

DATASETS: dict[str, Callable[[str], ImageSet]] = {"mnist": load_mnist}
SPLITS = ("train", "test")


def open_dataset(name: str, split: str = "train") -> ImageSet:
    """The images and labels of a data set by name.

    Raises `InputError`, naming what there is, for an unknown name or split.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; there are: {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; there are: {', '.join(SPLITS)}")
    return DATASETS[name](split)


__all__ = ["DATASETS", "SPLITS", "ImageSet", "open_dataset", "to_float"]

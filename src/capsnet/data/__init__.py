"""Images in, batches out."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, overload

from capsnet.data.affnist import load_affnist_synthetic
from capsnet.data.affnist_files import read_affnist
from capsnet.data.expanded import load_expanded_mnist
from capsnet.data.faces import load_faces
from capsnet.data.framing import MEASURED, WantedRange, check_pixel_range
from capsnet.data.hub import read_hub
from capsnet.data.idx import read_idx
from capsnet.data.image_set import ImageSet, to_float
from capsnet.data.mnist import load_mnist
from capsnet.data.multimnist import Pairs, PairSet, load_multimnist
from capsnet.data.own import check_channels, check_size, read_path
from capsnet.data.posed import PosedSet
from capsnet.data.smallnorb import read_smallnorb
from capsnet.data.splits import ALL, split_named
from capsnet.errors import InputError, MissingSplitError

DATASETS: dict[str, Callable[[str], ImageSet | PairSet]] = {
    "mnist": load_mnist,
    "multimnist": load_multimnist,
    "expanded-mnist": load_expanded_mnist,
    "affnist-synthetic": load_affnist_synthetic,
    "faces": load_faces,
}
"""What comes with the package or is made from it, by name."""

READERS: dict[str, Callable[..., ImageSet]] = {
    "idx": read_idx,
    "smallnorb": read_smallnorb,
    "affnist": read_affnist,
    "hub": read_hub,
}
"""What is read from files, by the first part of `NAME:PLACE`."""

SCALED = ("idx", "hub")
"""Of these the images can be of any size."""

PLACES = {"idx": "FOLDER", "smallnorb": "FOLDER", "affnist": "FOLDER", "hub": "NAME"}
SPLITS = ("train", "test")
AVAILABLE = ", ".join([*DATASETS, *(f"{name}:{place}" for name, place in PLACES.items())]) + ", or a path"
"""How a data set is named, for help and error messages."""


@overload
def open_dataset(name: Literal["multimnist"], split: str = "train") -> PairSet: ...
@overload
def open_dataset(name: Literal["mnist", "expanded-mnist", "affnist-synthetic"], split: str = "train") -> ImageSet: ...
@overload
def open_dataset(name: Literal["faces"], split: str = "train") -> PosedSet: ...


@overload
def open_dataset(
    name: str | Path,
    split: str = "train",
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet | PairSet: ...
def open_dataset(
    name: str | Path,
    split: str = "train",
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet | PairSet:
    """The images and labels of a data set: one of `DATASETS`, `NAME:PLACE` with a name of `READERS`, or a path.

    Whatever is neither of the first two is the path of a user's own images: a folder of class folders, a `.csv`, `.tsv`
    or `.parquet` table, an `.npz` archive, a folder of IDX files, or a set saved by `datasets`. They are scaled to fit
    `size`, in pixels, a side or (height, width); by default the median picture's, but no side above 64. `channels` is
    1 for grey or 3 for colour; by default grey if all are grey. Of pictures of more than 8 bits a pixel, and of arrays
    of other numbers than 0 to 255 or 0.0 to 1.0, `pixel_range` is what becomes 0 and 255: two numbers, "measured" for
    the lowest and the highest of the whole set, or None for what each picture's own type can hold. They also have a
    split `val`, if they say so, and `all`: what there is to test on a run of another set, that is every picture, or
    `test` where the set says which ones those are; there classes may be few.
    Splits may be called as in people's folders: `validation`, `training`, ….

    Raises `InputError`, naming what there is, for an unknown name or split, and if files are missing or damaged.
    """
    if isinstance(name, Path):
        name = os.path.join(".", name)  # so that no path is taken for a name
    splits = (*SPLITS, "val", ALL) if has_any_size(name) else SPLITS
    asked, split = split, split if split == ALL else split_named(split) or split
    if split not in splits:
        raise InputError(f"unknown split {asked!r}; there are: {', '.join(splits)}")
    scaled = (None if size is None else check_size(size), None if channels is None else check_channels(channels))
    pixel_range = check_pixel_range(pixel_range) if isinstance(pixel_range, tuple | list) else pixel_range
    if pixel_range not in (MEASURED, None) and not isinstance(pixel_range, tuple):
        raise InputError(f"pixel_range is two numbers, {MEASURED!r} or None, not {pixel_range!r}")
    kind, _, place = name.partition(":")
    if name not in DATASETS and kind not in READERS:
        if not os.path.exists(os.path.expanduser(name)) and not re.search(r"[/\\.]", name):
            raise InputError(f"unknown data set {name!r}; there are: {AVAILABLE}, at which there is nothing here")
        return read_path(name, split, *scaled, pixel_range)
    if name not in DATASETS and not place:
        raise InputError(f"{name!r} does not say where: {kind}:{PLACES[kind]}")
    if has_any_size(name):
        return READERS[kind](place, split, *scaled, pixel_range)
    if any(scaled) or isinstance(pixel_range, tuple):
        what = "size and channels" if any(scaled) else "pixel ranges"
        raise InputError(f"{what} are for your own images; those of {name} have theirs")
    return DATASETS[name](split) if name in DATASETS else READERS[kind](place, split)


def open_validation(
    name: str,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet | PairSet | None:
    """The pictures that a user's own set has to validate with, as `open_dataset` opens them; None if it has none."""
    if not has_any_size(name):
        return None
    try:
        return open_dataset(name, "val", size=size, channels=channels, pixel_range=pixel_range)
    except MissingSplitError:
        return None


def has_any_size(name: str) -> bool:
    """Whether `size` and `channels` say how the images of a set are to be, as of a user's own."""
    kind, _, _ = name.partition(":")
    return name not in DATASETS and (kind not in READERS or kind in SCALED)


def require_set(data: object) -> None:
    """Raises `InputError` for data in the form of another library."""
    if not isinstance(data, ImageSet | PairSet):
        raise InputError(
            f"images come as an ImageSet or a PairSet, not as a {type(data).__name__}; of tensors, uint8 (N, C, H, W) "
            "and int64 (N,), one is made by: ImageSet(images, labels, class_names)"
        )


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
    "PosedSet",
    "has_any_size",
    "open_dataset",
    "open_images",
    "open_validation",
    "require_set",
    "to_float",
]

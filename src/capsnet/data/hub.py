"""Data sets of the Hugging Face hub, or saved on disk with `save_to_disk`. Needs `datasets` (extra `hub`).

Nothing that is read is executed: the tables are Arrow files, the pictures in them PNG or JPEG.
"""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from capsnet.data.image_set import ImageSet
from capsnet.data.pictures import decode_picture
from capsnet.errors import InputError

SHORT_NAMES = {"cifar10": ("uoft-cs/cifar10", None), "svhn": ("ufldl-stanford/svhn", "cropped_digits")}
"""Names on the hub and configurations of the sets that the paper uses."""


def read_hub(place: str, split: str) -> ImageSet:
    """Images and labels of `cifar10`, `svhn`, `OWNER/NAME` or `OWNER/NAME:CONFIGURATION` on the hub, or of a folder.

    The set needs a column of pictures, all of one size, and one of class labels; the first of each kind is taken. What
    is fetched from the hub is kept where `datasets` keeps it. Raises `InputError` if `datasets` is not installed, if
    the set or the split is not there, or if it is damaged or of another kind.
    """
    if importlib.util.find_spec("datasets") is None:
        raise InputError("hub: needs the library datasets; install it with: pip install 'capsnet[hub]'")
    import datasets

    table = _open(place, split)
    picture = _first_column(place, table, datasets.Image)
    label = _first_column(place, table, datasets.ClassLabel)
    rows = table.with_format(None).cast_column(picture, datasets.Image(decode=False)).select_columns([picture, label])
    images = _decode_all([row[picture] for row in rows], f"{place}, {split}")
    try:
        return ImageSet(images, torch.tensor(rows[label][:]), tuple(table.features[label].names))
    except InputError as error:
        raise InputError(f"the {split} split of {place} cannot be used: {error}") from None


def _open(place: str, split: str) -> Any:
    import datasets

    folder = Path(place).expanduser()
    saved = folder.is_dir()
    if not saved and (place.startswith((".", "~", "/")) or place.count("/") > 1):
        raise InputError(f"there is no folder {place}")
    try:
        if saved:
            found: Any = datasets.load_from_disk(str(folder))
        else:
            name, _, configuration = place.partition(":")
            name, usual = SHORT_NAMES.get(name, (name, None))
            found = datasets.load_dataset(name, configuration or usual)
        splits = [str(name) for name in found] if isinstance(found, datasets.DatasetDict) else []
        table = found[split] if split in splits else None
        if table is not None:
            table.data.validate(full=True)  # Arrow would follow a damaged offset out of the file
    except Exception as error:  # its documentation names none; of a damaged set it raises whatever it stumbles over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot open the data set {place}: {reason}") from None
    if table is None:
        there = ", ".join(splits) or "none with a name; save a DatasetDict"
        raise InputError(f"the data set {place} has no split {split!r}; there are: {there}")
    return table


def _first_column(place: str, table: Any, kind: type) -> str:
    for name, feature in table.features.items():
        if isinstance(feature, kind):
            return name
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
    raise InputError(f"the data set {place} has no column of type {kind.__name__}; there are: {columns}")


def _decode_all(pictures: list[Any], name: str) -> UInt8[Tensor, "count channels height width"]:
    """Grey, if the first picture is grey. Raises `InputError` if one is damaged or has another size."""
    images: list[Image.Image] = []
    for number, picture in enumerate(pictures):
        told = f"picture {number} of {name}"
        if not isinstance(picture, dict) or not picture.get("bytes"):
            raise InputError(f"{told} is not in the data set itself")
        images.append(decode_picture(io.BytesIO(picture["bytes"]), told, images[0].mode if images else None))
        if images[-1].size != images[0].size:
            sizes = ["{}×{}".format(*image.size) for image in (images[-1], images[0])]
            raise InputError(f"{told} has {sizes[0]} pixels, but the first has {sizes[1]}; all must have one size")
    if not images:
        raise InputError(f"there are no pictures in {name}")
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()

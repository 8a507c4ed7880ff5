"""Data sets of the Hugging Face hub, or saved on disk with `save_to_disk`. Needs `datasets` (extra `hub`).

Nothing that is read is executed: the tables are Arrow files, the pictures in them PNG or JPEG.
"""

import importlib.util
import io
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from capsnet.data.cache import stamp
from capsnet.data.framing import MEASURED, WantedRange
from capsnet.data.image_set import ImageSet
from capsnet.data.prepared import Pictures, Source, prepared
from capsnet.data.splits import ALL, DRAWN, draw_test, split_named, to_test_on, with_test
from capsnet.errors import InputError, gist

SHORT_NAMES = {"cifar10": ("uoft-cs/cifar10", None), "svhn": ("ufldl-stanford/svhn", "cropped_digits")}
"""Names on the hub and configurations of the sets that the paper uses."""


def read_hub(
    place: str,
    split: str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet:
    """Images and labels of `cifar10`, `svhn`, `OWNER/NAME` or `OWNER/NAME:CONFIGURATION` on the hub, or of a folder.

    The set needs a column of pictures and one of class labels; the first of each kind is taken. Without a split to test
    on, a fifth of each class is drawn, the same each time. What is fetched from the hub is kept where `datasets` keeps
    it. Raises `InputError` if `datasets` is not installed, if the set or the split is not there, or if it is damaged or
    of another kind.
    """
    if importlib.util.find_spec("datasets") is None:
        raise InputError("hub: needs the library datasets; install it with: pip install 'capsnet[hub]'")
    tables = _open(place)
    files = [(use, file["filename"]) for use, table in tables.items() for file in table.cache_files]
    states = stamp((f"{use}:{file}", os.stat(file)) for use, file in files)
    # The files hold the rows; which of them, and what the columns are, stands elsewhere.
    kinds = [[use, table._fingerprint, len(table), str(table.features)] for use, table in tables.items()]
    describe = partial(_describe, place, tables, split == ALL)
    return prepared(place, ["hub", states, kinds], describe, split, size, channels, pixel_range)


def is_saved(folder: Path) -> bool:
    """Whether the folder is a set saved with `save_to_disk`, with splits or without."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _describe(place: str, tables: Mapping[str, Any], whole: bool) -> Source:
    import datasets

    if whole:
        chosen = to_test_on(tables) or next(iter(tables))
        tables = {chosen: tables[chosen]}

    names: dict[str, tuple[str, ...]] = {}
    columns: dict[str, tuple[str, Any, Int64[np.ndarray, " count"]]] = {}
    for split, table in tables.items():
        picture, label = (_first_column(place, table, kind) for kind in (datasets.Image, datasets.ClassLabel))
        try:
            table.data.validate(full=True)  # Arrow would follow a damaged offset out of the file
            rows = table.with_format(None).cast_column(picture, datasets.Image(decode=False))
            labels = [-1 if value is None else value for value in rows[label][:]]
        except Exception as error:  # as in _open
            raise _refused(place, error) from None
        names[split] = tuple(table.features[label].names)
        columns[split] = picture, rows.select_columns([picture]), np.array(labels, np.int64)
    if len(set(names.values())) > 1:
        raise InputError(f"the splits of the data set {place} have different classes: {', '.join(names)}")
    class_names = next(iter(names.values()))
    if whole:
        ((split, column),) = columns.items()
        pictures = _pictures(place, split, *column, np.arange(len(column[2])))
        return Source(class_names, {"test": pictures}, complete=False, fewest=1)
    if list(tables) == ["train"]:
        (column,) = columns.values()
        drawn = draw_test([str(row) for row in range(len(column[2]))], column[2], class_names, place)
        parts = {split: _pictures(place, "train", *column, rows) for split, rows in drawn.items()}
        return Source(class_names, parts, DRAWN, complete=False)
    parts = {
        use: _pictures(place, split, *columns[split], np.arange(len(columns[split][2])))
        for split, use in with_test(tables).items()
    }
    return Source(class_names, parts, complete=False)


def _pictures(
    place: str,
    split: str,
    column: str,
    rows: Any,
    labels: Int64[np.ndarray, " count"],
    chosen: Int64[np.ndarray, " some"],
) -> Pictures:
    names = [f"picture {row} of {place}, {split}" for row in chosen]

    def find(position: int) -> io.BytesIO:
        try:
            picture = rows[int(chosen[position])][column]
            content = picture["bytes"]
        except Exception as error:  # as in _open
            raise InputError(f"{names[position]} cannot be read: {gist(error)}") from None
        if not content:
            raise InputError(f"{names[position]} is not in the data set itself")
        return io.BytesIO(content)

    return Pictures(names, labels[chosen], find)


def _open(place: str) -> dict[str, Any]:
    """A table for each split that is to train, to validate or to test on."""
    import datasets

    folder = Path(os.path.expanduser(place))
    # A folder that happens to be called cifar10 does not stand in the way of the set, unless it is one itself.
    saved = is_saved(folder) or (folder.is_dir() and place not in SHORT_NAMES)
    if not saved and (place.startswith((".", "~", "/")) or place.count("/") > 1):
        raise InputError(f"there is no folder {place}")
    try:
        if saved:
            found: Any = datasets.load_from_disk(str(folder))
        else:
            name, _, configuration = place.partition(":")
            name, usual = SHORT_NAMES.get(name, (name, None))
            found = datasets.load_dataset(name, configuration or usual)
        splits: dict[Any, Any] = dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
    except Exception as error:  # its documentation names none; of a damaged set it raises whatever it stumbles over
        raise _refused(place, error) from None
    tables = {use: splits[name] for name in splits if (use := split_named(str(name)))}
    if not tables:
        there = ", ".join(map(str, splits)) or "none"
        raise InputError(f"the data set {place} has no split called train or test; there are: {there}")
    return tables


def _refused(place: str, error: Exception) -> InputError:
    return InputError(f"cannot open the data set {place}: {gist(error)}")


def _first_column(place: str, table: Any, kind: type) -> str:
    for name, feature in table.features.items():
        if isinstance(feature, kind):
            return name
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in table.features.items())
    raise InputError(f"the data set {place} has no column of type {kind.__name__}; there are: {columns}")

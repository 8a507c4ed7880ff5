"""Picture files of which a folder or a table says the class, as a user's set."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from capsnet.data.cache import stamp
from capsnet.data.framing import WantedRange
from capsnet.data.image_set import ImageSet
from capsnet.data.prepared import Pictures, Source, prepared
from capsnet.data.splits import ALL, DRAWN, draw_test, in_order, shuffled, to_test_on, with_test


class PictureFile(NamedTuple):
    """`name` is the path, from the set's folder on if it lies in it; `split` is empty where nothing says it."""

    name: str
    class_name: str
    split: str
    state: os.stat_result


def read_files(
    place: str,
    kind: str,
    folder: Path,
    files: Sequence[PictureFile],
    split: str,
    size: tuple[int, int] | None,
    channels: int | None,
    pixel_range: WantedRange,
    note: str = "",
) -> ImageSet:
    """A split of the set of these pictures; `kind` and `note` are what its reader has to say of it."""
    own = to_test_on(file.split for file in files) if split == ALL else None
    chosen = [file for file in files if file.split == own] if own else files
    said = [(f"{file.split}:{file.class_name}:{file.name}", file.state) for file in files]
    identity = [kind, os.path.realpath(folder), stamp(said)]
    describe = partial(_describe, place, folder, chosen, note, split == ALL)
    return prepared(place, identity, describe, split, size, channels, pixel_range)


def _describe(place: str, folder: Path, files: Sequence[PictureFile], note: str, whole: bool) -> Source:
    class_names = in_order({file.class_name for file in files})
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers[file.class_name] for file in files], np.int64)
    names = [file.name for file in files]
    splits = np.array([file.split for file in files])
    order = shuffled(names)
    if "train" in splits and not {"test", "val"} & set(splits):
        splits[:] = ""
    if whole:
        parts = {"test": order}
    elif (splits == "").any():
        parts = draw_test(names, labels, class_names, place)
        note = DRAWN + note
    else:
        parts = {use: order[splits[order] == split] for split, use in with_test(splits).items()}

    def pictures(rows: np.ndarray) -> Pictures:
        own = [names[row] for row in rows]
        return Pictures(own, labels[rows], lambda position: folder / own[position])

    found = {split: pictures(rows) for split, rows in parts.items()}
    return Source(tuple(class_names), found, note, complete=not whole, fewest=1 if whole else 2)

"""A folder with a folder of pictures for each class, or with such folders in `train` and `test`."""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from PIL import Image

from capsnet.data.files import PictureFile, read_files
from capsnet.data.image_set import ImageSet
from capsnet.data.pictures import FORMATS
from capsnet.data.splits import split_named
from capsnet.errors import InputError


def read_folder(place: str, split: str, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageSet:
    """The pictures in `place/CLASS/…` or `place/train/CLASS/…`, of any size and format, as images of one size.

    A class folder may have folders in it. Without a folder `test` (or `val`), a fifth of each class is to test on, the
    same each time. Raises `InputError` if there are no classes, if one is empty, if train and test have other classes,
    or if more than one picture in a hundred is damaged.
    """
    root = Path(place).expanduser()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    files: list[PictureFile] = []
    others: Counter[str] = Counter()
    for of, folder in _splits(root, place):
        for class_folder in _class_folders(folder):
            before = len(files)
            for name, state in _walk(class_folder, os.path.relpath(class_folder, root)):
                ending = os.path.splitext(name)[1].lower()
                if ending in endings:
                    files.append(PictureFile(name, class_folder.name, of, state))
                else:
                    others[ending or "without an ending"] += 1
            if len(files) == before:
                raise InputError(f"there are no pictures in the class folder {class_folder}")
    endings_left_out = ", ".join(ending for ending, _ in others.most_common(3))
    note = f"; {others.total():,} files left out that are no pictures ({endings_left_out})" if others else ""
    return read_files(place, "folder", root, files, split, size, channels, note)


def _splits(root: Path, place: str) -> list[tuple[str, Path]]:
    """Each split and its folder; of one, the set's own or `train`, nothing is said."""
    folders = _folders(root)
    named = [(split_named(folder.name), folder) for folder in folders]
    splits = [(split, folder) for split, folder in named if split]
    if not splits or len(splits) < len(folders):
        return [("", root)]
    for (split, folder), (other, twin) in pairwise(splits):
        if split == other:
            raise InputError(f"{place} has two folders to {split} on, {folder.name} and {twin.name}; leave one of them")
    return splits


def _class_folders(folder: Path) -> list[Path]:
    folders = _folders(folder)
    if not folders:
        raise InputError(
            f"there are no class folders in {folder}; put the pictures of each class in a folder of its own"
        )
    return folders


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and _visible(path.name))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None


def _walk(folder: Path, name: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, os.stat_result]]:
    """All files under a folder, each with its path from the set's folder on; what links lead to, but not in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not _visible(entry.name):
                    continue
                own = f"{name}/{entry.name}"
                if entry.is_dir():
                    yield from _walk(Path(entry.path), own, above | {real})
                else:
                    yield own, entry.stat()
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}") from None


def _visible(name: str) -> bool:
    """What systems and programs leave beside a user's files is hidden, or has such a name."""
    return not name.startswith((".", "__MACOSX", "Thumbs.db", "desktop.ini"))

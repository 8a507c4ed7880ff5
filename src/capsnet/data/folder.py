"""A folder with a folder of pictures for each class, or with such folders in `train` and `test`."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from capsnet.data.files import PictureFile, read_files
from capsnet.data.image_set import ImageSet
from capsnet.data.pictures import picture_endings
from capsnet.data.splits import split_named
from capsnet.errors import InputError


def read_folder(place: str, split: str, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageSet:
    """The pictures in `place/CLASS/…` or `place/train/CLASS/…`, of any size and format, as images of one size.

    A class folder may have folders in it. Without a folder `test` (or `val`), a fifth of each class is to test on, the
    same each time. Raises `InputError` if there are no classes, if one is empty, if train and test have other classes,
    or if more than one picture in a hundred is damaged.
    """
    root = Path(os.path.expanduser(place))
    endings = picture_endings()
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
                raise InputError(f"there are no pictures in the class folder {class_folder}{_left_out(others)}")
    return read_files(place, "folder", root, files, split, size, channels, _left_out(others))


def _left_out(endings: Counter[str]) -> str:
    """What is told of files that are no pictures, or none that can be read."""
    most = ", ".join(ending for ending, _ in endings.most_common(3))
    return f"; {endings.total():,} files left out that are no pictures ({most})" if endings else ""


def _splits(root: Path, place: str) -> list[tuple[str, Path]]:
    """Each split and its folder; of one, the set's own or `train`, nothing is said."""
    splits: dict[str, Path] = {}
    others: list[Path] = []
    for folder in _folders(root):
        split = split_named(folder.name)
        if not split:
            others.append(folder)
        elif splits.setdefault(split, folder) is not folder:
            twins = f"{splits[split].name} and {folder.name}"
            raise InputError(f"{place} has two folders to {split} on, {twins}; leave one of them")
    if others and "train" in splits and len(splits) > 1:
        raise InputError(
            f"{place} has a folder {others[0].name} beside those to train and to test on; there should be only these, "
            "or only class folders"
        )
    for split, folder in splits.items() if others else ():
        if {inner.name for inner in _folders(folder)} & {other.name for other in others}:
            raise InputError(
                f"{place} has class folders beside {folder.name}, which has folders of the same names; put them into a "
                f"folder {'test' if split == 'train' else 'train'}"
            )
    # Beside other classes, a train is a vehicle.
    return list(splits.items()) if splits and not others else [("", root)]


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


def _walk(folder: Path, name: str) -> Iterator[tuple[str, os.stat_result]]:
    """All files under a folder, each with its path from the set's folder on.

    Links are followed, but a folder is entered once, however many ways lead there.
    """
    entered: set[tuple[int, int]] = set()
    levels: list[Iterator[tuple[str, str]]] = [iter([(os.fspath(folder), name)])]
    while levels:
        path, own = next(levels[-1], ("", ""))
        if not path:
            levels.pop()
            continue
        state = _state(path)
        if stat.S_ISDIR(state.st_mode):
            if (state.st_dev, state.st_ino) not in entered:
                entered.add((state.st_dev, state.st_ino))
                levels.append(_entries(path, own))
        elif stat.S_ISREG(state.st_mode) or stat.S_ISLNK(state.st_mode):  # reading a pipe would never end
            yield own, state


def _entries(folder: str, name: str) -> Iterator[tuple[str, str]]:
    """What is in a folder, in order of names, each with its path from the set's folder on."""
    try:
        names = sorted(filter(_visible, os.listdir(folder)))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
    return ((os.path.join(folder, entry), f"{name}/{entry}") for entry in names)


def _state(path: str) -> os.stat_result:
    """Of a link that leads nowhere its own; so it is told, and counts, like any picture that cannot be read."""
    try:
        return os.stat(path) if os.path.exists(path) else os.lstat(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _visible(name: str) -> bool:
    """What systems and programs leave beside a user's files is hidden, or has such a name."""
    return not name.startswith((".", "__MACOSX", "Thumbs.db", "desktop.ini"))

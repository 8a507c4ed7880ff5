"""A folder with a folder of pictures for each class, or with such folders in `train` and `test`."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from capsnet.data.files import PictureFile, read_files
from capsnet.data.framing import MEASURED, WantedRange
from capsnet.data.image_set import ImageSet
from capsnet.data.kinds import FOREIGN
from capsnet.data.pictures import picture_endings
from capsnet.data.splits import split_named
from capsnet.errors import InputError

NEUTRAL = ("set", "data", "dataset", "image", "images", "imgs", "img", "picture", "pictures", "photos", "seg", "split")
"""Words that say nothing of a split beside one that does, as in `seg_train` and `Training Images`."""

WRAPPED = 8
"""So many folders, at most, have nothing in them but the next one."""


def read_folder(
    place: str,
    split: str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet:
    """The pictures in `place/CLASS/…` or `place/train/CLASS/…`, of any size and format, as images of one size.

    A class folder may have folders in it; where those of all classes are called `train` and `test`, they are splits.
    Folders that wrap all this, as archives do, are passed through. Without a folder `test` (or `val`), a fifth of each
    class is to test on, the same each time. Raises `InputError` if there are no classes, if one is empty, if train and
    test have other classes, if folders may be splits or variants as well as classes, or if more than one picture in a
    hundred is damaged.
    """
    root = Path(os.path.expanduser(place))
    endings = picture_endings()
    files: list[PictureFile] = []
    others: Counter[str] = Counter()
    splits, note = _splits(_unwrapped(root), place)
    for of, class_name, folder in _classes(splits):
        before = len(files)
        for name, state in _walk(folder, os.path.relpath(folder, root)):
            ending = os.path.splitext(name)[1].lower()
            if ending in endings:
                files.append(PictureFile(name, class_name, of, state))
            else:
                others[ending or "without an ending"] += 1
        if len(files) == before:
            raise InputError(f"there are no pictures in the class folder {folder}{_left_out(others)}")
    return read_files(place, "folder", root, files, split, size, channels, pixel_range, note + _left_out(others))


def _left_out(endings: Counter[str]) -> str:
    """What is told of files that are no pictures, or none that can be read."""
    foreign = Counter({ending: count for ending, count in endings.items() if ending in FOREIGN})
    told = ""
    for what, left_out in (("cannot be read", foreign), ("are no pictures", endings - foreign)):
        most = ", ".join(ending for ending, _ in left_out.most_common(3))
        advice = "; convert them to JPEG or PNG" if left_out is foreign else ""
        told += f"; {left_out.total():,} files left out that {what} ({most}{advice})" if left_out else ""
    return told


def _unwrapped(root: Path) -> Path:
    """The first folder with more than one folder, or one of a split, in it."""
    folder = root
    for _ in range(WRAPPED):
        inner = _folders(folder)
        if len(inner) > 1 or (inner and split_of_folder(inner[0].name)):
            return folder
        if not inner or _has_pictures(inner[0]):
            break
        folder = inner[0]
    return root


def split_of_folder(name: str) -> str | None:
    """ "train", "val" or "test", if that is what a folder's name means: `seg_train`, `Training Set`, `val2017`."""
    words = (word.removesuffix("set") for word in re.findall(r"[^\W\d_]+", name.casefold()))
    splits = {split_named(word) for word in words if word and word not in NEUTRAL}
    return splits.pop() if len(splits) == 1 else None


def _splits(root: Path, place: str) -> tuple[list[tuple[str, Path]], str]:
    """Each split and its folder, and what is to be told; of one split, the set's own or `train`, nothing is said."""
    splits: dict[str, Path] = {}
    others: list[Path] = []
    for folder in _folders(root):
        split = split_of_folder(folder.name)
        if not split:
            others.append(folder)
        elif splits.setdefault(split, folder) is not folder:
            twins = f"{splits[split].name} and {folder.name}"
            raise InputError(f"{place} has two folders to {split} on, {twins}; leave one of them")
    left_out = ""
    if others and "train" in splits and len(splits) > 1:
        classes = {inner.name for split, folder in splits.items() for inner in _folders(_same_within(folder, split))}
        for other in others:
            if classes & {inner.name for inner in _folders(other)}:
                raise InputError(
                    f"{place} has a folder {other.name} beside those to train and to test on, with folders of the same "
                    "names in it; there should be only these, or only class folders"
                )
        left_out = f"; left out: {', '.join(other.name for other in others)}"
        others = []
    for split, folder in splits.items() if others else ():
        if {inner.name for inner in _folders(folder)} & {other.name for other in others}:
            raise InputError(
                f"{place} has class folders beside {folder.name}, which has folders of the same names; put them into a "
                f"folder {'test' if split == 'train' else 'train'}"
            )
    if splits and not others:
        return [(split, _same_within(folder, split)) for split, folder in splits.items()], left_out
    _check_no_variants(root, place)
    return [("", root)], ""  # beside other classes, a train is a vehicle


def _same_within(folder: Path, split: str) -> Path:
    """What is packed as `test_set/test_set/CLASS` is in the inner one."""
    for _ in range(WRAPPED):
        inner = _folders(folder)
        if len(inner) != 1 or split_of_folder(inner[0].name) != split or _has_pictures(inner[0]):
            break
        folder = inner[0]
    return folder


def _check_no_variants(root: Path, place: str) -> None:
    """Raises `InputError` if class folders hold what the others are, or all hold folders of the same names.

    Those are no classes but the same classes in colour and in grey, from several places, or in splits of other names.
    """
    within = {folder.name: {inner.name for inner in _folders(folder)} for folder in _folders(root)}
    for name, inner in within.items():
        if len(within) > 2 and within.keys() - {name} <= inner:
            raise InputError(f"{place} has a folder {name} with all the class folders in it once more; leave it out")
    first, *others = within.values() or [set()]
    named = sorted(name for name in first if re.search(r"[^\W\d_]{2}", name) and not split_of_folder(name))
    alike = others and len(named) > 1 and all(first == other for other in others)
    if alike and not any(map(_has_pictures, _folders(root))):
        raise InputError(
            f"the folders {_some(list(within))} of {place} have folders of the same names in them ({_some(named)}), "
            f"so they are no classes; give one of them, --data {root / next(iter(within))}, or call them train and "
            "test; if they are the classes after all, name the pictures in a table"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _classes(splits: list[tuple[str, Path]]) -> Iterator[tuple[str, str, Path]]:
    """Split, class and folder of pictures; the splits may also be in the class folders."""
    for split, folder in splits:
        class_folders = _class_folders(folder)
        parts = [] if split else [_split_folders(class_folder) for class_folder in class_folders]
        for number, class_folder in enumerate(class_folders):
            if parts and all(parts):
                yield from ((part, class_folder.name, inner) for part, inner in parts[number].items())
            else:
                yield split, class_folder.name, class_folder


def _split_folders(folder: Path) -> dict[str, Path]:
    """Folders to train and to test on, if those are all that is in a folder; else none."""
    inner = _folders(folder)
    splits = {split: path for path in inner if (split := split_of_folder(path.name))}
    whole = len(splits) == len(inner) and "train" in splits and len(splits) > 1
    return splits if whole and not _has_pictures(folder) else {}


def _has_pictures(folder: Path) -> bool:
    endings = picture_endings()
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in endings for entry in entries)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None


def _class_folders(folder: Path) -> list[Path]:
    folders = _folders(folder)
    if not folders:
        raise InputError(f"there are no class folders in {folder}; {_instead(folder)}")
    return folders


def _instead(folder: Path) -> str:
    """What is right, by what is there."""
    names = sorted(path.name for path in folder.iterdir())
    if tables := [name for name in names if name.lower().endswith((".csv", ".tsv", ".parquet", ".npz"))]:
        return f"{tables[0]} in it is a set of its own: --data {folder / tables[0]}"
    if arrays := [name for name in names if name.lower().endswith(".npy")]:
        return (
            f"put arrays, such as {arrays[0]}, into one archive: "
            "np.savez('set.npz', x_train=…, y_train=…), and perhaps x_test and y_test"
        )
    return "put the pictures of each class in a folder of its own"


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

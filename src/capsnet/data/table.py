"""A table of picture paths and labels: CSV, as spreadsheets and pandas write it, or Parquet."""

import csv
import io
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from capsnet.data.files import PictureFile, read_files
from capsnet.data.framing import MEASURED, WantedRange
from capsnet.data.image_set import ImageSet
from capsnet.data.parquet import Rows, read_parquet
from capsnet.data.pictures import picture_endings
from capsnet.data.prepared import MAX_DAMAGED
from capsnet.data.splits import NAMES, shortened, split_named
from capsnet.disk import open_file
from capsnet.errors import InputError

PATHS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "img", "picture"),
    *("image_path", "img_path", "image_file", "image_name", "photo", "image_id", "id_code"),
)
LABELS = ("label", "labels", "class", "class_name", "category", "target", "diagnosis", "species", "dx", "y")
SPLITS = ("split", "set", "subset", "partition")
"""What the columns are called in people's tables; the first that is there is taken."""

LONGEST_LINE = 2**20
MOST_LABELS = 1000
"""Columns that are looked at for a one among zeros; a table of pixels has more."""
ONE_HOT = {"0": False, "0.0": False, "1": True, "1.0": True}
MOST_TOLD = 8
"""Names of columns in a message."""
DEPTH, MOST_FILES = 4, 2**21
"""Pictures that are not where a table says are looked for so many folders below it, among so many files."""


def read_table(
    place: str,
    split: str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    pixel_range: WantedRange = MEASURED,
    columns: tuple[str, str] | None = None,
) -> ImageSet:
    """The pictures named in a `.csv`, `.tsv` or `.parquet` file, with paths from that file on, as images of one size.

    The columns of paths and labels, and one that says which pictures are to train and to test on, if there is one, are
    known by their names; `columns` names those of paths and labels. Instead of labels there may be a column for each
    class, of zeros and ones. A path may lack its ending, or the folder that the picture is in, where it can mean one
    picture only. Raises `InputError` if columns cannot be told, if a picture has no label, if more than one in a
    hundred is missing, or as `read_folder` does.
    """
    path = Path(os.path.expanduser(place))
    read = read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    files, note = _files(path, columns, *read(path))
    if not files:
        raise InputError(f"there are no pictures in {path}")
    return read_files(place, "table", path.parent, list(files.values()), split, size, channels, pixel_range, note)


def _files(
    path: Path, named: tuple[str, str] | None, columns: Sequence[str], rows: Rows
) -> tuple[dict[str, PictureFile], str]:
    """By name, and what is to be told. A picture that stands there twice is one, if the table says the same of it."""
    files: dict[str, PictureFile] = {}
    missing: list[str] = []
    moved = ""
    beside = cache(partial(_pictures_below, path.parent))
    for where, written, class_name, *given in _said(path, named, columns, rows):
        if not written or not class_name:
            raise InputError(f"{path}, {where}: there is no {'label for ' + written if written else 'picture path'}")
        split = split_named(given[0]) if given else ""
        if split is None:
            known = ", ".join(name for names in NAMES.values() for name in names)
            raise InputError(f"{path}, {where}: the split is {given[0]!r}; there are: {known}")
        found = _find_picture(path, where, written, beside)
        if found is None:
            missing.append(f"{where}: there is no picture {path.parent / os.path.normpath(written)}")
            continue
        name, state = found
        if name != os.path.normpath(written):
            moved = moved or f"; {written} is {name}"
        file = PictureFile(name, class_name, split, state)
        if files.setdefault(name, file)[:3] != file[:3]:
            raise InputError(f"{path}, {where}: {name} stands there with another label or split before")
    count = len(files) + len(missing)
    if len(missing) > MAX_DAMAGED * count:
        raise InputError(
            f"{path}, {missing[0]}" + (f"; nor {len(missing) - 1:,} others of {count:,}" if len(missing) > 1 else "")
        )
    told = f"; {len(missing):,} missing left out, the first in {missing[0]}" if missing else ""
    return files, moved + told


def _said(path: Path, named: tuple[str, str] | None, columns: Sequence[str], rows: Rows) -> Iterator[tuple[str, ...]]:
    """Of each row: where it is, the path, the label, and the split if there is a column of that."""
    known = ((named[0],), (named[1],), SPLITS) if named else (PATHS, LABELS, SPLITS)
    names, labels, splits = (_find(columns, each) for each in known)
    if named and (names is None or labels is None):
        raise _not_there(path, columns, named[0] if names is None else named[1])
    given = [] if splits is None else [splits]
    classes = [column for column in range(len(columns)) if column not in (names, splits)]
    may_be_flags = path.suffix.lower() != ".parquet" and 1 < len(classes) <= MOST_LABELS
    if names is None or (labels is None and not may_be_flags):
        what, known = ("picture paths", PATHS) if names is None else ("labels", LABELS)
        raise _not_known(path, columns, what, known)
    if labels is not None:
        for where, row in rows([names, labels, *given]):
            yield (where, *(value.strip() for value in row))
        return
    table = [(where, [value.strip() for value in row]) for where, row in rows([names, *classes, *given])]
    flags = [place for place in range(1, len(classes) + 1) if all(row[place] in ONE_HOT for _, row in table)]
    if not table or len(flags) < 2:
        raise _not_known(path, columns, "labels", LABELS)
    for where, row in table:
        present = [columns[classes[place - 1]] for place in flags if ONE_HOT[row[place]]]
        if len(present) != 1:
            raise InputError(f"{path}, {where}: {len(present)} columns of classes are 1; a picture has one label")
        yield (where, row[0], present[0], *row[len(classes) + 1 :])


def _not_known(path: Path, columns: Sequence[str], what: str, names: tuple[str, ...]) -> InputError:
    more = f"; others are named in: {path}:PATHS:LABELS"
    if any(name.casefold().startswith("pixel") for name in columns):
        more = "; pixels themselves are read from an .npz archive: np.savez(FILE, images=…, labels=…)"
    should = f"it should have one called {names[0]!r}, and has: {_listed(columns)}{more}"
    return InputError(f"{path} has no column that is known to hold {what}; {should}")


def _not_there(path: Path, columns: Sequence[str], name: str) -> InputError:
    return InputError(f"{path} has no column {name!r}, or more than one; it has: {_listed(columns)}")


def _listed(columns: Sequence[str]) -> str:
    there = ", ".join(map(repr, map(shortened, columns[:MOST_TOLD]))) or "none"
    return there + (f" and {len(columns) - MOST_TOLD:,} more" if len(columns) > MOST_TOLD else "")


def _find(columns: Sequence[str], names: tuple[str, ...]) -> int | None:
    folded = [name.casefold() for name in columns]
    return next((folded.index(name) for name in map(str.casefold, names) if folded.count(name) == 1), None)


def _find_picture(
    path: Path, where: str, written: str, beside: Callable[[], Mapping[str, list[str]]]
) -> tuple[str, os.stat_result] | None:
    """Name and state of the picture that is meant, also with \\ for /, without its ending, or without its folder."""
    name = os.path.normpath(written)
    if state := _state(path.parent / name):
        return name, state
    name = os.path.normpath(written.replace("\\", "/"))
    ends = [own for own in beside().get(os.path.basename(name), ()) if _is_end(name, own)]
    if len(ends) > 1:
        raise InputError(f"{path}, {where}: {written} may be {ends[0]} or {ends[1]}; the table must say which")
    state = _state(path.parent / ends[0]) if ends else None
    return (ends[0], state) if state else None


def _is_end(name: str, picture: str) -> bool:
    return f"/{picture}".endswith((f"/{name}", f"/{name}{_ending(picture)}"))


def _pictures_below(folder: Path) -> dict[str, list[str]]:
    """Paths of all pictures in a folder and in the folders in it, by their names with and without ending.

    Empty where there are so many files that the table cannot be alone there.
    """
    endings, found, count = picture_endings(), defaultdict(list), 0
    for place, folders, names in os.walk(folder):
        below = os.path.relpath(place, folder)
        depth = 0 if below == os.curdir else below.count(os.sep) + 1
        folders[:] = sorted(name for name in folders if depth < DEPTH and not name.startswith("."))
        count += len(names) + len(folders)
        if count > MOST_FILES:
            return {}
        for name in names:
            if _ending(name).lower() in endings:
                own = os.path.normpath(os.path.join(below, name))
                for key in {name, name.removesuffix(_ending(name))}:
                    found[key].append(own)
    return found


def _ending(name: str) -> str:
    return os.path.splitext(name)[1]


def _state(picture: Path) -> os.stat_result | None:
    try:
        state = os.stat(picture)
    except (OSError, ValueError):
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def _read_csv(path: Path) -> tuple[list[str], Rows]:
    lines = _lines(path)
    first = next(lines, "")
    separator = max(",;\t", key=first.count)  # spreadsheets write what their language has for a comma
    columns = next(csv.reader([first], delimiter=separator), [])

    def rows(chosen: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
        reader = csv.reader(lines, delimiter=separator)
        try:
            for row in filter(None, reader):
                where = f"line {reader.line_num + 1}"
                if len(row) != len(columns):
                    raise InputError(f"{path}, {where}: there are {len(row)} values for {len(columns)} columns")
                yield where, [row[column] for column in chosen]
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num + 1}: {error}") from None

    return [name.strip() for name in columns], rows


def _lines(path: Path) -> Iterator[str]:
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE or "\0" in line:
                    raise InputError(f"{path} is no table of text")
                yield line
    except UnicodeDecodeError:
        raise InputError(f"{path} is no table of text in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None

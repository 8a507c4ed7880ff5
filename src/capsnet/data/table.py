"""A table of picture paths and labels: CSV, as spreadsheets and pandas write it, or Parquet."""

import csv
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from capsnet.data.files import PictureFile, read_files
from capsnet.data.framing import MEASURED, WantedRange
from capsnet.data.image_set import ImageSet
from capsnet.data.parquet import Rows, read_parquet
from capsnet.data.splits import NAMES, split_named
from capsnet.errors import InputError

PATHS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "img", "picture"),
    *("image_path", "img_path", "image_file", "image_name", "photo"),
)
LABELS = ("label", "labels", "class", "class_name", "category", "target", "diagnosis", "species", "y")
SPLITS = ("split", "set", "subset", "partition")
"""What the columns are called in people's tables; the first that is there is taken."""

LONGEST_LINE = 2**20


def read_table(
    place: str,
    split: str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet:
    """The pictures named in a `.csv`, `.tsv` or `.parquet` file, with paths from that file on, as images of one size.

    The columns of paths and labels, and one that says which pictures are to train and to test on, if there is one, are
    known by their names. Raises `InputError` if they cannot be told, if a picture is missing or has no label, or as
    `read_folder` does.
    """
    path = Path(os.path.expanduser(place))
    read = read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    files = list(_files(path, *read(path)).values())
    if not files:
        raise InputError(f"there are no pictures in {path}")
    return read_files(place, "table", path.parent, files, split, size, channels, pixel_range)


def _files(path: Path, columns: Sequence[str], rows: Rows) -> dict[str, PictureFile]:
    """By name: a picture that stands in a table twice is one, if the table says the same of it."""
    chosen = [_column(path, columns, PATHS, "picture paths"), _column(path, columns, LABELS, "labels")]
    said = _find(columns, SPLITS)
    files: dict[str, PictureFile] = {}
    for where, row in rows(chosen if said is None else [*chosen, said]):
        name, class_name, *given = (value.strip() for value in row)
        if not name or not class_name:
            raise InputError(f"{path}, {where}: there is no {'label for ' + name if name else 'picture path'}")
        split = split_named(given[0]) if given else ""
        if split is None:
            known = ", ".join(name for names in NAMES.values() for name in names)
            raise InputError(f"{path}, {where}: the split is {given[0]!r}; there are: {known}")
        name = os.path.normpath(name)
        file = PictureFile(name, class_name, split, _state(path, where, name))
        if files.setdefault(name, file)[:3] != file[:3]:
            raise InputError(f"{path}, {where}: {name} stands there with another label or split before")
    return files


def _column(path: Path, columns: Sequence[str], names: tuple[str, ...], what: str) -> int:
    found = _find(columns, names)
    if found is None:
        raise InputError(
            f"{path} has no column that is known to hold {what}; it should have one called {names[0]!r}, and has: "
            f"{', '.join(map(repr, columns)) or 'none'}"
        )
    return found


def _find(columns: Sequence[str], names: tuple[str, ...]) -> int | None:
    folded = [name.casefold() for name in columns]
    return next((folded.index(name) for name in names if folded.count(name) == 1), None)


def _state(path: Path, where: str, name: str) -> os.stat_result:
    try:
        state = os.stat(path.parent / name)
        if stat.S_ISREG(state.st_mode):
            return state
        raise OSError
    except (OSError, ValueError):
        raise InputError(f"{path}, {where}: there is no picture {path.parent / name}") from None


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
        with path.open(encoding="utf-8-sig", newline="") as file:
            while line := file.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE or "\0" in line:
                    raise InputError(f"{path} is no table of text")
                yield line
    except UnicodeDecodeError:
        raise InputError(f"{path} is no table of text in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None

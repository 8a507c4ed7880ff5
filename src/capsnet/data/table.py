"""A table of picture paths and labels: CSV, as spreadsheets and pandas write it, or Parquet."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from capsnet.data.files import PictureFile, read_files
from capsnet.data.image_set import ImageSet
from capsnet.data.parquet import read_parquet
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

Row = Sequence[str]


def read_table(place: str, split: str, size: tuple[int, int] | None = None, channels: int | None = None) -> ImageSet:
    """The pictures named in a `.csv`, `.tsv` or `.parquet` file, with paths from that file on, as images of one size.

    The columns of paths and labels, and one that says which pictures are to train and to test on, if there is one, are
    known by their names. Raises `InputError` if they cannot be told, if a picture is missing or has no label, or as
    `read_folder` does.
    """
    path = Path(place).expanduser()
    parquet = path.suffix.lower() == ".parquet"
    columns, rows = read_parquet(path, {*PATHS, *LABELS, *SPLITS}) if parquet else _read_csv(path)
    files = list(_files(path, columns, rows).values())
    if not files:
        raise InputError(f"there are no pictures in {path}")
    return read_files(place, "table", path.parent, files, split, size, channels)


def _files(path: Path, columns: list[str], rows: Iterable[tuple[str, Row]]) -> dict[str, PictureFile]:
    """By name: a picture that stands in a table twice is one, if the table says the same of it."""
    picture, label = _column(path, columns, PATHS, "picture paths"), _column(path, columns, LABELS, "labels")
    said = next((columns.index(name) for name in columns if name.casefold() in SPLITS), None)
    files: dict[str, PictureFile] = {}
    for where, row in rows:
        if len(row) != len(columns):
            raise InputError(f"{path}, {where}: there are {len(row)} values for {len(columns)} columns")
        name, class_name = row[picture].strip(), row[label].strip()
        if not name or not class_name:
            raise InputError(f"{path}, {where}: there is no {'label for ' + name if name else 'picture path'}")
        split = "" if said is None else split_named(row[said])
        if split is None:
            known = ", ".join(name for names in NAMES.values() for name in names)
            raise InputError(f"{path}, {where}: the split is {row[said or 0]!r}; there are: {known}")
        file = PictureFile(name, class_name, split, _state(path, where, name))
        if files.setdefault(name, file)[:3] != file[:3]:
            raise InputError(f"{path}, {where}: {name} stands there with another label or split before")
    return files


def _column(path: Path, columns: list[str], names: tuple[str, ...], what: str) -> int:
    folded = [name.casefold() for name in columns]
    for name in names:
        if folded.count(name) == 1:
            return folded.index(name)
    raise InputError(
        f"{path} has no column that is known to hold {what}; its columns are {', '.join(map(repr, columns))}, "
        f"and one should be called {names[0]!r}"
    )


def _state(path: Path, where: str, name: str) -> os.stat_result:
    try:
        return os.stat(path.parent / name)
    except (OSError, ValueError):
        raise InputError(f"{path}, {where}: there is no picture {path.parent / name}") from None


def _read_csv(path: Path) -> tuple[list[str], Iterator[tuple[str, Row]]]:
    lines = _lines(path)
    first = next(lines, "")
    separator = max(",;\t", key=first.count)  # spreadsheets write what their language has for a comma

    def rows() -> Iterator[tuple[str, Row]]:
        reader = csv.reader(lines, delimiter=separator)
        try:
            for row in reader:
                if row:
                    yield f"line {reader.line_num + 1}", row
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num + 1}: {error}") from None

    columns = next(csv.reader([first], delimiter=separator), [])
    return [name.strip() for name in columns], rows()


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

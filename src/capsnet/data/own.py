"""A user's own images: what is at a path says how it is read."""

import os
import re
from pathlib import Path

from capsnet.data.folder import read_folder
from capsnet.data.framing import MEASURED, WantedRange
from capsnet.data.hub import is_saved, read_hub
from capsnet.data.idx import has_idx, read_idx
from capsnet.data.image_set import ImageSet
from capsnet.data.npz import read_npz
from capsnet.data.table import read_table
from capsnet.errors import InputError

READERS = {".npz": read_npz, ".csv": read_table, ".tsv": read_table, ".parquet": read_table}
"""Of files, by their names' ending."""

NAMED_COLUMNS = re.compile(r"(?P<table>.+\.(?:csv|tsv|parquet)):(?P<paths>[^:]+):(?P<labels>[^:]+)", re.I | re.S)
"""A table whose columns are called otherwise than in most people's."""

LARGEST_SIZE = 4096


def read_path(
    place: str,
    split: str,
    size: tuple[int, int] | None,
    channels: int | None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet:
    """The images at a path; that of a table may go on with the names of two columns, `TABLE:PATHS:LABELS`.

    Raises `InputError` if there is nothing, or nothing of which images are known to come.
    """
    named = NAMED_COLUMNS.fullmatch(place)
    if named and not os.path.exists(os.path.expanduser(place)):
        return read_table(named["table"], split, size, channels, pixel_range, (named["paths"], named["labels"]))
    path = Path(os.path.expanduser(place))
    if os.path.isdir(path):
        read = read_hub if is_saved(path) else read_idx if has_idx(path) else read_folder
        return read(place, split, size, channels, pixel_range)
    if not os.path.isfile(path):
        raise InputError(f"there is no file or folder {place}")
    if path.suffix.lower() not in READERS:
        raise InputError(f"{place} is neither a folder nor a file of the kinds that are known: {', '.join(READERS)}")
    return READERS[path.suffix.lower()](place, split, size, channels, pixel_range)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of `64` or `48x64`. Raises `InputError` for anything else."""
    if text is None:
        return None
    sides = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", text.strip().lower())
    if not sides:
        raise InputError(f"a size is a number of pixels, or HEIGHTxWIDTH, like 48x64; it is {text!r}")
    return check_size((int(sides[1]), int(sides[2] or sides[1])))


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width). Raises `InputError` unless there can be such images."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= LARGEST_SIZE for side in sides):
        raise InputError(f"images have 1 to {LARGEST_SIZE} pixels a side, not {size!r}")
    return sides[0], sides[1]


def check_channels(channels: int) -> int:
    """Raises `InputError` unless there are pictures of so many."""
    if channels not in (1, 3):
        raise InputError(f"channels are 1 for grey or 3 for colour, not {channels!r}")
    return channels

"""Parquet files, through Arrow, which comes with `datasets` (extra `hub`).

60,000 files with wrong bytes or cut short neither crashed nor stalled Arrow (pyarrow 26.0.1), so it reads in this
process; what is wrong with a file it raises. It is given no chance to make much of a small file.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from capsnet.errors import InputError, gist

MAX_ROWS = 2**24
MAX_BYTES = 2**30
"""Of the columns that are read, unpacked."""
BATCH = 1000


def read_parquet(path: Path, wanted: set[str]) -> tuple[list[str], Iterator[tuple[str, Sequence[str]]]]:
    """Names of all columns; then the rows, each with what to call it, as text. Columns not `wanted` are left empty.

    Names in `wanted` are in lower case. Raises `InputError` if Arrow is not installed or the file is damaged.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"{path} needs the library pyarrow; install it with: pip install 'capsnet[hub]', or give a .csv"
        )
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        columns = list(file.schema_arrow.names)
    except Exception as error:
        raise _refused(path, error) from None
    return columns, _rows(path, file, columns, [name for name in columns if name.casefold() in wanted])


def _rows(path: Path, file: Any, columns: list[str], chosen: list[str]) -> Iterator[tuple[str, Sequence[str]]]:
    try:
        _check_size(path, file.metadata, set(chosen))
        number = 0
        for batch in file.iter_batches(BATCH, columns=chosen):
            batch.validate(full=True)
            values = {name: batch.column(name).to_pylist() for name in chosen}
            for row in range(batch.num_rows):
                number += 1
                yield f"row {number}", [_text(values[name][row]) if name in values else "" for name in columns]
    except InputError:
        raise
    except Exception as error:
        raise _refused(path, error) from None


def _check_size(path: Path, metadata: Any, chosen: set[str]) -> None:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in chosen)
    if metadata.num_rows > MAX_ROWS or size > MAX_BYTES:
        raise InputError(f"{path} speaks of {metadata.num_rows:,} rows and {size:,} bytes; it is damaged or too large")


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _refused(path: Path, error: Exception) -> InputError:
    """An Arrow error names no class that damage does not leave: it raises whatever it stumbles over."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
        return InputError(f"{path} cannot be read: {error.strerror}")
    return InputError(f"{path} is damaged or no Parquet file: {gist(error)}")

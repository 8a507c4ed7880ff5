"""Parquet files, through Arrow, which comes with `datasets` (extra `hub`).

60,000 files with wrong bytes or cut short neither crashed nor stalled Arrow (pyarrow 26.0.1), so it reads in this
process; what is wrong with a file it raises. It is given no chance to make much of a small file.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from capsnet.errors import InputError, gist

MAX_ROWS = 2**24
MAX_BYTES = 2**28
"""Of the columns that are read, unpacked."""
MAX_TEXT = 2**14
"""Bytes of a value: a file names a long text once, and many rows may point to it."""
BATCH = 1000

Rows = Callable[[Sequence[int]], Iterator[tuple[str, list[str]]]]
"""Given the positions of columns: for each row what to call it, and its values in these columns as text."""


def read_parquet(path: Path) -> tuple[list[str], Rows]:
    """Names of all columns, and how to read some of them.

    Raises `InputError` if Arrow is not installed, if the file is damaged, and for columns that are no text or numbers.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"{path} needs the library pyarrow; install it with: pip install 'capsnet[hub]', or give a .csv"
        )
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
    except Exception as error:
        raise _refused(path, error) from None
    return list(schema.names), partial(_rows, path, file, schema)


def _rows(path: Path, file: Any, schema: Any, chosen: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    try:
        names = [_check_type(path, schema.field(column)) for column in chosen]
        _check_size(path, file.metadata, set(names))
        number, file = 0, _packed(path, schema, names)
        for batch in file.iter_batches(BATCH, columns=names):
            batch.validate(full=True)
            for name in names:
                _check_texts(path, batch.column(name))
            for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                number += 1
                yield f"row {number}", [_text(value) for value in values]
    except InputError:
        raise
    except Exception as error:
        raise _refused(path, error) from None


def _check_type(path: Path, field: Any) -> str:
    """The column's name."""
    from pyarrow import types

    if types.is_nested(field.type) or types.is_binary(field.type) or types.is_large_binary(field.type):
        raise InputError(f"the column {field.name!r} of {path} holds {field.type}; it should hold text or numbers")
    return field.name


def _check_size(path: Path, metadata: Any, chosen: set[str]) -> None:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in chosen)
    if metadata.num_rows > MAX_ROWS or size > MAX_BYTES:
        raise InputError(f"{path} speaks of {metadata.num_rows:,} rows and {size:,} bytes; it is damaged or too large")


def _packed(path: Path, schema: Any, names: Sequence[str]) -> Any:
    """The file, of which each text is read once, however many rows have it."""
    import pyarrow.parquet
    from pyarrow import types

    texts = [name for name in names if types.is_string(schema.field(name).type)]
    return pyarrow.parquet.ParquetFile(path, read_dictionary=texts)


def _check_texts(path: Path, column: Any) -> None:
    import pyarrow.compute
    from pyarrow import types

    compute: Any = pyarrow.compute  # whose functions are made when it is imported
    values = column.dictionary if types.is_dictionary(column.type) else column
    if types.is_string(values.type) or types.is_large_string(values.type):
        longest = compute.max(compute.binary_length(values)).as_py() or 0
        if longest > MAX_TEXT:
            raise InputError(f"{path} holds a text of {longest:,} bytes, which is neither a path nor a label")


def _text(value: object) -> str:
    """Nothing for what is missing, be it null or NaN."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _refused(path: Path, error: Exception) -> InputError:
    """Of a damaged file Arrow raises whatever it stumbles over."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
        return InputError(f"{path} cannot be read: {error.strerror}")
    return InputError(f"{path} is damaged or no Parquet file: {gist(error)}")

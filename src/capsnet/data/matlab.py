"""Numbers from MATLAB 5 files, as far as published data sets need it.

Format: MathWorks, *MAT-File Format* (Level 5). SciPy reads it all, but a damaged file makes it crash the process or
take any amount of memory (1.17.1); here every size is checked before it is believed.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from capsnet.disk import read_file
from capsnet.errors import InputError

HEADER = 128
BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
STRUCTURE, FIRST_NUMERIC, LAST_NUMERIC = 2, 6, 15
"""Classes of arrays: structures, and doubles to 64-bit integers."""
LIMIT = 2**28
"""A larger array is refused: affNIST's largest has a third of these bytes."""
MAX_FIELDS, MAX_DIMENSIONS, MAX_NAME = 100, 32, 64
"""A header that speaks of more would take more memory than the array."""

Element = tuple[int, memoryview]
"""A type and its content."""


def read_structure(path: Path, name: str, fields: tuple[str, ...]) -> list[Shaped[np.ndarray, "..."]]:
    """The numeric arrays in these fields of the structure `name`.

    Raises `InputError` if the file is missing, damaged or no MATLAB 5 file, or if there are no such fields.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    order = BYTE_ORDERS.get(content[HEADER - 2 : HEADER])
    if not content.startswith(b"MATLAB 5.0 MAT-file") or order is None:
        raise InputError(f"{path} is not a MATLAB 5 file")
    try:
        found = _find_structure(memoryview(content)[HEADER:], order, name)
        missing = [field for field in fields if field not in found]
        if not missing:
            return [_numbers(found[field], order) for field in fields]
    except struct.error:
        raise InputError(f"{path} is damaged: it ends too early") from None
    except (ValueError, zlib.error) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    raise InputError(f"{path} has no structure {name} with {' and '.join(fields)}")


def _find_structure(content: memoryview, order: str, name: str) -> dict[str, memoryview]:
    """The fields of a structure, unread. Raises `ValueError` for damaged content, also behind it."""
    fields = {}
    for kind, packed in _elements(content, order):
        kind, matrix = _unpacked(packed, order) if kind == COMPRESSED else (kind, packed)
        if kind != MATRIX:
            raise ValueError(f"there should be an array, not an element of type {kind}")
        parts = _elements(matrix, order)
        array_class, _, found = _array_header(parts, order)
        if found == name and array_class == STRUCTURE:
            fields = _fields(parts, order)
    return fields


def _fields(parts: Iterator[Element], order: str) -> dict[str, memoryview]:
    (length,) = struct.unpack(f"{order}i", _next(parts))
    text = bytes(_next(parts))
    if length < 1 or len(text) % length or len(text) > length * MAX_FIELDS:
        raise ValueError("the names of the fields are cut")
    names = [text[k : k + length].split(b"\0")[0].decode("latin-1") for k in range(0, len(text), length)]
    return {name: _next(parts) for name in names}


def _numbers(matrix: memoryview, order: str) -> Shaped[np.ndarray, "..."]:
    parts = _elements(matrix, order)
    array_class, shape, _ = _array_header(parts, order)
    kind, content = next(parts, (0, memoryview(b"")))
    if not FIRST_NUMERIC <= array_class <= LAST_NUMERIC or kind not in NUMBERS:
        raise ValueError("a field that should hold numbers does not")
    # Stored in the smallest type that holds the values, whatever the class of the array.
    values = np.frombuffer(content, f"{order}{NUMBERS[kind]}")
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"an array of {'×'.join(map(str, shape))} holds {len(values)} numbers")
    return values.reshape(shape, order="F")


def _array_header(parts: Iterator[Element], order: str) -> tuple[int, tuple[int, ...], str]:
    """Class, shape and name."""
    flags, sizes, name = (_next(parts) for _ in range(3))
    (flag,) = struct.unpack_from(f"{order}I", flags)
    if len(sizes) > 4 * MAX_DIMENSIONS:
        raise ValueError(f"an array has {len(sizes) // 4:,} dimensions")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    return flag & 0xFF, shape, bytes(name[:MAX_NAME]).decode("latin-1")


def _next(parts: Iterator[Element]) -> memoryview:
    part = next(parts, None)
    if part is None:
        raise ValueError("it ends in the middle of an array")
    return part[1]


def _elements(content: memoryview, order: str) -> Iterator[Element]:
    """One element after the other; all but compressed ones are filled up to a multiple of 8 bytes."""
    while len(content):
        kind, size = struct.unpack(f"{order}II", content[:8])
        begin = 8
        if kind >> 16:  # a small element has size and type in 4 bytes, and its content in the next 4
            kind, size, begin = kind & 0xFFFF, kind >> 16, 4
        if size > len(content) - begin or (begin == 4 and size > 4):
            raise ValueError("it ends too early")
        yield kind, content[begin : begin + size]
        end = begin + size
        content = content[end if kind == COMPRESSED else end + -end % 8 :]


def _unpacked(packed: memoryview, order: str) -> Element:
    """The element in a compressed one, which says how large it is."""
    unpacker = zlib.decompressobj()
    kind, size = struct.unpack(f"{order}II", unpacker.decompress(packed, 8))
    if size > LIMIT:
        raise ValueError(f"an array takes {size:,} bytes; the limit is {LIMIT:,}")
    content = unpacker.decompress(unpacker.unconsumed_tail, size + 1)  # one more, so that the end is reached
    if len(content) != size or not unpacker.eof:
        raise ValueError("a compressed array is cut")
    return kind, memoryview(content)

"""Files of plain numbers behind a short header, compressed with gzip or not, of which nothing is trusted."""

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from capsnet.disk import open_file
from capsnet.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
GZIP_LIMIT = 1032
"""Deflate never packs more than so many bytes into one."""
PIECE = 2**20


class Bytes:
    """The content of a file, unpacked, from front to back."""

    def __init__(self, path: Path, stream: io.BufferedIOBase, limit: int) -> None:
        self.path = path
        self._stream = stream
        self._limit = limit

    def take(self, count: int) -> bytearray:
        """The next `count` bytes. Raises `InputError` if there are not so many."""
        if count > self._limit:
            raise InputError(f"{self.path} is truncated, or its header is damaged: it speaks of {count:,} bytes")
        content = bytearray()
        while len(content) < count:  # in pieces, so that a wrong count takes no memory
            piece = self._stream.read(min(PIECE, count - len(content)))
            if not piece:
                raise InputError(f"{self.path} is truncated: {count - len(content):,} bytes are missing")
            content += piece
        return content

    def expect_end(self) -> None:
        """Raises `InputError` if anything is left."""
        if self._stream.read(1):
            raise InputError(f"{self.path} is longer than its header says")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Bytes]:
    """A file to read; what is wrong with it raises `InputError`. Whether it is packed is seen, not told by its name."""
    try:
        with open_file(path) as file:
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            stream = gzip.GzipFile(fileobj=file) if packed else file
            yield Bytes(path, stream, size * GZIP_LIMIT if packed else size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged: {str(error).lower()}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None

"""Files that others have made, opened only if they are files: a pipe or a device may never end."""

import errno
import io
import os
import stat

KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


class NotAFileError(OSError):
    """There is something at the path, but it is no file."""


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """A file, or what a link leads to, to read. Raises `OSError` as `open` does, and for what is no file."""
    _check(os.stat(path), path)
    # Something else may have come there since then; a pipe is not waited for.
    flags = ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY")
    descriptor = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in flags))
    try:
        _check(os.fstat(descriptor), path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a file; see `open_file`."""
    with open_file(path) as file:
        return file.read()


def _check(state: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(state.st_mode):
        kind = KINDS.get(stat.S_IFMT(state.st_mode), "something else")
        raise NotAFileError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))

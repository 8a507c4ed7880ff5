"""What files and file systems are: only files are opened, for a pipe or a device may never end; not all can be flushed.

Some network and FUSE file systems cannot flush or lock. Who works there is told so, once, and works.
"""

import errno
import functools
import io
import os
import stat
from pathlib import Path

from capsnet.streams import tell

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


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


def flush(descriptor: int) -> None:
    """To the disk, whatever the system still keeps of it in memory. Raises `OSError` if that fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn("this file system cannot flush what is written: after a power cut, what was saved last may be lost")


def flush_folder(folder: Path) -> None:
    """After a power cut, a rename is there only if the folder itself was flushed."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            flush(descriptor)
        finally:
            os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Whether it is locked now, until it is closed. Raises `BlockingIOError` if another process has locked it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # whichever: of those that cannot lock, each system has its own
        _warn("this file system cannot lock: see to it that no other process works in the same folder")
        return False
    return True


def can_lock(path: Path) -> bool:
    """Whether the file system can lock this file, which is made if it is not there."""
    if fcntl is None:
        return True  # Windows always can, by other means
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        return lock(descriptor)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


@functools.cache
def _warn(line: str) -> None:
    tell(line)


def _check(state: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(state.st_mode):
        kind = KINDS.get(stat.S_IFMT(state.st_mode), "something else")
        raise NotAFileError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))

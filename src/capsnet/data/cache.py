"""What takes long to make from a user's files is made once, and kept in the user's cache folder.

An entry is a folder named by a hash of all that decides its content. It is made under another name and renamed when it
is whole, so what a killed process leaves behind is never taken for an entry; a lock lets one process make it while
others wait. What has changed since is made anew. Nothing in an entry can execute code.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from capsnet.disk import can_lock, flush, read_file
from capsnet.errors import InputError
from capsnet.streams import tell

INDEX = "index.json"
FORMAT = 2
"""Another number where entries of an older version of this package must not be used."""
ALWAYS_SUMMED = 2**28
"""Bytes of a file up to which its sum is looked at whenever the entry is opened: a tenth of a second at 2.3 GB/s."""


def cache_folder() -> Path:
    """Where entries lie: `capsnet` in the platform's folder for caches (`$XDG_CACHE_HOME` or `~/.cache` on Linux).

    It may be removed at any time; what is needed is made again.
    """
    return platformdirs.user_cache_path("capsnet", appauthor=False)


def kept(identity: Any, make: Callable[[Path], Mapping[str, Any]], name: str) -> tuple[Path, dict[str, Any], bool]:
    """The folder of the entry for `identity` (anything that JSON can hold), its index, and whether it was made now.

    If there is none, `make` writes its files into the folder that it is given and returns the index. `name` is what the
    user calls it. Raises `InputError` if the cache cannot be written.
    """
    entry, index = found(identity)
    if index is not None:
        return entry, index, False
    folder = entry.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(entry, name):
            index = _read_index(entry)  # another process may have made it while this one waited
            made = index is None
            if made:
                _sweep(folder, entry.name)
                index = _make(entry, make)
    except OSError as error:
        raise InputError(f"cannot write the cache {folder}: {error.strerror or error}") from None
    assert index is not None
    return entry, index, made


def found(identity: Any) -> tuple[Path, dict[str, Any] | None]:
    """Where the entry for `identity` lies, and its index, or None if it was not made."""
    entry = cache_folder() / hashlib.sha256(json.dumps([FORMAT, identity]).encode()).hexdigest()[:32]
    return entry, _read_index(entry)


def stamp(files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Tells files, by name, from other files and from their own later content: by size and time of last change."""
    digest = hashlib.sha256()
    for name, state in files:
        digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def room() -> int:
    """Bytes that the cache may still grow by."""
    return shutil.disk_usage(cache_folder()).free


def _make(entry: Path, make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    partial = entry.with_suffix(".partial")
    for litter in (partial, entry):  # of a killed process; damaged
        _clear(litter)
    partial.mkdir()
    try:
        index = dict(make(partial))
        files = sorted(partial.iterdir())
        for path in files:
            _flush(path)
        index["files"] = {path.name: [*_state(path), _sum_of_file(path)] for path in files}
        (partial / INDEX).write_text(json.dumps({**index, "sum": _sum(index)}))
        _flush(partial / INDEX)
        os.rename(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def _read_index(entry: Path) -> dict[str, Any] | None:
    """None if there is no entry, or not all of it, or if it is not as it was written."""
    try:
        _state(entry / INDEX)
        index = json.loads(read_file(entry / INDEX))
        whole = index.pop("sum") == _sum(index)
        whole = whole and all(_is_as_written(entry / name, *written) for name, written in index["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return index if whole else None


def _sum(index: Mapping[str, Any]) -> str:
    """Tells an index from what a disk made of it."""
    return hashlib.sha256(json.dumps(index).encode()).hexdigest()


def _is_as_written(path: Path, size: int, changed: int, total: int) -> bool:
    """Large files are believed if nobody has written to them since, lest a set of gigabytes is read to be opened."""
    now_size, now_changed = _state(path)
    if now_size != size:
        return False
    return (size > ALWAYS_SUMMED and now_changed == changed) or _sum_of_file(path) == total


def _state(path: Path) -> tuple[int, int]:
    """Size and time of the last change. Raises `OSError` for a pipe or a folder, which nobody should begin to read."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(f"{path} is no file")
    return state.st_size, state.st_mtime_ns


def _sum_of_file(path: Path) -> int:
    """CRC-32: against disks and accidents, not against forgers."""
    total, buffer = 0, memoryview(bytearray(2**20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total = zlib.crc32(buffer[:count], total)
    return total


def _clear(path: Path) -> None:
    """Whatever is there; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(entry: Path, name: str) -> Iterator[None]:
    """The system gives the lock back when a process ends, however it ends."""
    lock = FileLock(entry.with_suffix(".lock"))
    if not can_lock(Path(lock.lock_file)):
        yield
        return
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"another process is reading {name}; waiting for it …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sweep(folder: Path, own: str) -> None:
    """Clear away what killed processes left half-made of other entries."""
    for partial in folder.glob("*.partial"):
        if partial.stem != own and can_lock(lock := partial.with_suffix(".lock")):
            with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0):
                _clear(partial)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        flush(file.fileno())

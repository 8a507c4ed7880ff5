"""What takes long to make from a user's files is made once, and kept in the user's cache folder.

An entry is a folder named by a hash of all that decides its content. It is made under another name and renamed when it
is whole, so what a killed process leaves behind is never taken for an entry; a lock lets one process make it while
others wait. Nothing in an entry can execute code.
"""

import contextlib
import hashlib
import json
import os
import shutil
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
        if litter.exists():
            shutil.rmtree(litter)
    partial.mkdir()
    try:
        index = dict(make(partial))
        index["files"] = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        (partial / INDEX).write_text(json.dumps({**index, "sum": _sum(index)}))
        for path in partial.iterdir():
            _flush(path)
        os.rename(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def _read_index(entry: Path) -> dict[str, Any] | None:
    """None if there is no entry, or not all of it."""
    try:
        index = json.loads(read_file(entry / INDEX))
        whole = index.pop("sum") == _sum(index)
        whole = whole and all((entry / name).stat().st_size == size for name, size in index["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return index if whole else None


def _sum(index: Mapping[str, Any]) -> str:
    """Tells an index from what a disk made of it."""
    return hashlib.sha256(json.dumps(index).encode()).hexdigest()


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
            with contextlib.suppress(Timeout), FileLock(lock, timeout=0):
                shutil.rmtree(partial, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        flush(file.fileno())

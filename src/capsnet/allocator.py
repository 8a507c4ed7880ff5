"""Large buffers without page faults."""

import contextlib
import ctypes
import math
import sys
import threading

import numpy as np
import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP = 2**31 - 1  # the largest that mallopt takes
_LARGE = 8 * 2**20  # bytes
_ALIGNED = 64  # bytes; as PyTorch's own

_spare: list[np.ndarray] | None = None  # None until `tune_allocator`
_lock = threading.Lock()


def tune_allocator() -> bool:
    """Make this process keep freed memory for the next allocation instead of returning it to the system.

    By default glibc maps every tensor above 32 MB afresh and the system clears it page by page when it is first
    written, which takes about as long as computing it: a training step on a CPU is up to twice as slow. The price is
    that the process stays as large as it ever was. The commands do this when they start, importing the package never
    does.

    Returns whether it was done; on systems without glibc it is not.
    """
    global _spare
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    done = bool(mallopt(_M_MMAP_THRESHOLD, _KEEP)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEEP))
    with _lock:
        _spare = (_spare or []) if done else None
    return done


def give_back() -> None:
    """Return freed memory to the system now; without glibc, whenever the C library does.

    glibc keeps what each thread has freed apart: of several threads that took turns at something large, each would keep
    as much.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def large_empty(*shape: int) -> Tensor:
    """A float32 tensor on the CPU with nothing in particular in it.

    After `tune_allocator` large ones are kept when nobody uses them any more, for the next of the same size: glibc
    would cut them up for small ones, and the process would grow by half.
    """
    count = math.prod(shape)
    if _spare is None or 4 * count < _LARGE:
        return torch.empty(shape, dtype=torch.float32, device="cpu")  # whatever the caller's defaults are
    with _lock:
        return torch.from_numpy(_block(_spare, count)).view(shape)


def _block(spare: list[np.ndarray], count: int) -> np.ndarray:
    """One that no tensor refers to."""
    idle = [i for i in range(len(spare)) if sys.getrefcount(spare[i]) <= 2]  # the list's reference, and the argument's
    for i in idle:
        if spare[i].size == count:
            return spare[i]
    for i in reversed(idle):  # of another size: first give back what the new one will need
        del spare[i]
    whole = np.empty(count + _ALIGNED // 4, dtype=np.float32)
    start = -whole.ctypes.data % _ALIGNED // 4
    spare.append(whole[start : start + count])
    return spare[-1]

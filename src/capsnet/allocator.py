"""Large buffers without page faults."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP = 2**31 - 1  # the largest that mallopt takes


def tune_allocator() -> bool:
    """Make glibc keep freed memory for the next allocation instead of returning it to the system; for this process.

    By default every tensor above 32 MB is mapped afresh and cleared page by page when it is first written, which takes
    about as long as computing it: a training step on a CPU is up to twice as slow. The price is that the process stays
    as large as it ever was. The commands do this when they start, importing the package never does.

    Returns whether it was done; on systems without glibc it is not.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEEP))

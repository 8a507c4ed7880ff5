"""Random numbers by position: what is drawn for item n of a sequence depends on the seed and on n alone.

So a sequence is the same however it is cut into batches, on every device, and with every version of NumPy: Philox's
raw stream is fixed (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, 2011).
"""

import numpy as np
from jaxtyping import Float64, Int64, UInt32

NUMBERS = 8
"""Random numbers for each position."""


def draw(seed: int, start: int, stop: int, stream: int = 0) -> UInt32[np.ndarray, "count numbers"]:
    """`NUMBERS` random numbers of 32 bits for each of the positions `start` to `stop`.

    The streams of one seed have nothing to do with each other.
    """
    key, counter = np.array([seed, stream], dtype=np.uint64), np.array([start, 0, 0, 0], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(4 * (stop - start))
    return raw.astype("<u8").view("<u4").astype(np.uint32).reshape(-1, NUMBERS)


def below(numbers: UInt32[np.ndarray, "*shape"], limit: int | Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "*shape"]:
    """Whole numbers from 0 to `limit` - 1, as good as equally likely for limits far below 2³²."""
    return (numbers.astype(np.uint64) * np.asarray(limit, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)


def between(numbers: UInt32[np.ndarray, "*shape"], low: float, high: float) -> Float64[np.ndarray, "*shape"]:
    """Numbers from `low` to `high`, uniform, neither end included."""
    return low + (high - low) * (numbers + 0.5) / 2**32

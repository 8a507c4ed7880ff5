"""Jobs for `products.c`: batches of matrix products over numbers that lie anywhere."""

import ctypes
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from capsnet.kernels import run

_RUN = 2048  # numbers in a run, if they can be cut anywhere


class Runs(NamedTuple):
    """Columns that are contiguous in c, and in b unless said otherwise: where runs of them start, and their lengths."""

    b: Sequence[int]
    c: Sequence[int]
    lengths: Sequence[int]

    def swapped(self) -> "Runs":
        return Runs(self.c, self.b, self.lengths)


def runs(length: int, count: int = 1, b: int = 0, c: int = 0, longest: int = _RUN, column: int = 1) -> Runs:
    """``count`` runs with strides ``b`` and ``c``, in pieces, so that several threads share them.

    ``column`` is the stride of their columns in b.
    """
    pieces = [(start, min(longest, length - start)) for start in range(0, length, longest)]
    whole = [(i * b + start * column, i * c + start, size) for i in range(count) for start, size in pieces]
    return Runs(*([run[k] for run in whole] for k in range(3)))


def offsets(*dimensions: tuple[int, int]) -> list[int]:
    """Where the values of an index lie that consists of dimensions (size, stride), the slowest first."""
    return [sum(steps) for steps in product(*([i * stride for i in range(size)] for size, stride in dimensions))]


_TABLES = ("a0", "b0", "c0", "arow", "ak", "bk", "crow", "brun", "crun", "length", "bcolumn")
_SIZES = ("products", "rows", "depth", "runs", "rows_a_task")


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "b", "bias", "c", *_TABLES)),
        *((name, ctypes.c_long) for name in _SIZES),
        *((name, ctypes.c_int) for name in ("add", "relu", "stream")),
    ]


class Products:
    """``c[z, row, column] = Σ_k a[z, row, k] · b[z, k, column]``, planned once and run on tensors of the same shapes.

    Args:
        z: where each product starts in a, in b and in c.
        rows: where rows lie in a and in c.
        depth: where ``k`` lies in a and in b.
        runs: the columns.
        columns: where the columns of a run lie in b, if they are not contiguous there.
        rows_a_task: how many rows of a product a thread does at a time; all by default.
    """

    def __init__(
        self,
        z: tuple[Sequence[int], Sequence[int], Sequence[int]],
        rows: tuple[Sequence[int], Sequence[int]],
        depth: tuple[Sequence[int], Sequence[int]],
        runs: Runs,
        columns: Sequence[int] | None = None,
        rows_a_task: int | None = None,
    ) -> None:
        listed = [*z, rows[0], *depth, rows[1], *runs, columns]
        # Held here for as long as the job points to them.
        self._tables = [None if x is None else torch.tensor(x, dtype=torch.long, device="cpu") for x in listed]
        tables = (None if x is None else x.data_ptr() for x in self._tables)
        sizes = len(z[0]), len(rows[0]), len(depth[0]), len(runs.b)
        self._job = (*tables, *sizes, rows_a_task or len(rows[0]))
        self._aligned = not any(start % 16 for start in (*z[2], *rows[1], *runs.c))

    def __call__(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        *,
        bias: Tensor | None = None,
        add: bool = False,
        relu: bool = False,
        large: bool = False,
    ) -> None:
        """Write into ``c``, or ``add`` to it; ``bias`` (rows) is added, then ``relu`` makes negative numbers zero.

        What is ``large`` goes past the caches, and does not push out what is there.
        """
        pointers = (a.data_ptr(), b.data_ptr(), None if bias is None else bias.data_ptr(), c.data_ptr())
        stream = large and not add and self._aligned and c.data_ptr() % 64 == 0
        run("capsnet_products", _Job(*pointers, *self._job, add, relu, stream))

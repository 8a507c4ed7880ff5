"""Batches of matrix products over numbers that lie anywhere, and programs of them, for `products.c`."""

import ctypes
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from capsnet.kernels import address, library, run

_RUN = 2048  # numbers in a run, if they can be cut anywhere
_COPIED = 128  # COPIED in products.c
DEEP = 256  # DEEP in products.c: a longer sum is written in pieces


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


_TABLES = ("a0", "b0", "c0", "bk", "crow", "brun", "crun", "length", "bcolumn", "aplace")
_SIZES = ("arow", "ak", "products", "rows", "depth", "runs", "rows_a_task")


class _Plan(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in _TABLES), *((name, ctypes.c_long) for name in _SIZES)]


class _Call(ctypes.Structure):
    _fields_ = [
        ("plan", ctypes.POINTER(_Plan)),
        *(
            (name, ctypes.c_long)
            for name in ("a", "b", "c", "bias", "hidden_by", "sums", "a_start", "b_start", "c_start")
        ),
        *((name, ctypes.c_long) for name in ("first", "before")),
        *((name, ctypes.c_int) for name in ("add", "relu", "stream")),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("calls", ctypes.c_void_p), ("count", ctypes.c_long), ("buffers", ctypes.c_void_p)]


class Products:
    """``c[z, row, column] = Σ_k a[z, row, k] · b[z, k, column]``, planned once for tensors of the same shapes.

    Args:
        z: where each product starts in a, in b and in c.
        rows: from one row to the next in a, and where rows lie in c.
        depth: from one ``k`` to the next in a, or where they lie there, and where in b.
        runs: the columns.
        columns: where the columns of a run lie in b, if they are not contiguous there.
        rows_a_task: how many rows of a product a thread does at a time; all by default.
    """

    def __init__(
        self,
        z: tuple[Sequence[int], Sequence[int], Sequence[int]],
        rows: tuple[int, Sequence[int]],
        depth: tuple[int | Sequence[int], Sequence[int]],
        runs: Runs,
        columns: Sequence[int] | None = None,
        rows_a_task: int | None = None,
    ) -> None:
        step, places = (depth[0], None) if isinstance(depth[0], int) else (0, depth[0])
        if places is not None:
            rows_a_task = min(rows_a_task or _COPIED, _COPIED)
        listed = [*z, depth[1], rows[1], *runs, columns, places]
        self.copies = places is not None
        # Held here for as long as the plan points to them.
        self._tables = [None if x is None else torch.tensor(x, dtype=torch.long, device="cpu") for x in listed]
        tables = (None if x is None else x.data_ptr() for x in self._tables)
        sizes = len(z[0]), len(rows[1]), len(depth[1]), len(runs.b)
        self.plan = _Plan(*tables, rows[0], step, *sizes, rows_a_task or len(rows[1]))
        self.aligned = not any(start % 16 for start in (*z[2], *rows[1], *runs.c))


class Place(NamedTuple):
    """A buffer of a program, and where in it to begin."""

    buffer: str
    start: int = 0


class Program:
    """Batches of products over buffers which are named here and given when it runs; complete before it first does.

    None waits for another that is added before it, except at a `wait`.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._waits = False
        self._constants: list[Tensor] = []
        self._names: dict[str, int] = {}
        self._products: list[Products] = []  # held for as long as the calls point to them
        self._ready: tuple[ctypes.Array, list[int]] | None = None

    def add(
        self,
        products: Products,
        a: Place | Tensor,
        b: Place,
        c: Place,
        *,
        bias: str | None = None,
        hidden_by: str | None = None,
        sums: str | None = None,
        add: bool = False,
        relu: bool = False,
        large: bool = False,
    ) -> None:
        """Write into ``c``, or ``add`` to it; ``bias`` (rows) is added, then ``relu`` makes negative numbers zero.

        Where the places of ``k`` in ``a`` are listed, its numbers count only where those of ``hidden_by`` are positive,
        which lie as they do, and what each row adds up to is added to ``sums`` (z, rows).

        ``a`` may be a constant. What is ``large`` goes past the caches, and does not push out what is there. ``b`` and
        ``c`` may be one buffer where the rows of a column are written where its numbers were read, at most `DEEP`.
        """
        assert products.copies or (hidden_by is None and sums is None), "only where rows of a are copied"
        if isinstance(a, Tensor):
            self._constants.append(a)
            a_number, a_start = -len(self._constants), 0
        else:
            a_number, a_start = self._number(a.buffer), a.start
        others = (-1 if name is None else self._number(name) for name in (bias, hidden_by, sums))
        numbers = a_number, self._number(b.buffer), self._number(c.buffer), *others
        starts = a_start, b.start, c.start
        stream = large and not add and products.aligned and c.start % 16 == 0
        self._calls.append(_Call(ctypes.pointer(products.plan), *numbers, *starts, 0, self._waits, add, relu, stream))
        self._products.append(products)
        self._waits = False

    def wait(self) -> None:
        """What is added from here on starts when all before is done."""
        self._waits = True

    def _number(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def __call__(self, **buffers: Tensor) -> None:
        """Run it; the buffers are contiguous, else `address` refuses them."""
        calls, constants = self._planned()
        pointers = [address(buffers[name]) for name in self._names]
        table = (ctypes.c_void_p * (len(pointers) + len(constants)))(*pointers, *constants)
        run("capsnet_products", _Program(ctypes.addressof(calls), len(calls), ctypes.addressof(table)))

    def _planned(self) -> tuple[ctypes.Array, list[int]]:
        if self._ready is None:
            compiled = library()
            assert compiled is not None
            for call in self._calls:  # constants come after the buffers, of which all are known only now
                if call.a < 0:
                    call.a = len(self._names) - call.a - 1
            calls = (_Call * len(self._calls))(*self._calls)
            compiled.capsnet_plan(calls, ctypes.c_long(len(calls)))
            self._ready = calls, [address(constant) for constant in self._constants]
        return self._ready

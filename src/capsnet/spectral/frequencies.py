"""The mathematics of the spectral convolution along one axis and along both: which values, and by which matrices."""

import cmath
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# ----------------------------------------------------------------------------------------------------- along one axis


class Axis(NamedTuple):
    """One axis of a convolution, cut into tiles of ``tile`` outputs."""

    size: int
    kernel: int
    stride: int
    padding: int
    tile: int

    @property
    def out(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def tiles(self) -> int:
        return -(-self.out // self.tile)

    @property
    def phases(self) -> int:
        """Those that have taps."""
        return min(self.stride, self.kernel)

    @property
    def full(self) -> int:
        """Phases from this one on have one tap less."""
        return self.kernel - (-(-self.kernel // self.stride) - 1) * self.stride

    def taps(self, phase: int = 0) -> int:
        return len(range(phase, self.kernel, self.stride))

    @property
    def points(self) -> int:
        return self.tile + self.taps() - 1

    @property
    def extent(self) -> int:
        """Pixels that all tiles together look at."""
        return (self.tiles * self.tile + self.taps() - 1) * self.stride


class Frequency(NamedTuple):
    """A point, or a conjugate pair of them: complex factors of the values there, and back to the outputs."""

    pixels: Tensor
    taps: Tensor
    outputs: Tensor
    planes: int  # 1 where everything is real, else 2
    infinite: bool = False


@lru_cache(maxsize=64)
def frequencies(tile: int, taps: int) -> list[Frequency]:
    """Roots of unity; zero, where the number of points is even; infinity."""
    with torch.device("cpu"), torch.inference_mode(False):  # these outlive the caller's modes
        return _frequencies(tile, taps)


def _frequencies(tile: int, taps: int) -> list[Frequency]:
    points = tile + taps - 1
    order = (points - 1) // 2 * 2  # an even number of roots, so that 1 and -1, which are real, are among them
    zero = points - 1 - order
    powers = torch.arange(points)
    unit = torch.eye(points, dtype=torch.complex128)
    found = []
    for k in (0, order // 2, *range(1, order // 2)):
        root = torch.tensor(cmath.rect(1, 2 * cmath.pi * k / order), dtype=torch.complex128)
        pixels = torch.zeros(points, dtype=torch.complex128)
        pixels[zero : zero + order] = root ** -(powers[:order] + zero) / order
        found.append(Frequency(pixels, root ** powers[:taps], root ** powers[:tile], 1 if k in (0, order // 2) else 2))
    if zero:
        found.append(Frequency(unit[0] - unit[order], unit[0, :taps], unit[0, :tile], 1))
    last = Frequency(unit[-1] - unit[zero], unit[taps - 1, :taps], unit[tile - 1, :tile], 1, infinite=True)
    return [*found, last]


def planes(found: list[Frequency], of: str) -> Float[Tensor, "planes k"]:
    """What the first transform does along the rows: real numbers, real and imaginary parts in two planes."""
    parts = [(x.real, x.imag)[: f.planes] for f, x in ((f, getattr(f, of)) for f in found)]
    return torch.stack([part for pair in parts for part in pair]).float()


# (a + ib)(c + id) = (k1 - k3) + i(k1 + k2) with k1 = c(a + b), k2 = a(d - c), k3 = b(c + d).
# An output is the real part of that product times x + iy, twice, for the conjugate's sake.
GAUSS = {"pixels": [[1, 1], [1, 0], [0, 1]], "taps": [[1, 0], [-1, 1], [1, 1]], "outputs": [[2, -2], [0, -2], [-2, 0]]}


def _crossing(row: Frequency, column: Frequency, of: str) -> Float[Tensor, "values k"]:
    """The second transform, along the columns: of a row frequency's planes to the factors of 1, 3 or 6 products."""
    if of == "outputs":
        whole = [torch.outer(row.outputs, c).flatten() for c in (column.outputs, column.outputs.conj())]
    else:
        c = getattr(column, of)
        planes = torch.tensor([1, 1j][: row.planes], dtype=torch.complex128)
        whole = [torch.outer(planes, x).flatten() for x in (c, c.conj())]
    if row.planes == column.planes == 1:
        return whole[0].real[None]
    whole = whole if row.planes == column.planes else whole[:1]
    gauss = torch.tensor(GAUSS[of]).double()
    return torch.cat([gauss @ torch.stack([x.real, x.imag]) for x in whole])


class Crossing(NamedTuple):
    """Products where a frequency of the rows crosses the ordinary ones of the columns, or infinity."""

    phases: tuple[int, int]  # that have a part in it, of rows and of columns
    pixels: Float[Tensor, "values planes_points"]
    taps: Float[Tensor, "values planes taps"]


class Group(NamedTuple):
    """All products of a frequency of the rows."""

    frequency: Frequency  # of the rows
    first: int  # its first plane
    planes: int
    crossings: list[Crossing]
    outputs: Float[Tensor, "values outputs"]

    @property
    def inputs(self) -> int:
        """Values of pixels in all its products, for each channel."""
        return sum(len(x.pixels) * x.phases[0] * x.phases[1] for x in self.crossings)


def groups(rows: Axis, columns: Axis) -> list[Group]:
    """All products, by the frequency of the rows."""
    found, first = [], 0
    crossed = frequencies(columns.tile, columns.taps())
    for row in frequencies(rows.tile, rows.taps()):
        crossings = []
        for infinite in (False, True):  # the infinite one is the last, so that this is the order of `outputs` too
            chosen = [c for c in crossed if c.infinite == infinite]
            phases = rows.full if row.infinite else rows.phases, columns.full if infinite else columns.phases
            pixels, taps = (torch.cat([_crossing(row, c, of) for c in chosen]).float() for of in ("pixels", "taps"))
            crossings.append(Crossing(phases, pixels, taps.unflatten(1, (row.planes, -1))))
        outputs = torch.cat([_crossing(row, c, "outputs") for c in crossed]).float()
        found.append(Group(row, first, row.planes, crossings, outputs))
        first += row.planes
    return found

"""Which tile is the quickest, and how long the spectral way takes with it."""

from functools import lru_cache

import torch

from capsnet.spectral.frequencies import Axis, frequencies

_PASS = 60  # how many multiplications a number costs that is transformed, written and read
_PANEL = 32  # columns of a panel, used or not


def axes(x: torch.Size, weight: torch.Size, stride: int, padding: int, tile: int) -> tuple[Axis, Axis]:
    return Axis(x[2], weight[2], stride, padding, tile), Axis(x[3], weight[3], stride, padding, tile)


def cost(x: torch.Size, weight: torch.Size, stride: int, padding: int, tile: int) -> float:
    """How long it takes, in multiplications of the products."""
    rows, columns = axes(x, weight, stride, padding, tile)
    tiles, (out, channels) = rows.tiles * columns.tiles, weight[:2]
    images = _panels(x[0] * tiles)
    moved = x[0] if tiles == 1 else tiles * _panels(x[0])  # of several tiles each is transformed alone
    total = 0
    for row in frequencies(rows.tile, rows.taps()):
        for column in frequencies(columns.tile, columns.taps()):
            phases = [axis.full if f.infinite else axis.phases for axis, f in ((rows, row), (columns, column))]
            inputs = phases[0] * phases[1] * channels
            values = {2: 1, 3: 3, 4: 6}[row.planes + column.planes]
            total += values * (images * inputs * out + _PASS * (moved * inputs + out * inputs + moved * out))
    return float(total)


def _panels(columns: int) -> int:
    return -(-columns // _PANEL) * _PANEL


@lru_cache(maxsize=256)
def best_tile(x: torch.Size, weight: torch.Size, stride: int, padding: int) -> tuple[int, float]:
    """The quickest tile and its `cost`."""
    return min(((tile, cost(x, weight, stride, padding, tile)) for tile in range(3, 13)), key=lambda pair: pair[1])

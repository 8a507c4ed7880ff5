"""The steps of a spectral convolution of given sizes, as programs for the kernel, forward and back."""

from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from capsnet.kernels.products import Place, Program, offsets, runs
from capsnet.spectral.chunks import Chunk
from capsnet.spectral.frequencies import Axis, Group, groups, planes
from capsnet.spectral.layout import Layout
from capsnet.spectral.transform import Transform

_CACHE = 8 * 2**20  # bytes of values at a time, which should stay in the third-level cache


class Steps(Layout):
    """The programs that lead from one thing of the layout to the next."""

    def __init__(self, rows: Axis, columns: Axis, batch: int, channels: int, out: int) -> None:
        super().__init__(rows, columns, batch, channels, out)
        self.blocks = blocks(self)

    def room(self, like: Tensor, back: bool = False) -> dict[str, Tensor]:
        """Buffers for what does not outlive the program, forward or ``back``, small enough for the cache."""
        groups = [group for block in self.blocks for group in block.groups]
        chunks = [chunk for group in groups for chunk in group.chunks.values()]
        sizes = {
            "pixel_values": max(chunk.pixel_values for chunk in chunks),
            "tap_values": max(chunk.tap_values for chunk in chunks),
            "results": max(chunk.results for chunk in chunks),
        }
        if back:
            sizes["grad_tap_values"] = sizes["tap_values"]
        return {name: like.new_empty(size) for name, size in sizes.items()}

    @cached_property
    def to_planes(self) -> Program:
        """From ``pixels`` to ``planes``."""
        program = Program()
        for transform in self._pixel_rows():
            transform.forward(program, Place("pixels"), Place("planes"), large=True)
        return program

    @cached_property
    def from_planes(self) -> Program:
        """From ``planes``, which hold gradients, to those of ``pixels``: in place, or added where there are zeros."""
        program = Program()
        for transform in self._pixel_rows():
            if self.in_place:
                transform.adjoint(program, Place("planes"), Place("planes"), large=True)
            else:
                transform.adjoint(program, Place("planes"), Place("pixels"), add=True)
        return program

    @cached_property
    def to_tap_planes(self) -> Program:
        """From ``kernel`` to ``tap_planes``."""
        program = Program()
        for transform in self._tap_rows():
            transform.forward(program, Place("kernel"), Place("tap_planes"), large=True)
        return program

    @cached_property
    def from_tap_planes(self) -> Program:
        """From ``tap_planes``, which hold gradients, to ``grad_kernel``."""
        program = Program()
        for transform in self._tap_rows():
            transform.adjoint(program, Place("tap_planes"), Place("grad_kernel"), large=True)
        return program

    @cached_property
    def forward(self) -> Program:
        """From ``planes`` and ``tap_planes`` to ``y``."""
        program = Program()
        for block in self.blocks:
            for number, (group, outputs) in enumerate(zip(block.groups, block.outputs, strict=True)):
                for start, chunk in group.in_order():
                    chunk.forward(program, block.first, start)
                outputs.forward(program, Place("results"), Place("y"), add=number > 0)
        return program

    @cached_property
    def backward(self) -> Program:
        """From ``grad`` to the gradients of ``planes``, where these lie, and to ``grad_tap_planes``."""
        return self._backward(want_pixels=True, want_taps=True)

    @cached_property
    def backward_pixels(self) -> Program:
        return self._backward(want_pixels=True, want_taps=False)

    @cached_property
    def backward_taps(self) -> Program:
        return self._backward(want_pixels=False, want_taps=True)

    def _backward(self, want_pixels: bool, want_taps: bool) -> Program:
        program = Program()
        for block in self.blocks:
            for group, outputs in zip(block.groups, block.outputs, strict=True):
                outputs.adjoint(program, Place("grad"), Place("results"))
                for start, chunk in group.in_order():
                    chunk.backward(program, block.first, start, want_pixels, want_taps)
        return program

    def _pixel_rows(self) -> list[Transform]:
        rows, row = self.rows, self.width * self.pixel
        pixels, transforms = offsets((rows.points, rows.stride * row)), []
        matrix = planes(self.frequencies, "pixels")
        for phases, count in self.classes():
            starts = [
                [(self.corner(*at) + s * row, s * self.phase + tile * self.tile) for s in phases]
                for tile, at in enumerate(self.tiles)
            ]
            targets = offsets((count, self.plane))
            transforms.append(Transform(matrix[:count], pixels, targets, starts, runs(self.tile)))
        return transforms

    def _tap_rows(self) -> list[Transform]:
        """For phases with equally many taps."""
        rows, row = self.rows, self.columns.kernel * self.tap
        matrix, transforms = planes(self.frequencies, "taps"), []
        for phases, count in self.classes():
            taps = offsets((rows.taps(phases[0]), rows.stride * row))
            targets = offsets((count, self.tap_plane))
            starts = [[(s * row, s * row) for s in phases]]
            transforms.append(Transform(matrix[:count, : len(taps)], taps, targets, starts, runs(row)))
        return transforms


class GroupSteps:
    """What belongs to one frequency of the rows: its channels, as many at a time as the cache has room for."""

    def __init__(self, layout: Layout, group: Group, tiles: int) -> None:
        numbers = layout.channels * group.inputs * (tiles * layout.batch + layout.out)
        count = min(layout.channels, -(-numbers * 4 // _CACHE))
        self.bounds = [layout.channels * k // count for k in range(count + 1)]
        self.chunks = {size: Chunk(layout, group, tiles, size) for size in {b - a for a, b in pairwise(self.bounds)}}

    def in_order(self) -> list[tuple[int, Chunk]]:
        """First channels, and what is done with them and those that follow."""
        return [(a, self.chunks[b - a]) for a, b in pairwise(self.bounds)]


class Block:
    """Some of the tiles from the ``first`` on: all that is done with them is done before the next ones' turn."""

    def __init__(self, layout: Layout, first: int, count: int, found: list[Group], groups: list[GroupSteps]) -> None:
        self.first, self.groups = first, groups
        self.outputs = [_outputs(layout, layout.tiles[first : first + count], group.outputs.T) for group in found]


def blocks(layout: Layout) -> list[Block]:
    """All tiles, as many at a time as the cache has room for."""
    found, tiles = groups(layout.rows, layout.columns), len(layout.tiles)
    numbers = layout.batch * max(group.inputs * layout.channels + len(group.outputs) * layout.out for group in found)
    count = -(-tiles // max(1, _CACHE // (4 * numbers)))
    bounds = [tiles * k // count for k in range(count + 1)]
    steps = {
        size: [GroupSteps(layout, group, size) for group in found] for size in {b - a for a, b in pairwise(bounds)}
    }
    return [Block(layout, a, b - a, found, steps[b - a]) for a, b in pairwise(bounds)]


def _outputs(layout: Layout, tiles: list[tuple[int, int]], matrix: Tensor) -> Transform:
    """Products of pixels and weights to results."""
    rows, columns, images = layout.rows, layout.columns, len(tiles) * layout.batch
    pixel = layout.out * layout.batch
    row = columns.tiles * columns.tile * pixel
    starts = [
        [
            (number * layout.batch, down * rows.tile * row + across * columns.tile * pixel)
            for number, (down, across) in enumerate(tiles)
        ]
    ]
    numbers = runs(pixel) if len(tiles) == 1 else runs(layout.batch, layout.out, images, layout.batch)
    sources = offsets((matrix.shape[1], layout.out * images))
    return Transform(matrix, sources, offsets((rows.tile, row), (columns.tile, pixel)), starts, numbers)


@lru_cache(maxsize=32)
def steps_for(rows: Axis, columns: Axis, batch: int, channels: int, out: int) -> Steps:
    with torch.device("cpu"), torch.inference_mode(False):  # these outlive the caller's modes
        return Steps(rows, columns, batch, channels, out)

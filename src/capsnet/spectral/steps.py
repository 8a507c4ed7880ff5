"""The steps of a spectral convolution of given sizes, as jobs for the kernel, forward and back."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from capsnet.kernels.products import Products, Runs, offsets, runs
from capsnet.spectral.frequencies import Axis, Crossing, Group, frequencies, groups, planes

_CACHE = 8 * 2**20  # bytes of values at a time, which should stay in the third-level cache
_ROWS = 128  # of a product that a thread does at a time


class Transform:
    """``target[row] = Σ_k matrix[row, k] · source[k]`` at many starts, and its adjoint.

    ``starts`` are lists of (source, target); those of different lists may overlap in the source.
    """

    def __init__(
        self,
        matrix: Tensor,
        sources: Sequence[int],
        targets: Sequence[int],
        starts: list[list[tuple[int, int]]],
        columns: Runs,
    ) -> None:
        self.matrix, self.transposed = matrix.contiguous(), matrix.T.contiguous()
        count, length = matrix.shape
        rows, depth = range(0, count * length, length), range(length)
        source, target = _columns([pair for group in starts for pair in group])
        self.job = Products(([0] * len(source), source, target), (rows, targets), (depth, sources), columns)
        rows, depth = range(0, count * length, count), range(count)
        self.jobs_back = [
            Products(([0] * len(source), target, source), (rows, sources), (depth, targets), columns.swapped())
            for source, target in map(_columns, starts)
        ]

    def __call__(self, source: Tensor, target: Tensor, add: bool = False, large: bool = False) -> None:
        self.job(self.matrix, source, target, add=add, large=large)

    def adjoint(self, target: Tensor, source: Tensor, add: bool = False, large: bool = False) -> None:
        for job in self.jobs_back:
            job(self.transposed, target, source, add=add, large=large)


class Steps:
    """Shapes and strides of what a convolution works on; the transforms and products that lead from one to the next.

    Pixels lie (y, x, channel, image), weights (y, x, channel, out). After the transform of their rows there are planes
    of frequencies: pixels (plane, phase, tile, x, channel, image), weights (plane, phase, x, channel, out). After that
    of the columns there are values: pixels (value, inputs, images), weights (value, inputs, out), and their products
    (value, out, images). Inputs count phases and channels; images count tiles too.
    """

    def __init__(self, rows: Axis, columns: Axis, batch: int, channels: int, out: int) -> None:
        self.rows, self.columns, self.batch, self.channels, self.out = rows, columns, batch, channels, out
        self.height = max(rows.extent, rows.padding + rows.size)
        self.width = max(columns.extent, columns.padding + columns.size)
        self.tiles = rows.tiles * columns.tiles
        self.images = self.tiles * batch
        self.pixel, self.tap = channels * batch, channels * out
        self.result_value = out * self.images
        found = frequencies(rows.tile, rows.taps())
        pixels, taps = planes(found, "pixels"), planes(found, "taps")
        self.planes = len(pixels)
        self.pixel_shape = self.planes, rows.phases, rows.tiles, self.width, self.pixel
        self.tap_shape = self.planes, rows.phases, columns.kernel, self.tap
        # Of all tiles, the last of which may stand over.
        self.result_shape = rows.tiles * rows.tile, columns.tiles * columns.tile, out, batch
        self.pixel_rows = [self._pixel_rows(pixels[:count], phases) for phases, count in self._classes()]
        self.tap_rows = [self._tap_rows(taps[:count], phases) for phases, count in self._classes()]
        self.groups = [GroupSteps(self, group) for group in groups(rows, columns)]
        pieces = [piece.steps for group in self.groups for piece in group.pieces]
        self.pixel_values = max(piece.count * piece.pixel_value for piece in pieces)
        self.tap_values = max(piece.count * piece.tap_value for piece in pieces)
        self.result_values = max(group.count for group in self.groups) * self.result_value

    def _classes(self) -> list[tuple[range, int]]:
        """Phases of the rows, and how many planes they have: the last one, at infinity, is for full phases only."""
        classes = (range(self.rows.full), self.planes), (range(self.rows.full, self.rows.phases), self.planes - 1)
        return [(phases, count) for phases, count in classes if phases]

    def _pixel_rows(self, matrix: Tensor, phases: range) -> Transform:
        rows, row = self.rows, self.width * self.pixel
        starts = [
            [((tile * rows.tile * rows.stride + s) * row, (s * rows.tiles + tile) * row) for s in phases]
            for tile in range(rows.tiles)
        ]
        pixels = offsets((rows.points, rows.stride * row))
        targets = offsets((len(matrix), rows.phases * rows.tiles * row))
        return Transform(matrix, pixels, targets, starts, runs(row))

    def _tap_rows(self, matrix: Tensor, phases: range) -> Transform:
        rows, row = self.rows, self.columns.kernel * self.tap
        taps = offsets((rows.taps(phases[0]), rows.stride * row))
        targets = offsets((len(matrix), rows.phases * row))
        starts = [[(s * row, s * row) for s in phases]]
        return Transform(matrix[:, : len(taps)], taps, targets, starts, runs(row))


class GroupSteps:
    """What belongs to one frequency of the rows."""

    def __init__(self, steps: Steps, group: Group) -> None:
        self.first, self.planes, self.count = group.first, group.planes, len(group.outputs)
        self.pieces: list[Piece] = []
        value = 0
        for crossing in group.crossings:
            self.pieces += _pieces(steps, crossing, group.planes, value * steps.result_value)
            value += len(crossing.pixels)
        self.outputs = _outputs(steps, group.outputs.T)


def _outputs(steps: Steps, matrix: Tensor) -> Transform:
    """Products of pixels and weights to results."""
    rows, columns = steps.rows, steps.columns
    pixel = steps.out * steps.batch
    row = columns.tiles * columns.tile * pixel
    starts = [
        [
            ((tile * columns.tiles + across) * steps.batch, tile * rows.tile * row + across * columns.tile * pixel)
            for tile in range(rows.tiles)
            for across in range(columns.tiles)
        ]
    ]
    numbers = runs(pixel) if steps.tiles == 1 else runs(steps.batch, steps.out, steps.images, steps.batch)
    sources = offsets((matrix.shape[1], steps.result_value))
    return Transform(matrix, sources, offsets((rows.tile, row), (columns.tile, pixel)), starts, numbers)


def _pieces(steps: Steps, crossing: Crossing, planes: int, results_at: int) -> list["Piece"]:
    """Some of the input channels at a time, as many as the cache has room for."""
    phases = crossing.phases[0] * crossing.phases[1]
    channel = 4 * len(crossing.pixels) * phases * (steps.images + steps.out)
    count = min(steps.channels, -(-steps.channels * channel // _CACHE))
    bounds = [steps.channels * k // count for k in range(count + 1)]
    made = {size: PieceSteps(steps, crossing, planes, size) for size in {b - a for a, b in pairwise(bounds)}}
    return [Piece(made[b - a], a * steps.batch, a * steps.out, results_at, a > 0) for a, b in pairwise(bounds)]


class Piece(NamedTuple):
    """Steps for some of the input channels, and where their numbers begin."""

    steps: "PieceSteps"
    pixels_at: int
    taps_at: int
    results_at: int
    add: bool  # to the results of the channels before


class PieceSteps:
    """Transforms of the columns, and products, for some of the input channels."""

    def __init__(self, steps: Steps, crossing: Crossing, planes: int, channels: int) -> None:
        self.steps, self.crossing, self.planes, self.channels = steps, crossing, planes, channels
        self.count = len(crossing.pixels)
        self.row_phases, self.column_phases = crossing.phases
        self.inputs = self.row_phases * self.column_phases * channels
        self.pixel_value, self.tap_value = self.inputs * steps.images, self.inputs * steps.out
        self.pixels = self._pixels()
        columns = steps.columns
        classes = range(min(columns.full, self.column_phases)), range(columns.full, self.column_phases)
        self.taps = [self._taps(phases) for phases in classes if phases]
        self.products, self.pixels_back, self.taps_back = self._products()

    def _pixels(self) -> Transform:
        steps, columns = self.steps, self.steps.columns
        pixel, row = steps.pixel, steps.width * steps.pixel
        plane = steps.rows.phases * steps.rows.tiles * row
        starts = [
            [
                (
                    (s * steps.rows.tiles + tile) * row + (across * columns.tile * columns.stride + t) * pixel,
                    (s * self.column_phases + t) * self.channels * steps.images
                    + (tile * columns.tiles + across) * steps.batch,
                )
                for s in range(self.row_phases)
                for t in range(self.column_phases)
                for tile in range(steps.rows.tiles)
            ]
            for across in range(columns.tiles)
        ]
        if steps.tiles == 1:
            numbers = runs(self.channels * steps.batch)
        else:
            numbers = runs(steps.batch, self.channels, steps.batch, steps.images)
        sources = offsets((self.planes, plane), (columns.points, columns.stride * pixel))
        targets = offsets((self.count, self.pixel_value))
        return Transform(self.crossing.pixels, sources, targets, starts, numbers)

    def _taps(self, phases: range) -> Transform:
        """For phases with equally many taps."""
        steps, columns = self.steps, self.steps.columns
        row, taps, numbers = columns.kernel * steps.tap, columns.taps(phases[0]), self.channels * steps.out
        starts = [
            [
                (s * row + t * steps.tap, (s * self.column_phases + t) * numbers)
                for s in range(self.row_phases)
                for t in phases
            ]
        ]
        sources = offsets((self.planes, steps.rows.phases * row), (taps, columns.stride * steps.tap))
        targets = offsets((self.count, self.tap_value))
        return Transform(self.crossing.taps[..., :taps].flatten(1), sources, targets, starts, runs(numbers))

    def _products(self) -> tuple[Products, Products, Products]:
        """Of weights and pixels; of weights and gradient; of pixels and gradient."""
        steps, inputs, out, images = self.steps, self.inputs, self.steps.out, self.steps.images
        sizes = self.pixel_value, self.tap_value, steps.result_value
        pixels, taps, results = (offsets((self.count, size)) for size in sizes)
        each, over, across = offsets((inputs, images)), offsets((out, images)), offsets((inputs, out))
        columns = runs(images, longest=512)
        return (
            Products((taps, pixels, results), (range(out), over), (across, each), columns, rows_a_task=_ROWS),
            Products((taps, results, pixels), (across, each), (range(out), over), columns, rows_a_task=_ROWS),
            Products(
                (pixels, results, taps),
                (each, across),
                (range(images), range(images)),
                runs(out, longest=128, column=images),
                columns=over[:128],
                rows_a_task=8 * _ROWS,
            ),
        )


@lru_cache(maxsize=32)
def steps_for(rows: Axis, columns: Axis, batch: int, channels: int, out: int) -> Steps:
    with torch.device("cpu"), torch.inference_mode(False):  # these outlive the caller's modes
        return Steps(rows, columns, batch, channels, out)


def _columns(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [a for a, _ in pairs], [b for _, b in pairs]

"""The steps of a spectral convolution of given sizes, as programs for the kernel, forward and back."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from capsnet.kernels.products import DEEP, Place, Products, Program, Runs, offsets, runs
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
        self.matrix = matrix.contiguous()
        length = matrix.shape[1]
        source, target = _columns([pair for group in starts for pair in group])
        self.job = Products(([0] * len(source), source, target), (length, targets), (1, sources), columns)
        self.jobs_back = [  # rows of the transposed matrix are columns of the matrix
            Products(([0] * len(source), target, source), (1, sources), (length, targets), columns.swapped())
            for source, target in map(_columns, starts)
        ]

    def forward(self, program: Program, source: Place, target: Place, add: bool = False, large: bool = False) -> None:
        program.add(self.job, self.matrix, source, target, add=add, large=large)

    def adjoint(self, program: Program, target: Place, source: Place, add: bool = False, large: bool = False) -> None:
        for number, job in enumerate(self.jobs_back):
            if number:
                program.wait()
            program.add(job, self.matrix, target, source, add=add, large=large)


class Steps:
    """Shapes and strides of what a convolution works on, and the programs that lead from one to the next.

    Pixels lie (y, x, channel, image), weights (y, x, channel, out). After the transform of their rows there are planes
    of frequencies: pixels (plane, phase, tile, x, channel, image), weights (plane, phase, x, channel, out). After that
    of the columns there are values: pixels (value, inputs, images), weights (value, inputs, out), and their products,
    the results (value, out, images). Inputs count phases and channels; images count tiles too. Planes are made whole;
    values only for one frequency of the rows and some channels at a time.
    """

    def __init__(self, rows: Axis, columns: Axis, batch: int, channels: int, out: int) -> None:
        self.rows, self.columns, self.batch, self.channels, self.out = rows, columns, batch, channels, out
        self.height = max(rows.extent, rows.padding + rows.size)
        self.width = max(columns.extent, columns.padding + columns.size)
        self.tiles = rows.tiles * columns.tiles
        self.images = self.tiles * batch
        self.pixel, self.tap = channels * batch, channels * out
        self.result_value = out * self.images
        self.frequencies = frequencies(rows.tile, rows.taps())
        self.planes = sum(frequency.planes for frequency in self.frequencies)
        self.plane = rows.phases * rows.tiles * self.width * self.pixel  # numbers in a plane of pixels
        self.tap_plane = rows.phases * columns.kernel * self.tap
        self.pixel_shape = self.planes, rows.phases, rows.tiles, self.width, self.pixel
        self.tap_shape = self.planes, rows.phases, columns.kernel, self.tap
        # Of all tiles, the last of which may stand over.
        self.result_shape = rows.tiles * rows.tile, columns.tiles * columns.tile, out, batch
        # Where every row of pixels belongs to one tile, planes are as large as pixels and can be made where these lie.
        self.in_place = _covered(rows, self.height) and self.planes <= DEEP
        self.groups = [GroupSteps(self, group) for group in groups(rows, columns)]

    def classes(self) -> list[tuple[range, int]]:
        """Phases of the rows, and how many planes they have: the last one, at infinity, is for full phases only."""
        rows = self.rows
        classes = (range(rows.full), self.planes), (range(rows.full, rows.phases), self.planes - 1)
        return [(phases, count) for phases, count in classes if phases]

    def room(self, like: Tensor, back: bool = False) -> dict[str, Tensor]:
        """Buffers for what does not outlive the program, forward or ``back``, small enough for the cache."""
        chunks = [chunk for group in self.groups for chunk in group.chunks.values()]
        sizes = {
            "pixel_values": max(chunk.pixel_values for chunk in chunks),
            "tap_values": max(chunk.tap_values for chunk in chunks),
            "results": max(group.count for group in self.groups) * self.result_value,
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
        for number, group in enumerate(self.groups):
            for start, chunk in group.in_order():
                chunk.forward(program, start)
            group.outputs.forward(program, Place("results"), Place("y"), add=number > 0)
        return program

    @cached_property
    def backward(self) -> Program:
        """From ``grad`` to the gradients of ``planes`` and ``tap_planes`` where these lie."""
        return self._backward(want_pixels=True, want_taps=True)

    @cached_property
    def backward_pixels(self) -> Program:
        return self._backward(want_pixels=True, want_taps=False)

    @cached_property
    def backward_taps(self) -> Program:
        """The same, whatever is in ``tap_planes``."""
        return self._backward(want_pixels=False, want_taps=True)

    def _backward(self, want_pixels: bool, want_taps: bool) -> Program:
        program = Program()
        for group in self.groups:
            group.outputs.adjoint(program, Place("grad"), Place("results"))
            for start, chunk in group.in_order():
                chunk.backward(program, start, want_pixels, want_taps)
        return program

    def _pixel_rows(self) -> list[Transform]:
        rows, row = self.rows, self.width * self.pixel
        pixels, transforms = offsets((rows.points, rows.stride * row)), []
        matrix = planes(self.frequencies, "pixels")
        for phases, count in self.classes():
            starts = [
                [((tile * rows.tile * rows.stride + s) * row, (s * rows.tiles + tile) * row) for s in phases]
                for tile in range(rows.tiles)
            ]
            targets = offsets((count, self.plane))
            transforms.append(Transform(matrix[:count], pixels, targets, starts, runs(row)))
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

    def __init__(self, steps: Steps, group: Group) -> None:
        self.count = len(group.outputs)
        inputs = sum(len(x.pixels) * x.phases[0] * x.phases[1] for x in group.crossings)
        count = min(steps.channels, -(-steps.channels * 4 * inputs * (steps.images + steps.out) // _CACHE))
        self.bounds = [steps.channels * k // count for k in range(count + 1)]
        sizes = {b - a for a, b in pairwise(self.bounds)}
        self.chunks = {size: ChunkSteps(steps, group, size) for size in sizes}
        self.outputs = _outputs(steps, group.outputs.T)

    def in_order(self) -> list[tuple[int, "ChunkSteps"]]:
        """First channels, and what is done with them and those that follow."""
        return [(a, self.chunks[b - a]) for a, b in pairwise(self.bounds)]


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


class ChunkSteps:
    """What one frequency of the rows does with some of the channels."""

    def __init__(self, steps: Steps, group: Group, channels: int) -> None:
        self.steps, self.channels, self.planes = steps, channels, group.planes
        self.first_pixel, self.first_tap = group.first * steps.plane, group.first * steps.tap_plane
        self.crossings: list[CrossingSteps] = []
        self.pixel_values = self.tap_values = results = 0
        for crossing in group.crossings:
            crossed = CrossingSteps(self, crossing, self.pixel_values, self.tap_values, results)
            self.crossings.append(crossed)
            self.pixel_values += crossed.count * crossed.pixel_value
            self.tap_values += crossed.count * crossed.tap_value
            results += crossed.count * steps.result_value

    def forward(self, program: Program, start: int) -> None:
        """Of the channels from ``start`` on."""
        self._pixels_to_values(program, start)
        self._taps_to_values(program, start)
        program.wait()
        for x in self.crossings:
            program.add(x.products, x.taps_at, x.pixels_at, x.results_at, add=start > 0)
        program.wait()

    def backward(self, program: Program, start: int, want_pixels: bool, want_taps: bool) -> None:
        """Gradients in the place of the planes, which nobody needs any more."""
        if want_taps:
            self._pixels_to_values(program, start)
        if want_pixels:
            self._taps_to_values(program, start)
        program.wait()
        if want_taps:
            for x in self.crossings:
                program.add(x.taps_back, x.pixels_at, x.results_at, x.grad_taps_at)
            program.wait()
        if want_pixels:
            for x in self.crossings:
                program.add(x.pixels_back, x.taps_at, x.results_at, x.pixels_at)
        if want_taps:
            self._taps_from_values(program, start)
        program.wait()
        if want_pixels:
            self._pixels_from_values(program, start)

    def _pixels_to_values(self, program: Program, start: int) -> None:
        for x in self.crossings:
            x.pixels.forward(program, self._pixels(start), x.pixels_at)

    def _taps_to_values(self, program: Program, start: int) -> None:
        for x in self.crossings:
            for transform in x.taps:
                transform.forward(program, self._taps(start), x.taps_at)

    def _taps_from_values(self, program: Program, start: int) -> None:
        for number, x in enumerate(self.crossings):
            for transform in x.taps:
                transform.adjoint(program, x.grad_taps_at, self._taps(start), add=number > 0)
            program.wait()

    def _pixels_from_values(self, program: Program, start: int) -> None:
        overwrite = _covered(self.steps.columns, self.steps.width)
        if not overwrite:
            program.add(self._nothing(), self._pixels(start), self._pixels(start), self._pixels(start))
            program.wait()
        for number, x in enumerate(self.crossings):
            x.pixels.adjoint(program, x.pixels_at, self._pixels(start), add=number > 0 or not overwrite)
            program.wait()

    def _pixels(self, start: int) -> Place:
        return Place("planes", self.first_pixel + start * self.steps.batch)

    def _taps(self, start: int) -> Place:
        return Place("tap_planes", self.first_tap + start * self.steps.out)

    def _nothing(self) -> Products:
        """An empty sum for each pixel of these channels."""
        steps = self.steps
        starts = offsets((self.planes * steps.plane // steps.pixel, steps.pixel))
        length = self.channels * steps.batch
        return Products(([0] * len(starts), [0] * len(starts), starts), (0, [0]), (0, []), runs(length))


class CrossingSteps:
    """Transforms of the columns, and products, for some of the channels."""

    def __init__(self, chunk: ChunkSteps, crossing: Crossing, pixels_at: int, taps_at: int, results_at: int) -> None:
        self.steps, self.chunk, self.crossing, self.channels = chunk.steps, chunk, crossing, chunk.channels
        self.count = len(crossing.pixels)
        self.row_phases, self.column_phases = crossing.phases
        self.inputs = self.row_phases * self.column_phases * self.channels
        self.pixel_value, self.tap_value = self.inputs * self.steps.images, self.inputs * self.steps.out
        self.pixels_at, self.taps_at = Place("pixel_values", pixels_at), Place("tap_values", taps_at)
        self.grad_taps_at, self.results_at = Place("grad_tap_values", taps_at), Place("results", results_at)
        self.pixels, self.taps = self._pixels(), self._taps()
        self.products, self.pixels_back, self.taps_back = self._products()

    def _pixels(self) -> Transform:
        steps, columns = self.steps, self.steps.columns
        pixel, row = steps.pixel, steps.width * steps.pixel
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
        sources = offsets((self.chunk.planes, steps.plane), (columns.points, columns.stride * pixel))
        targets = offsets((self.count, self.pixel_value))
        return Transform(self.crossing.pixels, sources, targets, starts, numbers)

    def _taps(self) -> list[Transform]:
        """For phases with equally many taps."""
        steps, columns = self.steps, self.steps.columns
        tap, row = steps.tap, columns.kernel * steps.tap
        numbers, transforms = self.channels * steps.out, []
        targets = offsets((self.count, self.tap_value))
        for phases in range(min(columns.full, self.column_phases)), range(columns.full, self.column_phases):
            if phases:
                taps = columns.taps(phases[0])
                starts = [
                    [
                        (s * row + t * tap, (s * self.column_phases + t) * numbers)
                        for s in range(self.row_phases)
                        for t in phases
                    ]
                ]
                sources = offsets((self.chunk.planes, steps.rows.phases * row), (taps, columns.stride * tap))
                matrix = self.crossing.taps[..., :taps].flatten(1)
                transforms.append(Transform(matrix, sources, targets, starts, runs(numbers)))
        return transforms

    def _products(self) -> tuple[Products, Products, Products]:
        """Of weights and pixels; of weights and gradient; of pixels and gradient."""
        steps, inputs, out, images = self.steps, self.inputs, self.steps.out, self.steps.images
        sizes = self.pixel_value, self.tap_value, steps.result_value
        pixels, taps, results = (offsets((self.count, size)) for size in sizes)
        each, over, across = offsets((inputs, images)), offsets((out, images)), offsets((inputs, out))
        columns = runs(images, longest=512)
        return (
            Products((taps, pixels, results), (1, over), (out, each), columns, rows_a_task=_ROWS),
            Products((taps, results, pixels), (out, each), (1, over), columns, rows_a_task=_ROWS),
            Products(
                (pixels, results, taps),
                (images, across),
                (1, range(images)),
                runs(out, longest=128, column=images),
                columns=over[:128],
                rows_a_task=8 * _ROWS,
            ),
        )


@lru_cache(maxsize=32)
def steps_for(rows: Axis, columns: Axis, batch: int, channels: int, out: int) -> Steps:
    with torch.device("cpu"), torch.inference_mode(False):  # these outlive the caller's modes
        return Steps(rows, columns, batch, channels, out)


def _covered(axis: Axis, size: int) -> bool:
    """Whether each of so many pixels belongs to one tile."""
    return axis.tiles == 1 and axis.phases == axis.stride and axis.extent == size


def _columns(pairs: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [a for a, _ in pairs], [b for _, b in pairs]

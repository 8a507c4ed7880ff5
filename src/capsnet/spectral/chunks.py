"""What is done with some of the channels: values of pixels and weights, their products, and all of it back."""

from capsnet.kernels.products import Place, Products, Program, offsets, runs
from capsnet.spectral.frequencies import Crossing, Group
from capsnet.spectral.layout import Layout
from capsnet.spectral.transform import Transform

_ROWS = 128  # of a product that a thread does at a time


class Chunk:
    """What one frequency of the rows does with some of the channels of some tiles, whichever these are."""

    def __init__(self, layout: Layout, group: Group, tiles: int, channels: int) -> None:
        self.layout, self.tiles, self.channels, self.planes = layout, tiles, channels, group.planes
        self.first_pixel, self.first_tap = group.first * layout.plane, group.first * layout.tap_plane
        self.images = tiles * layout.batch
        self.crossings: list[CrossingSteps] = []
        self.pixel_values = self.tap_values = self.results = 0
        for crossing in group.crossings:
            crossed = CrossingSteps(self, crossing, self.pixel_values, self.tap_values, self.results)
            self.crossings.append(crossed)
            self.pixel_values += crossed.count * crossed.pixel_value
            self.tap_values += crossed.count * crossed.tap_value
            self.results += crossed.count * crossed.result_value

    def forward(self, program: Program, tile: int, start: int) -> None:
        """Of the tiles from ``tile`` and the channels from ``start`` on."""
        self._pixels_to_values(program, tile, start)
        self._taps_to_values(program, start)
        program.wait()
        for x in self.crossings:
            program.add(x.products, x.taps_at, x.pixels_at, x.results_at, add=start > 0)
        program.wait()

    def backward(self, program: Program, tile: int, start: int, want_pixels: bool, want_taps: bool) -> None:
        """Gradients of pixels take the place of their planes, which nobody needs any more."""
        if want_taps:
            self._pixels_to_values(program, tile, start)
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
            self._taps_from_values(program, start, add=tile > 0)
        program.wait()
        if want_pixels:
            self._pixels_from_values(program, tile, start)

    def _pixels_to_values(self, program: Program, tile: int, start: int) -> None:
        for x in self.crossings:
            x.pixels.forward(program, self._pixels(tile, start), x.pixels_at)

    def _taps_to_values(self, program: Program, start: int) -> None:
        for x in self.crossings:
            for transform in x.taps:
                transform.forward(program, self._taps("tap_planes", start), x.taps_at)

    def _taps_from_values(self, program: Program, start: int, add: bool) -> None:
        for number, x in enumerate(self.crossings):
            for transform in x.taps:
                transform.adjoint(program, x.grad_taps_at, self._taps("grad_tap_planes", start), add=add or number > 0)
            program.wait()

    def _pixels_from_values(self, program: Program, tile: int, start: int) -> None:
        at = self._pixels(tile, start)
        overwrite = self.layout.columns.phases == self.layout.columns.stride  # all of them
        if not overwrite:
            program.add(self._nothing(), at, at, at)
            program.wait()
        for number, x in enumerate(self.crossings):
            x.pixels.adjoint(program, x.pixels_at, at, add=number > 0 or not overwrite)
            program.wait()

    def _pixels(self, tile: int, start: int) -> Place:
        return Place("planes", self.first_pixel + tile * self.layout.tile + start * self.layout.batch)

    def _taps(self, buffer: str, start: int) -> Place:
        return Place(buffer, self.first_tap + start * self.layout.out)

    def _nothing(self) -> Products:
        """An empty sum for each pixel of these channels."""
        layout = self.layout
        pixels = self.tiles * layout.tile // layout.pixel
        starts = offsets((self.planes * layout.rows.phases, layout.phase), (pixels, layout.pixel))
        length = self.channels * layout.batch
        return Products(([0] * len(starts), [0] * len(starts), starts), (0, [0]), (0, []), runs(length))


class CrossingSteps:
    """Transforms of the columns, and products."""

    def __init__(self, chunk: Chunk, crossing: Crossing, pixels_at: int, taps_at: int, results_at: int) -> None:
        self.layout, self.chunk, self.crossing = chunk.layout, chunk, crossing
        self.count = len(crossing.pixels)
        self.row_phases, self.column_phases = crossing.phases
        self.inputs = self.row_phases * self.column_phases * chunk.channels
        self.pixel_value, self.tap_value = self.inputs * chunk.images, self.inputs * self.layout.out
        self.result_value = self.layout.out * chunk.images
        self.pixels_at, self.taps_at = Place("pixel_values", pixels_at), Place("tap_values", taps_at)
        self.grad_taps_at, self.results_at = Place("grad_tap_values", taps_at), Place("results", results_at)
        self.pixels, self.taps = self._pixels(), self._taps()
        self.products, self.pixels_back, self.taps_back = self._products()

    def _pixels(self) -> Transform:
        layout, columns, chunk = self.layout, self.layout.columns, self.chunk
        starts = [
            [
                (
                    s * layout.phase + tile * layout.tile + t * layout.pixel,
                    (s * self.column_phases + t) * chunk.channels * chunk.images + tile * layout.batch,
                )
                for s in range(self.row_phases)
                for t in range(self.column_phases)
                for tile in range(chunk.tiles)
            ]
        ]
        if chunk.tiles == 1:
            numbers = runs(chunk.channels * layout.batch)
        else:
            numbers = runs(layout.batch, chunk.channels, layout.batch, chunk.images)
        sources = offsets((chunk.planes, layout.plane), (columns.points, columns.stride * layout.pixel))
        targets = offsets((self.count, self.pixel_value))
        return Transform(self.crossing.pixels, sources, targets, starts, numbers)

    def _taps(self) -> list[Transform]:
        """For phases with equally many taps."""
        layout, columns = self.layout, self.layout.columns
        tap, row = layout.tap, columns.kernel * layout.tap
        numbers, transforms = self.chunk.channels * layout.out, []
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
                sources = offsets((self.chunk.planes, layout.rows.phases * row), (taps, columns.stride * tap))
                matrix = self.crossing.taps[..., :taps].flatten(1)
                transforms.append(Transform(matrix, sources, targets, starts, runs(numbers)))
        return transforms

    def _products(self) -> tuple[Products, Products, Products]:
        """Of weights and pixels; of weights and gradient; of pixels and gradient."""
        inputs, out, images = self.inputs, self.layout.out, self.chunk.images
        sizes = self.pixel_value, self.tap_value, self.result_value
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

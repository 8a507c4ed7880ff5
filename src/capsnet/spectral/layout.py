"""Where everything lies that a spectral convolution of given sizes works on."""

from capsnet.kernels.products import DEEP
from capsnet.spectral.frequencies import Axis, frequencies


class Layout:
    """Shapes and strides.

    Pixels lie (y, x, channel, image), weights (y, x, channel, out). After the transform of their rows there are planes
    of frequencies: pixels (plane, phase, tile, x, channel, image), weights (plane, phase, x, channel, out). After that
    of the columns there are values: pixels (value, inputs, images), weights (value, inputs, out), and their products,
    the results (value, out, images). Inputs count phases and channels; images count tiles too. Planes are made whole,
    and what tiles share is in each of them; values only for some tiles, one frequency of the rows and some channels at
    a time.
    """

    def __init__(self, rows: Axis, columns: Axis, batch: int, channels: int, out: int) -> None:
        self.rows, self.columns, self.batch, self.channels, self.out = rows, columns, batch, channels, out
        self.height = max(rows.extent, rows.padding + rows.size)
        self.width = max(columns.extent, columns.padding + columns.size)
        self.tiles = [(down, across) for down in range(rows.tiles) for across in range(columns.tiles)]
        self.pixel, self.tap = channels * batch, channels * out
        self.tile = columns.points * columns.stride * self.pixel  # numbers of a tile in a row of pixels
        self.frequencies = frequencies(rows.tile, rows.taps())
        self.planes = sum(frequency.planes for frequency in self.frequencies)
        self.phase = len(self.tiles) * self.tile  # numbers in a phase of a plane of pixels
        self.plane = rows.phases * self.phase
        self.tap_plane = rows.phases * columns.kernel * self.tap
        self.pixel_shape = self.planes, rows.phases, len(self.tiles), self.tile
        self.tap_shape = self.planes, rows.phases, columns.kernel, self.tap
        # Of all tiles, the last of which may stand over.
        self.result_shape = rows.tiles * rows.tile, columns.tiles * columns.tile, out, batch
        # Where one tile has every pixel, planes are as large as pixels and can be made where these lie.
        whole = _covered(rows, self.height) and _covered(columns, self.width)
        self.in_place = whole and len(self.tiles) == 1 and self.planes <= DEEP

    def classes(self) -> list[tuple[range, int]]:
        """Phases of the rows, and how many planes they have: the last one, at infinity, is for full phases only."""
        rows = self.rows
        classes = (range(rows.full), self.planes), (range(rows.full, rows.phases), self.planes - 1)
        return [(phases, count) for phases, count in classes if phases]

    def corner(self, down: int, across: int) -> int:
        """Where a tile begins among the pixels."""
        rows, columns = self.rows, self.columns
        return (down * rows.tile * rows.stride * self.width + across * columns.tile * columns.stride) * self.pixel


def _covered(axis: Axis, size: int) -> bool:
    """Whether each of so many pixels belongs to a tile."""
    return axis.phases == axis.stride and axis.extent == size

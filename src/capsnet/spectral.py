"""Exact convolution with a fraction of the multiplications: one matrix product for each frequency of small tiles.

Along one axis, the pixels of a tile meet the taps of a kernel as two polynomials do in a product: take their values at
enough points, multiply, interpolate (Toom and Cook; Winograd, *Arithmetic Complexity of Computations*, 1980). The
points are roots of unity, which make this a discrete Fourier transform and as accurate as direct convolution, and also
infinity and, where the count is even, zero: two more real values. In two dimensions a real value costs one product and
a complex one three (Gauss), 142 in all for 6 x 6 outputs of 5 x 5 taps, where direct convolution takes 900. Over batch
and channels each of these products is a matrix product. A convolution of stride ``s`` is the sum of ``s * s``
convolutions of stride one, one for each phase of the pixels; here phases are simply more input channels. A phase with
fewer taps than the others has the value zero at infinity, and is left out there.

Everything is laid out pixel first, (height, width, batch, channels), so that no product needs a transposed copy.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

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
    def taps(self) -> int:
        """Taps of one phase; phases from ``full`` on have one less."""
        return -(-self.kernel // self.stride)

    @property
    def full(self) -> int:
        return self.kernel - (self.taps - 1) * self.stride

    @property
    def points(self) -> int:
        return self.tile + self.taps - 1

    @property
    def extent(self) -> int:
        """Pixels that all tiles together look at."""
        return (self.tiles * self.tile + self.taps - 1) * self.stride


class Part(NamedTuple):
    """Some of the points of an axis, and the matrices (points, .) of values there; one row for a conjugate pair."""

    pixels: Tensor
    taps: Tensor
    outputs: Tensor
    real: int  # the first rows, that are real
    first: tuple[tuple[int, int], ...]  # (first pixel, sign): runs of pixels, which are summed
    tap: int  # the first tap
    short: bool  # whether phases with fewer taps have a part in this


def _parts(tile: int, taps: int) -> list[Part]:
    """Roots of unity; zero, where the number of points is even; infinity."""
    points = tile + taps - 1
    order = (points - 1) // 2 * 2  # an even number of roots, so that 1 and -1, which are real, are among them
    zero, one = points - 1 - order, torch.ones(1, 1, dtype=torch.complex128)
    angles = 2 * torch.pi / order * torch.tensor([0, order // 2, *range(1, order // 2)], dtype=torch.float64)
    roots = torch.polar(torch.ones_like(angles), angles)[:, None]
    powers = torch.arange(points)
    unity = roots ** -(powers[:order] + zero) / order, roots ** powers[:taps], roots ** powers[:tile]
    first, last = powers[None, :tile] == 0, powers[None, :tile] == tile - 1
    parts = [Part(*unity, 2, ((zero, 1),), 0, True)]
    if zero:
        parts.append(Part(one, one, first + 0j, 1, ((0, 1), (order, -1)), 0, True))
    parts.append(Part(one, one, last + 0j, 1, ((order + zero, 1), (zero, -1)), taps - 1, False))
    return parts


# ---------------------------------------------------------------------------------------------------- along both axes

# (a + ib)(c + id) = (k1 - k3) + i(k1 + k2) with k1 = c(a + b), k2 = a(d - c), k3 = b(c + d).
# An output is the real part of that product times x + iy, twice, for the conjugate's sake.
GAUSS = {"pixels": [[1, 1], [1, 0], [0, 1]], "taps": [[1, 0], [-1, 1], [1, 1]], "outputs": [[2, -2], [0, -2], [-2, 0]]}


class Block(NamedTuple):
    """Frequencies where a part of the rows crosses a part of the columns, and the matrices to and from them."""

    rows: Part
    columns: Part
    pixels: Tensor  # (frequencies, pixels)
    taps: Tensor  # (frequencies, taps)
    outputs: Tensor  # (frequencies, outputs)


def _matrix(rows: Part, columns: Part, of: str) -> Tensor:
    """Real (frequencies, k * l) out of complex (points, k) and (points, l)."""
    u, v = getattr(rows, of), getattr(columns, of)
    r, s, size = rows.real, columns.real, u.shape[1] * v.shape[1]
    halves = [(u[:r], v[:s]), (u[:r], v[s:]), (u[r:], v[:s]), (u[r:], v[s:]), (u[r:], v[s:].conj())]
    real, *pairs = (torch.einsum("ak,bl->abkl", a, b).reshape(-1, size) for a, b in halves)
    products = torch.einsum("gc,fxc->gfx", torch.tensor(GAUSS[of]).double(), torch.view_as_real(torch.cat(pairs)))
    return torch.cat([real.real, products.reshape(-1, size)])


def blocks(rows: Axis, columns: Axis, dtype: torch.dtype) -> tuple[list[Block], Float[Tensor, "outputs frequencies"]]:
    """The blocks, and side by side their matrices to the outputs."""
    return _blocks(rows.tile, rows.taps, columns.tile, columns.taps, dtype)


@lru_cache(maxsize=128)
def _blocks(tile: int, taps: int, tile2: int, taps2: int, dtype: torch.dtype) -> tuple[list[Block], Tensor]:
    with torch.device("cpu"), torch.inference_mode(False):  # these outlive the caller's modes
        grid = [
            Block(r, c, *(_matrix(r, c, of).to(dtype) for of in ("pixels", "taps", "outputs")))
            for r in _parts(tile, taps)
            for c in _parts(tile2, taps2)
        ]
        return grid, torch.cat([block.outputs for block in grid]).T.contiguous()


# ---------------------------------------------------------------------------------------------------- matrix products

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def product(a: Float[Tensor, "m k"], b: Float[Tensor, "n k"], bias: Tensor | None = None) -> Float[Tensor, "m n"]:
    """``F.linear`` through oneDNN, where it is there: up to three times as fast as a BLAS that is not at home."""
    if _ONEDNN is not None and a.dtype == torch.float32 and a.device.type == "cpu":
        return _ONEDNN(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


def _products(
    a: Float[Tensor, "f m k"], b: Float[Tensor, "f n k"], out: Tensor | None = None
) -> Float[Tensor, "f m n"]:
    """A product for each frequency."""
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[1]) if out is None else out
    for x, y, z in zip(a, b, out, strict=True):
        z.copy_(product(x, y))
    return out


def _apply(matrix: Float[Tensor, "f p"], x: Float[Tensor, "p ..."]) -> Float[Tensor, "f ..."]:
    if matrix.shape == (1, 1):  # a one, see `_parts`
        return x
    return product(matrix, x.view(len(x), -1).T).view(len(matrix), *x.shape[1:])


# -------------------------------------------------------------------------------------------------------------- pixels


def _pad(x: Float[Tensor, "b c h w"], rows: Axis, columns: Axis) -> Float[Tensor, "y x b c"]:
    """Pixel first, and as large as the tiles want it."""
    x = x.permute(2, 3, 0, 1)
    if not rows.padding and not columns.padding and rows.extent <= rows.size and columns.extent <= columns.size:
        return x
    out = x.new_zeros(rows.extent, columns.extent, *x.shape[2:])
    inside = out[rows.padding :, columns.padding :][: rows.size, : columns.size]
    inside.copy_(x[: inside.shape[0], : inside.shape[1]])
    return out


def _tile(x: Float[Tensor, "y x b c"], rows: Axis, columns: Axis) -> Float[Tensor, "n m tr tc b s t c"]:
    """A view: pixel of a tile, tile, image, phase, channel. Tiles overlap."""
    h, w, b, c = x.stride()
    h, w = h * rows.stride, w * columns.stride
    size = (rows.points, columns.points, rows.tiles, columns.tiles, x.shape[2], rows.stride, columns.stride, x.shape[3])
    return x.as_strided(size, (h, w, h * rows.tile, w * columns.tile, b, x.stride(0), x.stride(1), c))


def _runs(x: Tensor, part: Part, dim: int, axis: Axis) -> list[tuple[Tensor, int]]:
    """The runs of pixels along dim that enter a part, with their signs. The phases are dim + 5."""
    x = x if part.short else x.narrow(dim + 5, 0, axis.full)
    return [(x.narrow(dim, first, part.pixels.shape[1]), sign) for first, sign in part.first]


def _pixels(tiles: Tensor, block: Block, rows: Axis, columns: Axis) -> Float[Tensor, "f m k"]:
    """The spectrum of the pixels in a block; m counts tiles and images, k phases and channels."""
    for part, dim, axis in (block.rows, 0, rows), (block.columns, 1, columns):
        (tiles, _), *negative = _runs(tiles, part, dim, axis)
        for other, _ in negative:
            tiles = tiles - other
    x = tiles.contiguous().flatten(0, 1).flatten(4).flatten(1, 3)
    return _apply(block.pixels, x)


def _pixels_grad(tiles: Tensor, grad: Float[Tensor, "f m k"], block: Block, rows: Axis, columns: Axis) -> None:
    """Adjoint of ``_pixels``: adds to the tiles, one after the other, since they overlap."""
    runs = [
        (part, sign * sign2)
        for half, sign in _runs(tiles, block.rows, 0, rows)
        for part, sign2 in _runs(half, block.columns, 1, columns)
    ]
    grad = _apply(block.pixels.T.contiguous(), grad).view(runs[0][0].shape)
    for part, sign in runs:
        for i in range(rows.tiles):
            for j in range(columns.tiles):
                part[:, :, i, j].add_(grad[:, :, i, j], alpha=sign)


# ---------------------------------------------------------------------------------------------------- taps and outputs


def _phases(kernel: Float[Tensor, "kh kw o c"], taps: Float[Tensor, "r q o s t c"]) -> list[tuple[Tensor, Tensor]]:
    """Which taps of the kernel are which in a tensor ordered by tap and phase."""
    s, t = taps.shape[3:5]
    pairs = []
    for i in range(s):
        for j in range(t):
            part = kernel[i::s, j::t]
            pairs.append((part, taps[: part.shape[0], : part.shape[1], :, i, j]))
    return pairs


def _split(weight: Float[Tensor, "o c kh kw"], rows: Axis, columns: Axis) -> Float[Tensor, "r q o s t c"]:
    """Ordered by tap and phase, and zero where a phase has fewer taps."""
    o, c = weight.shape[:2]
    whole = (rows.full, columns.full) == (rows.stride, columns.stride)
    new = weight.new_empty if whole else weight.new_zeros
    taps = new(rows.taps, columns.taps, o, rows.stride, columns.stride, c)
    for source, target in _phases(weight.permute(2, 3, 0, 1), taps):
        target.copy_(source)
    return taps


def _merge(taps: Float[Tensor, "r q o s t c"], rows: Axis, columns: Axis) -> Float[Tensor, "o c kh kw"]:
    """Adjoint of ``_split``."""
    kernel = taps.new_empty(rows.kernel, columns.kernel, taps.shape[2], taps.shape[5])
    for target, source in _phases(kernel, taps):
        target.copy_(source)
    return kernel.permute(2, 3, 0, 1)


def _choose(taps: Float[Tensor, "r q o s t c"], block: Block, rows: Axis, columns: Axis) -> Tensor:
    """A view of the taps and phases that enter a block."""
    for part, dim, axis in (block.rows, 0, rows), (block.columns, 1, columns):
        taps = taps if part.short else taps.narrow(dim + 3, 0, axis.full)
        taps = taps.narrow(dim, part.tap, part.taps.shape[1])
    return taps


def spectra(weight: Float[Tensor, "o c kh kw"], rows: Axis, columns: Axis) -> list[Float[Tensor, "f o k"]]:
    """The spectrum of the weight, block by block; k counts phases and channels."""
    taps = _split(weight, rows, columns)
    chosen = ((block, _choose(taps, block, rows, columns)) for block in blocks(rows, columns, weight.dtype)[0])
    return [_apply(block.taps, w.contiguous().flatten(0, 1).flatten(2)) for block, w in chosen]


def _outputs(spectrum: Float[Tensor, "f m o"], rows: Axis, columns: Axis) -> Float[Tensor, "b o y x"]:
    """From the spectrum of all outputs to the outputs."""
    y = _apply(blocks(rows, columns, spectrum.dtype)[1], spectrum)
    y = y.view(rows.tile, columns.tile, rows.tiles, columns.tiles, -1, y.shape[-1]).permute(2, 0, 3, 1, 4, 5)
    y = y.reshape(rows.tiles * rows.tile, columns.tiles * columns.tile, *y.shape[4:])
    return y[: rows.out, : columns.out].permute(2, 3, 0, 1)


def _outputs_grad(grad: Float[Tensor, "b o y x"], rows: Axis, columns: Axis) -> Float[Tensor, "f m o"]:
    """Adjoint of ``_outputs``."""
    g = grad.permute(2, 3, 0, 1)
    missing = columns.tiles * columns.tile - columns.out, rows.tiles * rows.tile - rows.out
    if any(missing):
        g = F.pad(g, (0, 0, 0, 0, 0, missing[0], 0, missing[1]))
    g = g.unflatten(1, (columns.tiles, columns.tile)).unflatten(0, (rows.tiles, rows.tile)).permute(1, 3, 0, 2, 4, 5)
    return _apply(blocks(rows, columns, grad.dtype)[1].T.contiguous(), g.contiguous().flatten(0, 1).flatten(1, 3))


# -------------------------------------------------------------------------------------------------------- convolution


class _SpectralConvolution(torch.autograd.Function):
    """Keeps the spectra of the pixels and of the weight for the backward pass, which needs no others."""

    @staticmethod
    def forward(ctx, x, weight, bias, rows: Axis, columns: Axis, kept: list[Tensor] | None) -> Tensor:
        parts, matrix = blocks(rows, columns, x.dtype)
        tiles = _tile(_pad(x, rows, columns), rows, columns)
        weights = spectra(weight, rows, columns) if kept is None else kept
        spectrum = x.new_empty(matrix.shape[1], rows.tiles * columns.tiles * x.shape[0], weight.shape[0])
        pixels = []
        for block, w, out in zip(parts, weights, spectrum.split([len(b.taps) for b in parts]), strict=True):
            p = _pixels(tiles, block, rows, columns)
            _products(p, w, out)
            if ctx.needs_input_grad[1]:
                pixels.append(p)
        ctx.axes = rows, columns
        ctx.save_for_backward(x, weight, *pixels, *(weights if ctx.needs_input_grad[0] else []))
        y = _outputs(spectrum, rows, columns)
        if bias is not None:
            y.add_(bias[:, None, None])
        return y.data  # not a view of anything, so that a ReLU may change it in place

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        (grad,) = grad_outputs
        (rows, columns), (x, weight, *kept) = ctx.axes, ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = None
        if torch.is_grad_enabled():  # somebody differentiates again: formulas that autograd can follow
            if want_x:
                grad_x = conv2d_input(x.shape, weight, grad, rows.stride, rows.padding)
            if want_weight:
                grad_weight = conv2d_weight(x, weight.shape, grad, rows.stride, rows.padding)
        elif want_x or want_weight:
            parts, _ = blocks(rows, columns, grad.dtype)
            grads = _outputs_grad(grad, rows, columns).split([len(block.taps) for block in parts])
            if want_weight:
                grad_weight = _weight_grad(parts, kept[: len(parts)], grads, rows, columns)
            if want_x:
                grad_x = _input_grad(parts, kept[-len(parts) :], grads, rows, columns)
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if want_bias else None, None, None, None


def _weight_grad(parts, pixels, grads, rows: Axis, columns: Axis) -> Float[Tensor, "o c kh kw"]:
    shape = rows.taps, columns.taps, grads[0].shape[2], rows.stride, columns.stride, -1
    taps, *others = (
        _apply(block.taps.T.contiguous(), _products(g.transpose(1, 2).contiguous(), p.transpose(1, 2)))
        for block, p, g in zip(parts, pixels, grads, strict=True)
    )
    taps = taps.view(shape)  # of the roots of unity, which all taps and phases take part in
    for block, w in zip(parts[1:], others, strict=True):
        part = _choose(taps, block, rows, columns)
        part.add_(w.view(part.shape))
    return _merge(taps, rows, columns)


def _input_grad(parts, weights, grads, rows: Axis, columns: Axis) -> Float[Tensor, "b c h w"]:
    images = grads[0].shape[1] // (rows.tiles * columns.tiles)
    channels = weights[0].shape[2] // (rows.stride * columns.stride)
    height, width = max(rows.extent, rows.padding + rows.size), max(columns.extent, columns.padding + columns.size)
    padded = grads[0].new_zeros(height, width, images, channels)
    tiles = _tile(padded, rows, columns)
    for block, w, g in zip(parts, weights, grads, strict=True):
        _pixels_grad(tiles, _products(g, w.transpose(1, 2)), block, rows, columns)
    inside = padded[rows.padding :, columns.padding :][: rows.size, : columns.size]
    return inside.permute(2, 3, 0, 1)


def spectral_conv2d(
    x: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "out channels kh kw"],
    bias: Float[Tensor, " out"] | None = None,
    stride: int = 1,
    padding: int = 0,
    tile: int | None = None,
    kept: list[Tensor] | None = None,
) -> Float[Tensor, "batch out y x"]:
    """``F.conv2d`` through small spectra.

    Fastest where ``x`` and ``weight`` lie pixel first in memory, as the result does: ``x.permute(2, 3, 0, 1)`` and
    ``weight.permute(2, 3, 0, 1)`` contiguous. ``tile`` outputs are computed together; without it, `best_tile`.
    ``kept`` are the `spectra` of the weight for the same axes, if they are known already.
    """
    if tile is None:
        tile, _ = best_tile(x.shape, weight.shape, stride, padding)
    rows, columns = axes(x.shape, weight.shape, stride, padding, tile)
    return _SpectralConvolution.apply(x, weight, bias, rows, columns, kept)


def axes(x: torch.Size, weight: torch.Size, stride: int, padding: int, tile: int) -> tuple[Axis, Axis]:
    return Axis(x[2], weight[2], stride, padding, tile), Axis(x[3], weight[3], stride, padding, tile)


def cost(x: torch.Size, weight: torch.Size, stride: int, padding: int, tile: int) -> float:
    """How long it takes, in multiplications of the products.

    Beside the products, each number in the spectra of pixels, weight and outputs is transformed, written, and read.
    Measured with tiles of 4 to 10, kernels of 5 and 9 and batches of 32 to 256, this takes as long as ``25 + n² / 4``
    multiplications, for ``n`` points along an axis; the sum was then right within a tenth.
    """
    rows, columns = axes(x, weight, stride, padding, tile)
    images, (out, channels) = x[0] * rows.tiles * columns.tiles, weight[:2]
    total = 0
    for block in blocks(rows, columns, torch.float32)[0]:
        s = rows.stride if block.rows.short else rows.full
        t = columns.stride if block.columns.short else columns.full
        inputs = s * t * channels
        numbers = images * inputs + out * inputs + images * out
        total += len(block.taps) * (images * inputs * out + (25 + rows.points * columns.points / 4) * numbers)
    return total


@lru_cache(maxsize=256)
def best_tile(x: torch.Size, weight: torch.Size, stride: int, padding: int) -> tuple[int, float]:
    """The quickest tile and its `cost`."""
    return min(((tile, cost(x, weight, stride, padding, tile)) for tile in range(3, 13)), key=lambda pair: pair[1])

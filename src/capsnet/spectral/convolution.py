"""Exact convolution with a fraction of the multiplications: one matrix product for each frequency of small tiles.

Along one axis, the pixels of a tile meet the taps of a kernel as two polynomials do in a product: take their values at
enough points, multiply, interpolate (Toom and Cook; Winograd, *Arithmetic Complexity of Computations*, 1980). The
points are roots of unity, which make this a discrete Fourier transform and as accurate as direct convolution, and also
infinity and, where the count is even, zero: two more real values. In two dimensions a real value costs one product and
a complex one three (Gauss), 142 in all for 6 x 6 outputs of 5 x 5 taps, where direct convolution takes 900. Over batch
and channels each of these products is a matrix product. A convolution of stride ``s`` is the sum of ``s * s``
convolutions of stride one, one for each phase of the pixels; here phases are simply more input channels. A phase with
fewer taps than the others has the value zero at infinity, and is left out there.

What costs time beside the products is memory: the spectrum of a weight is seven times the weight. So only the rows are
transformed as a whole, which makes pixels little more and a weight twice as much. The columns follow for some of the
tiles, one frequency of the rows and some of the channels at a time, as many as fit the cache; nothing else ever exists
of the spectra.

Everything lies pixel first and batch last, ``(height, width, channels, batch)``, weights ``(height, width, in, out)``.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from capsnet import kernels
from capsnet.allocator import large_empty
from capsnet.spectral.cost import axes, best_tile
from capsnet.spectral.steps import Steps, steps_for


def tap_planes(weight: Float[Tensor, "o c kh kw"], steps: Steps) -> Float[Tensor, "plane phase kw tap"]:
    """The weight with its rows transformed, which can be kept for as long as the weight does not change."""
    planes = large_empty(*steps.tap_shape)
    steps.to_tap_planes(kernel=_pixel_first(weight), tap_planes=planes)
    return planes


def _pixel_planes(x: Float[Tensor, "b c h w"], steps: Steps) -> Float[Tensor, "plane phase tile pixels"]:
    planes = large_empty(*steps.pixel_shape)
    steps.to_planes(pixels=_padded(x, steps), planes=planes)
    return planes


def _pixel_first(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "h w c b"]:
    return x.detach().permute(2, 3, 1, 0).contiguous()


def _padded(x: Float[Tensor, "b c h w"], steps: Steps) -> Float[Tensor, "ht wt c b"]:
    """Pixel first, and as large as the tiles want it."""
    if x.shape[2:] == (steps.height, steps.width):
        return _pixel_first(x)
    padded = large_empty(steps.height, steps.width, steps.channels, steps.batch).zero_()
    _inside(padded, steps).copy_(x.detach().permute(2, 3, 1, 0))
    return padded


def _inside(padded: Tensor, steps: Steps) -> Tensor:
    top, left = steps.rows.padding, steps.columns.padding
    return padded[top : top + steps.rows.size, left : left + steps.columns.size]


class _SpectralConvolution(torch.autograd.Function):
    """Keeps the planes of pixels for the backward pass, which puts their gradients in their place; once."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, kept: Tensor | None) -> Tensor:
        planes, y = _pixel_planes(x, steps), large_empty(*steps.result_shape)
        taps = tap_planes(weight, steps) if kept is None else kept
        steps.forward(planes=planes, tap_planes=taps, y=y, **steps.room(x))
        if bias is not None:
            y.add_(bias[:, None])
        ctx.steps, ctx.fresh = steps, [True]
        ctx.save_for_backward(x, weight, planes if any(ctx.needs_input_grad[:2]) else None)
        rows, columns = steps.rows, steps.columns
        return y[: rows.out, : columns.out].permute(3, 2, 0, 1).data  # no view: a ReLU may change it in place

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        (grad,) = grad_outputs
        (x, weight, planes), steps = ctx.saved_tensors, ctx.steps
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = None
        if torch.is_grad_enabled() or not kernels.fit(grad):  # differentiated again, or vectorized: by plain operations
            stride, padding = steps.rows.stride, steps.rows.padding
            if want_x:
                grad_x = conv2d_input(x.shape, weight, grad, stride, padding)
            if want_weight:
                grad_weight = conv2d_weight(x, weight.shape, grad, stride, padding)
        elif want_x or want_weight:
            try:
                ctx.fresh.pop()  # the planes are about to be overwritten
            except IndexError:
                planes = _pixel_planes(x, steps)
            program = (steps.backward if want_x else steps.backward_taps) if want_weight else steps.backward_pixels
            planes = planes.contiguous()  # as they were saved, also if they were kept elsewhere
            buffers = {"planes": planes, "grad": _whole(grad, steps), **steps.room(x, back=True)}
            taps = grad_taps = tap_planes(weight, steps) if want_x else large_empty(*steps.tap_shape)
            if want_x and want_weight and len(steps.blocks) > 1:  # the next tiles will need the planes of the taps
                grad_taps = large_empty(*steps.tap_shape)
            program(tap_planes=taps, grad_tap_planes=grad_taps, **buffers)
            grad_weight = _taps_back(grad_taps, weight, steps) if want_weight else None
            grad_x = _pixels_back(planes, steps) if want_x else None
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if want_bias else None, None, None


def _whole(grad: Float[Tensor, "b o y x"], steps: Steps) -> Float[Tensor, "yt xt o b"]:
    """Pixel first, and with zeros where tiles stand over."""
    g = grad.permute(2, 3, 1, 0)
    height, width = steps.result_shape[:2]
    if g.shape[:2] == (height, width):
        return g.contiguous()
    # `F.pad` keeps the order in which numbers lie.
    return F.pad(g, (0, 0, 0, 0, 0, width - g.shape[1], 0, height - g.shape[0])).contiguous()


def _taps_back(taps: Tensor, weight: Tensor, steps: Steps) -> Float[Tensor, "o c kh kw"]:
    out, channels, height, width = weight.shape
    grad_kernel = large_empty(height, width, channels, out)
    steps.from_tap_planes(tap_planes=taps, grad_kernel=grad_kernel)
    return grad_kernel.permute(3, 2, 0, 1)


def _pixels_back(planes: Tensor, steps: Steps) -> Float[Tensor, "b c y x"]:
    shape = steps.height, steps.width, steps.channels, steps.batch
    if steps.in_place:
        steps.from_planes(planes=planes)
        padded = planes.view(shape)
    else:
        padded = large_empty(*shape).zero_()
        steps.from_planes(planes=planes, pixels=padded)
    return _inside(padded, steps).permute(3, 2, 0, 1)


def spectral_conv2d(
    x: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "out channels kh kw"],
    bias: Float[Tensor, " out"] | None = None,
    stride: int = 1,
    padding: int = 0,
    tile: int | None = None,
    kept: Tensor | None = None,
) -> Float[Tensor, "batch out y x"]:
    """``F.conv2d`` through small spectra, for float32 on a processor that the kernels run on.

    Fastest where ``x`` lies pixel first and batch last in memory, as the result does, and ``weight`` pixel first:
    ``x.permute(2, 3, 1, 0)`` and ``weight.permute(2, 3, 1, 0)`` contiguous. ``tile`` outputs are computed together;
    without it, `best_tile`. ``kept`` are the `tap_planes` of the weight for the same sizes, if they are there already.
    """
    if tile is None:
        tile, _ = best_tile(x.shape, weight.shape, stride, padding)
    return _SpectralConvolution.apply(x, weight, bias, steps_of(x.shape, weight.shape, stride, padding, tile), kept)


def steps_of(x: torch.Size, weight: torch.Size, stride: int, padding: int, tile: int) -> Steps:
    return steps_for(*axes(x, weight, stride, padding, tile), x[0], x[1], weight[0])

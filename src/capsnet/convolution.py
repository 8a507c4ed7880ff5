"""``conv2d``: what ``F.conv2d`` computes, by whichever exact way is measured to be the quickest for its sizes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from capsnet.spectral import Axis, axes, best_tile, product, spectra, spectral_conv2d
from capsnet.tracing import is_traced

Image = Float[Tensor, "batch channels height width"]
Kernel = Float[Tensor, "out channels kh kw"]
Bias = Float[Tensor, " out"]
Result = Float[Tensor, "batch out rows columns"]


def conv2d(x: Image, weight: Kernel, bias: Bias | None = None, stride: int = 1, padding: int = 0) -> Result:
    """``F.conv2d``. Where a quicker way is taken, the result lies pixel first in memory (y, x, batch, out)."""
    if _plain(x, weight, bias, stride, padding):
        if spectral_wins(x.shape, weight.shape, stride, padding):
            return spectral_conv2d(x, weight, bias, stride, padding)
        if patches_win(x, weight):
            return patch_conv2d(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> bool:
    """Whether these are ordinary float32 tensors on the CPU, which nobody traces, transforms or casts."""
    tensors = [t for t in (x, weight, bias) if t is not None]
    return (
        not is_traced()
        and not torch.is_autocast_enabled("cpu")
        and isinstance(stride, int)
        and isinstance(padding, int)
        and x.dim() == 4
        and x.numel() > 0
        and all(type(t) in (Tensor, nn.Parameter) for t in tensors)
        and all(t.device.type == "cpu" and t.dtype == torch.float32 and t.layout == torch.strided for t in tensors)
    )


def spectral_wins(x: torch.Size, weight: torch.Size, stride: int, padding: int) -> bool:
    """Whether the spectral way is quicker than the direct one.

    Measured on an AVX-512 core: multiplications of the spectral way's `cost` run at 80 G/s, those of ``F.conv2d`` at 55
    with stride 2 and at 118 with stride 1; hence the factor. Below half a billion of them, a call for each frequency
    (some 5 us) is felt.
    """
    images, (out, channels, *kernel) = x[0], weight
    rows, columns = axes(x, weight, stride, padding, 3)
    if images == 0 or min(rows.out, columns.out) < 1 or kernel[0] * kernel[1] == 1:
        return False
    direct = images * rows.out * columns.out * out * channels * kernel[0] * kernel[1]
    return direct > 5e8 and 1.5 * best_tile(x, weight, stride, padding)[1] < direct


# ---------------------------------------------------------------------------------------------- few input channels


def patches_win(x: Tensor, weight: Tensor) -> bool:
    """Measured for 1 -> 256 channels, 9x9, batch 128: training is 1.7 times as fast as ``F.conv2d``. The gradient for
    ``x`` takes the ordinary way, so that this is for images only."""
    return weight.shape[1] <= 2 and weight[0].numel() >= 16 and not x.requires_grad


def _padded(x: Image, padding: int) -> Float[Tensor, "y x batch channels"]:
    return F.pad(x, (padding,) * 4).permute(2, 3, 0, 1)


class _PatchConvolution(torch.autograd.Function):
    """One product with all patches, which the backward pass makes again, taps first, rather than keep."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        kh, kw = weight.shape[2:]
        patches = _padded(x, padding).unfold(0, kh, stride).unfold(1, kw, stride)  # (y, x, B, C, kh, kw)
        y = product(patches.reshape(-1, weight[0].numel()), weight.flatten(1), bias)
        return y.view(*patches.shape[:3], -1).permute(2, 3, 0, 1).data  # no view: a ReLU may change it in place

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        (grad,) = grad_outputs
        (x, weight), stride, padding = ctx.saved_tensors, ctx.stride, ctx.padding
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d_input(x.shape, weight, grad, stride, padding)
        if torch.is_grad_enabled():
            grad_weight = conv2d_weight(x, weight.shape, grad, stride, padding)
            grad_bias = grad.sum((0, 2, 3))
        elif any(ctx.needs_input_grad[1:3]):
            grad_weight, grad_bias = _patch_grad(x, weight, grad, stride, padding)
        return grad_x, grad_weight, grad_bias if ctx.needs_input_grad[2] else None, None, None


def _patch_grad(x: Image, weight: Kernel, grad: Result, stride: int, padding: int) -> tuple[Kernel, Bias]:
    """A constant one beside the taps makes the bias's gradient come out of the weight's product."""
    (height, width), (out, channels, kh, kw) = grad.shape[2:], weight.shape
    x = _padded(x, padding).permute(3, 0, 1, 2).contiguous()
    c, h, w, b = x.stride()
    size = channels, kh, kw, height, width, x.shape[3]
    taps = x.as_strided(size, (c, h, w, h * stride, w * stride, b))
    patches = x.new_ones(channels * kh * kw + 1, height * width * x.shape[3])
    patches[:-1].view(size).copy_(taps)
    g = grad.permute(2, 3, 0, 1).reshape(-1, out)
    both = product(patches, g.T)
    return both[:-1].T.reshape(weight.shape), both[-1]


def patch_conv2d(x: Image, weight: Kernel, bias: Bias | None = None, stride: int = 1, padding: int = 0) -> Result:
    """``F.conv2d`` as one matrix product, its result pixel first in memory. For few input channels."""
    return _PatchConvolution.apply(x, weight, bias, stride, padding)


# ------------------------------------------------------------------------------------------------------------- layer


class Kept:
    """The spectra of a weight, for as long as neither the weight nor the sizes change. Copies and pickles as empty."""

    def __init__(self) -> None:
        self.key: tuple | None = None
        self.spectra: list[Tensor] | None = None

    def __reduce__(self):
        return Kept, ()

    def get(self, weight: Tensor, rows: Axis, columns: Axis) -> list[Tensor] | None:
        if weight.is_inference():  # has no version, and so might change unseen
            return None
        key = weight.data_ptr(), weight._version, weight.stride(), rows, columns
        if key != self.key:
            self.key, self.spectra = None, None  # first give the old ones back
            self.key, self.spectra = key, spectra(weight, rows, columns)
        return self.spectra

    def drop(self) -> None:
        self.key, self.spectra = None, None


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that takes the quickest way, and in evaluation keeps the transformed weight.

    The weight's values, names and shapes are those of ``nn.Conv2d``; only its strides are pixel first.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.weight = nn.Parameter(self.weight.detach().permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1))
        self._kept = Kept()

    def train(self, mode: bool = True):
        self._kept.drop()  # before the weight changes in ways that leave no trace, such as through `.data`
        return super().train(mode)

    def forward(self, input: Image) -> Result:  # noqa: A002 - the name in nn.Conv2d
        x, stride, padding = input, self.stride[0], int(self.padding[0])
        if self.training or torch.is_grad_enabled() or not _plain(x, self.weight, self.bias, stride, padding):
            return conv2d(x, self.weight, self.bias, stride, padding)
        if not spectral_wins(x.shape, self.weight.shape, stride, padding):
            return conv2d(x, self.weight, self.bias, stride, padding)
        tile, _ = best_tile(x.shape, self.weight.shape, stride, padding)
        kept = self._kept.get(self.weight, *axes(x.shape, self.weight.shape, stride, padding, tile))
        return spectral_conv2d(x, self.weight, self.bias, stride, padding, tile, kept)

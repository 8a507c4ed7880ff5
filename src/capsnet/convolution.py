"""``conv2d``: what ``F.conv2d`` computes, by whichever exact way is measured to be the quickest for its sizes."""

from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from capsnet import kernels
from capsnet.allocator import large_empty
from capsnet.kernels.products import Place, Products, Program, offsets, runs
from capsnet.spectral import best_tile, spectral_conv2d, steps_of, tap_planes

Image = Float[Tensor, "batch channels height width"]
Kernel = Float[Tensor, "out channels kh kw"]
Bias = Float[Tensor, " out"]
Result = Float[Tensor, "batch out rows columns"]


def conv2d(
    x: Image,
    weight: Kernel,
    bias: Bias | None = None,
    stride: int = 1,
    padding: int = 0,
    relu: bool = False,
    kept: "Kept | None" = None,
) -> Result:
    """``F.conv2d``, and a ReLU in the same pass if there is to be one.

    A quicker way leaves the result pixel first and batch last in memory: (y, x, out, batch). Where a number is infinite
    or none, the spectral way makes all results of its tile NaN. What is made of the weight on the way is kept in
    ``kept``, if given, for the next call.
    """
    plain = _plain(x, weight, bias, stride, padding)
    if plain:
        if spectral_wins(x.shape, weight.shape, stride, padding):
            tile, _ = best_tile(x.shape, weight.shape, stride, padding)
            steps = steps_of(x.shape, weight.shape, stride, padding, tile)
            planes = kept.get(weight, (steps.tap_shape, tile), lambda: tap_planes(weight, steps)) if kept else None
            y = spectral_conv2d(x, weight, bias, stride, padding, tile, planes)
            return y.relu_() if relu else y
        if direct_wins(x, weight):
            return direct_conv2d(x, weight, bias, stride, padding, relu)
    if x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        if columns_win(x, weight, padding):
            y = columns_conv2d(x, weight, bias, stride, torch.get_autocast_dtype("cuda"))
            return y.relu() if relu else y
        # Half as much to lay out anew.
        x, weight = (t.to(torch.get_autocast_dtype("cuda")) for t in (x, weight))
    if plain or x.device.type == "cuda":  # another layout would be converted, and back again
        ordered = kept.get(weight, "ordered", lambda: _ordered(weight, weight)) if kept and plain else None
        x, weight = _ordered(x, weight), _ordered(weight, weight) if ordered is None else ordered
    y = F.conv2d(x, weight, bias, stride, padding)
    return y.relu() if relu else y


def _ordered(x: Tensor, weight: Tensor) -> Tensor:
    """Laid out as ``F.conv2d`` with this weight is quickest: vectors and tensor cores want channels last.

    But on a CPU oneDNN then adds up the terms one after the other, and where there are thousands a digit is lost.
    """
    if x.device.type != "cuda" and weight[0].numel() > 1024:
        return x.contiguous()
    if x.shape[1] == 1:  # any layout would pass for it, and which one PyTorch then takes would hang on the strides
        return x.clone(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> bool:
    """Whether the kernels can do it. What does not fit together is left to ``F.conv2d``, which says so."""
    return (
        kernels.fit(*(t for t in (x, weight, bias) if t is not None))
        and not torch.is_autocast_enabled("cpu")
        and isinstance(stride, int)
        and isinstance(padding, int)
        and stride > 0
        and padding >= 0
        and x.dim() == weight.dim() == 4
        and x.numel() > 0
        and x.shape[1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and all(0 < kernel <= size + 2 * padding for kernel, size in zip(weight.shape[2:], x.shape[2:], strict=True))
    )


def spectral_wins(x: torch.Size, weight: torch.Size, stride: int, padding: int) -> bool:
    """Whether the spectral way is quicker than ``F.conv2d``; `scripts/time_convolutions.py` tries it out."""
    images, (out, channels, *kernel) = x[0], weight
    height, width = ((size + 2 * padding - k) // stride + 1 for size, k in zip(x[2:], kernel, strict=True))
    if min(height, width) < 1 or min(kernel) == 1:
        return False
    direct = images * height * width * out * channels * kernel[0] * kernel[1]
    return direct > 5e8 and best_tile(x, weight, stride, padding)[1] < 0.75 * min(stride, 2) * direct


# ---------------------------------------------------------------------------------------------- few input channels


def columns_win(x: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether `columns_conv2d` is quicker than cuDNN's convolution, which leaves most of a matrix unit idle.

    For MNIST's Conv1 at batch 128, cuDNN's took 0.41 of 2.2 milliseconds of a training step (H200, 2026-11-27).
    """
    return weight[0].numel() <= 256 and weight.shape[1] <= 3 and padding == 0 and not x.requires_grad


def columns_conv2d(x: Image, weight: Kernel, bias: Bias | None, stride: int, dtype: torch.dtype) -> Result:
    """``F.conv2d`` as one product of matrices: a row for each pixel of the result, a column for each tap.

    One more column, of ones, adds the bias; zeros fill up to a multiple of eight, as tensor cores want. The result is
    channels last.
    """
    out, _, kh, kw = weight.shape
    windows = x.unfold(2, kh, stride).unfold(3, kw, stride).permute(0, 2, 3, 1, 4, 5)  # (B, rows, columns, C, kh, kw)
    batch, rows, width = windows.shape[:3]
    taps = weight[0].numel()
    columns = x.new_zeros(batch, rows, width, 8 * (taps // 8 + 1), dtype=dtype)
    columns[..., :taps].unflatten(3, weight.shape[1:]).copy_(windows)
    columns[..., taps] = 1
    terms = [weight.flatten(1), (weight.new_zeros(out) if bias is None else bias)[:, None]]
    matrix = torch.nn.functional.pad(torch.cat(terms, dim=1), (0, columns.shape[3] - taps - 1)).to(dtype)
    return (columns.flatten(0, 2) @ matrix.T).unflatten(0, (batch, rows, width)).permute(0, 3, 1, 2)


def direct_wins(x: Tensor, weight: Tensor) -> bool:
    """Whether `direct_conv2d` is quicker than ``F.conv2d``; it has no way of its own to the gradient for ``x``."""
    return weight.shape[1] <= 3 and weight[0].numel() >= 16 and len(x) >= 16 and not x.requires_grad


@lru_cache(maxsize=32)
def _direct_forward(x: torch.Size, weight: torch.Size, stride: int, bias: bool, relu: bool) -> Program:
    """From ``pixels``, which are padded, ``weight`` and ``bias`` to ``y``."""
    (batch, channels, height, width), (out, _, kh, kw) = x, weight
    rows, columns = (height - kh) // stride + 1, (width - kw) // stride + 1
    pixel, row = channels * batch, width * channels * batch
    taps = offsets((channels, batch), (kh, row), (kw, pixel))
    count, program = len(taps), Program()
    starts = offsets((rows, stride * row), (columns, stride * pixel)), offsets((rows * columns, out * batch))
    with torch.inference_mode(False):  # this outlives the caller's mode
        products = Products(
            ([0] * (rows * columns), *starts),
            (count, offsets((out, batch))),
            (1, taps),
            runs(batch, longest=512),
        )
    places = (Place(name) for name in ("weight", "pixels", "y"))
    program.add(products, *places, bias="bias" if bias else None, relu=relu, large=True)
    return program


@lru_cache(maxsize=32)
def _direct_backward(grad: torch.Size, x: torch.Size, weight: torch.Size, stride: int, relu: bool) -> Program:
    """From ``grad``, what ``hidden_by`` lets through of it, and ``pixels`` to gradients of weight and bias by row."""
    (rows, columns, out, batch), (_, channels, _, width), (_, _, kh, kw) = grad, x, weight
    pixel, row = channels * batch, width * channels * batch
    taps = offsets((channels, batch), (kh, row), (kw, pixel))
    count, program = len(taps), Program()
    with torch.inference_mode(False):
        products = Products(
            (offsets((rows, columns * out * batch)), offsets((rows, stride * row)), offsets((rows, out * count))),
            (batch, offsets((out, count))),
            (offsets((columns, out * batch), (batch, 1)), offsets((columns, stride * pixel), (batch, 1))),
            runs(count, longest=count),  # in one piece, as `columns` says where each of them lies
            columns=taps,
        )
    places = (Place(name) for name in ("grad", "pixels", "weights"))
    program.add(products, *places, hidden_by="hidden_by" if relu else None, sums="biases")
    return program


class _DirectConvolution(torch.autograd.Function):
    """Every tap meets its pixels where they lie."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, relu: bool) -> Tensor:
        ctx.stride, ctx.padding, ctx.relu = stride, padding, relu
        pixels = _padded(x, padding)
        height, width, _, batch = pixels.shape
        rows, columns = ((size - k) // stride + 1 for size, k in zip((height, width), weight.shape[2:], strict=True))
        y = large_empty(rows, columns, len(weight), batch)
        program = _direct_forward(pixels.permute(3, 2, 0, 1).shape, weight.shape, stride, bias is not None, relu)
        buffers = {"weight": weight.detach().contiguous(), "pixels": pixels, "y": y}
        program(**buffers if bias is None else {**buffers, "bias": bias.detach().contiguous()})
        y = y.permute(3, 2, 0, 1).data  # no view of anything, so that it may be changed in place
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        (grad,) = grad_outputs
        (x, weight, y), stride, padding = ctx.saved_tensors, ctx.stride, ctx.padding
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        if not want_x and not torch.is_grad_enabled() and kernels.fit(grad):
            grad_weight, grad_bias = _weight_gradient(grad, x, weight, y, stride, padding)
            return None, grad_weight if want_weight else None, grad_bias if want_bias else None, None, None, None
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        grad_x = conv2d_input(x.shape, weight, grad, stride, padding) if want_x else None
        grad_weight = conv2d_weight(x, weight.shape, grad, stride, padding) if want_weight else None
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if want_bias else None, None, None, None


def _weight_gradient(
    grad: Result, x: Image, weight: Kernel, y: Result | None, stride: int, padding: int
) -> tuple[Kernel, Bias]:
    """Of weight and bias; where ``y`` is zero or below, a ReLU has hidden it.

    Each row of results is summed alone, and what the ReLU lets through of it is never in memory as a whole.
    """
    pixels, g = _padded(x, padding), grad.permute(2, 3, 1, 0).contiguous()
    program = _direct_backward(g.shape, pixels.permute(3, 2, 0, 1).shape, weight.shape, stride, y is not None)
    weights, biases = g.new_empty(len(g), *weight.shape), g.new_zeros(len(g), len(weight))
    seen = {} if y is None else {"hidden_by": y.permute(2, 3, 1, 0).contiguous()}
    program(grad=g, pixels=pixels, weights=weights, biases=biases, **seen)
    return weights.sum(0), biases.sum(0)


def _padded(x: Image, padding: int) -> Float[Tensor, "y x channels batch"]:
    return F.pad(x.detach(), (padding,) * 4).permute(2, 3, 1, 0).contiguous()


def direct_conv2d(
    x: Image, weight: Kernel, bias: Bias | None = None, stride: int = 1, padding: int = 0, relu: bool = False
) -> Result:
    """``F.conv2d`` (and a ReLU), its result pixel first and batch last in memory. For few input channels."""
    return _DirectConvolution.apply(x, weight, bias, stride, padding, relu)


# ------------------------------------------------------------------------------------------------------------- layer


class Kept:
    """What was made of a weight, for as long as neither it nor what is wanted changes. Copies and pickles as empty.

    A change is seen by the version of the tensor and where it lies. What leaves neither trace, such as writing to its
    ``.data`` in evaluation, wants a `drop`.
    """

    def __init__(self) -> None:
        self.drop()

    def __reduce__(self):
        return Kept, ()

    def get(self, weight: Tensor, wanted: Hashable, make: Callable[[], Tensor]) -> Tensor | None:
        """What `make` gives, now or before; None where changes of the weight could not be seen."""
        if weight.is_inference() or weight.is_shared():  # has no version, or others may write to it
            return None
        key = weight.data_ptr(), weight._version, weight.stride(), wanted
        kept = self.kept  # one look: another thread may put something else there
        if kept is None or kept[0] != key:
            kept = self.kept = None  # first give the old ones back
            # Held on to, the memory of the weight cannot become another's with the same address.
            kept = self.kept = key, make(), weight.detach()
        return kept[1]

    def drop(self) -> None:
        self.kept: tuple[tuple, Tensor, Tensor] | None = None


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` and perhaps a ReLU, by the quickest way; in evaluation it keeps the weight as that way wants it.

    The weight's values, names and shapes are those of ``nn.Conv2d``; only its strides are pixel first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        relu: bool = False,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.relu = relu
        self.weight = nn.Parameter(self.weight.detach().permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1))
        self._kept = Kept()

    def train(self, mode: bool = True):
        self._kept.drop()  # before the weight changes in ways that leave no trace, such as through `.data`
        return super().train(mode)

    def forward(self, input: Image) -> Result:  # noqa: A002 - the name in nn.Conv2d
        x, stride, padding = input, self.stride[0], int(self.padding[0])
        changing = self.training or torch.is_grad_enabled()
        if changing:
            self._kept.drop()  # the weight is about to change, perhaps by an optimizer that leaves no trace
        kept = None if changing else self._kept
        return conv2d(x, self.weight, self.bias, stride, padding, self.relu, kept)

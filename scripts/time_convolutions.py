"""Time both ways of a convolution, forward and back, and tell which one `capsnet.convolution` takes by itself.

.venv/bin/python scripts/time_convolutions.py
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from capsnet import kernels, tune_allocator
from capsnet.convolution import spectral_wins
from capsnet.spectral import spectral_conv2d

ROUNDS = 5
LAYERS = {  # (images, channels, height, width), (out, channels, kernel, kernel), stride, padding
    "CapsNet, MNIST": ((128, 256, 20, 20), (256, 256, 9, 9), 2, 0),
    "CapsNet, MNIST, 8 images": ((8, 256, 20, 20), (256, 256, 9, 9), 2, 0),
    "CapsNet, MultiMNIST": ((128, 256, 28, 28), (256, 256, 9, 9), 2, 0),
    "CapsNet, affNIST": ((128, 256, 32, 32), (256, 256, 9, 9), 2, 0),
    "a quarter of CapsNet, 2 images": ((2, 64, 28, 28), (64, 64, 9, 9), 2, 0),
    "CNN, MNIST": ((128, 256, 28, 28), (256, 256, 5, 5), 1, 2),
    "CNN, MNIST, 16 images": ((16, 256, 28, 28), (256, 256, 5, 5), 1, 2),
    "CNN, MultiMNIST": ((128, 512, 18, 18), (256, 512, 5, 5), 1, 2),
    "CNN, affNIST": ((128, 512, 16, 16), (256, 512, 5, 5), 1, 0),
    "small CNN, second": ((128, 32, 14, 14), (64, 32, 3, 3), 1, 1),
    "small CNN, third": ((128, 64, 7, 7), (128, 64, 3, 3), 1, 1),
    "wide 3×3": ((64, 256, 14, 14), (256, 256, 3, 3), 1, 1),
    "large images": ((4, 32, 128, 128), (64, 32, 5, 5), 1, 2),
    "a stem": ((32, 32, 112, 112), (64, 32, 3, 3), 2, 1),
}


def leaf(*shape: int) -> Tensor:
    """Laid out as the layers of the package lay out what they compute."""
    b, c, h, w = shape
    return (0.05 * torch.randn(h, w, c, b)).permute(3, 2, 0, 1).requires_grad_()


def seconds(function: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    y = function()
    y.backward(y)
    return time.perf_counter() - start


def main() -> None:
    if not kernels.available():
        sys.exit("time_convolutions: the kernels are not compiled here, so there is only one way")
    tune_allocator()
    print("| layer | F.conv2d, ms | spectral, ms | ratio | taken |", "|---" * 5 + "|", sep="\n")
    for name, (x_shape, w_shape, stride, padding) in LAYERS.items():
        x, w = leaf(*x_shape), leaf(*w_shape)
        ways = [partial(way, x, w, None, stride, padding) for way in (F.conv2d, spectral_conv2d)]
        rounds = [[seconds(way) for way in ways] for _ in range(ROUNDS + 1)][1:]  # the first one warms up
        direct, spectral = (1000 * median(times) for times in zip(*rounds, strict=True))
        taken = "spectral" if spectral_wins(x.shape, w.shape, stride, padding) else "F.conv2d"
        wrong = "" if (taken == "spectral") == (spectral < direct) else " (slower)"
        print(f"| {name} | {direct:.1f} | {spectral:.1f} | {direct / spectral:.2f} | {taken}{wrong} |", flush=True)


if __name__ == "__main__":
    main()

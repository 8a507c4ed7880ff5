"""``max_pool2d``: 2×2 max-pooling that leaves the layout of ``capsnet.convolution`` as it is."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from capsnet import kernels


def max_pool2d(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height//2 width//2"]:
    """``F.max_pool2d(x, 2)``; what lies pixel first and batch last in memory stays so.

    PyTorch would copy it, and what comes back through it would lie otherwise than what went in: in a CNN whose
    convolutions are fast, these copies take most of the time.
    """
    planes = x.permute(2, 3, 1, 0)
    if not kernels.fit(x) or x.numel() == 0 or x.shape[2] < 2 or not planes.is_contiguous():
        return F.max_pool2d(x, 2)
    height, width, channels, batch = planes.shape
    rows = height // 2
    # Two rows at a time are an image with its channels last, which PyTorch pools where it lies.
    strips = planes[: 2 * rows].view(rows, 2, width, channels * batch).permute(0, 3, 1, 2)
    pooled = F.max_pool2d(strips, 2).permute(0, 2, 3, 1)
    return pooled.reshape(rows, width // 2, channels, batch).permute(3, 2, 0, 1)


class MaxPool2d(nn.Module):
    """2×2 max-pooling, see `max_pool2d`."""

    def forward(self, input: Float[Tensor, "batch channels height width"]) -> Tensor:  # noqa: A002 - as in PyTorch
        return max_pool2d(input)

"""What stands before the capsules where images are large: it makes them about as small as the paper's."""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from capsnet.checks import shown
from capsnet.convolution import Conv2d
from capsnet.errors import InputError

LARGEST = 40
"""Pixels a side of the paper's largest images, those of affNIST; up to there capsules see the pixels themselves."""
SMALLEST = 21
"""Pixels a side that leave a grid of 3 × 3 behind the paper's two 9×9 kernels; a stem goes no further by itself."""
DEEPEST = 8
GROUP = 8


class Stem(nn.Sequential):
    """3×3 convolutions of stride 2, each with a normalisation and ReLU; each halves both sides, rounded up.

    `(B, in_channels, H, W)` becomes `(B, out_channels, H / 2ᵈ, W / 2ᵈ)`. There are `out_channels` at the end and half
    as many one step before, and so on, down to 8: memory then grows with the side of an image, not with its area. Such
    stems train better than one large step (Xiao et al. 2021, *Early convolutions help transformers see better*).

    Normalised are groups of channels of each image by itself (GroupNorm, Wu and He 2018), not batches (BatchNorm):
    large images come in small batches, whose statistics are noise; an image's capsules must not depend on what else is
    in its batch; and the network is then the same in training, in evaluation, under an average of its weights and on
    several devices. It is no slower either.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int) -> None:
        grown = [GROUP * max(1, round(out_channels / 2**left / GROUP)) for left in reversed(range(depth))]
        stages: list[nn.Module] = []
        for before, after in pairwise([in_channels, *grown]):
            conv = Conv2d(before, after, 3, stride=2, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            stages += [conv, nn.GroupNorm(after // GROUP, after), nn.ReLU(inplace=True)]
        super().__init__(*stages)
        self.channels = [in_channels, *grown][-1]


def stem_depth(height: int, width: int) -> int:
    """How often images of this size are halved, by default: until they have no more pixels than the paper's largest."""
    depth = 0
    while height * width > LARGEST**2 and min(height, width) > 2 * (SMALLEST - 1):
        height, width, depth = halved(height), halved(width), depth + 1
    return depth


def halved(side: int) -> int:
    return (side + 1) // 2


def build_stem(
    stem: int | nn.Module | str | None, in_shape: tuple[int, int, int], out_channels: int
) -> tuple[nn.Module, int | str, tuple[int, int, int]]:
    """The stem of a model, what its config says of it, and the (channels, height, width) of its features.

    `stem` is how often images are halved, None for as often as their size asks for, or a module; of that a config keeps
    the name only, as `str`, from which it cannot be made again. Raises `InputError` for that, and if it does not fit.
    """
    if isinstance(stem, nn.Module):
        return stem, f"{type(stem).__module__}.{type(stem).__qualname__}", features_of(stem, in_shape)
    if isinstance(stem, str):
        raise InputError(
            f"this model has a stem of its own, {stem[:80]}; give such a module: capsnet.load(RUN, stem=MODULE)"
        )
    channels, height, width = in_shape
    depth = stem_depth(height, width) if stem is None else stem
    if isinstance(depth, bool) or not isinstance(depth, int) or not 0 <= depth <= DEEPEST:
        raise InputError(f"a stem halves images 0 to {DEEPEST} times, not {shown(depth)}")
    for _ in range(depth):
        height, width = halved(height), halved(width)
    built = Stem(channels, out_channels, depth)
    return built, depth, (built.channels, height, width)


def features_of(stem: nn.Module, in_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(channels, height, width) of what a module makes of an image: it is tried on one.

    Raises `InputError` if it cannot take such an image, or does not give features `(B, C, H, W)`.
    """
    tried = copy.deepcopy(stem).eval()  # a copy, so that the module's modes and statistics stay as they are
    device = next((tensor.device for tensor in tried.parameters()), torch.device("cpu"))
    name = type(stem).__name__
    try:
        with torch.device(device), torch.no_grad():
            features = tried(torch.zeros(1, *in_shape))
    except Exception as error:  # it is not ours, and may raise anything
        raise InputError(
            f"the stem, a {name}, cannot take images of {in_shape}: {str(error).strip().split(chr(10))[0]}"
        ) from None
    if not isinstance(features, Tensor) or features.ndim != 4 or len(features) != 1:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"a stem turns images (B, C, H, W) into features (B, C, H, W), but this {name} gives {got}")
    channels, height, width = features.shape[1:]
    return channels, height, width

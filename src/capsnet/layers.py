"""The building blocks of a capsule network: PrimaryCapsules, DenseCapsules, Decoder."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from capsnet import functional, routing
from capsnet.convolution import Conv2d


class PrimaryCapsules(nn.Module):
    """The first capsules: a convolution whose channels are cut into vectors and squashed (paper, section 4).

    Input `(B, in_channels, H, W)`; output `(B, I, dim)` with `I = H' · W' · types`, where `H' × W'` is the grid that
    the convolution leaves. Capsules are ordered by grid position (row, column), then by type.
    """

    def __init__(self, in_channels: int, types: int, dim: int, kernel_size: int = 9, stride: int = 2) -> None:
        super().__init__()
        self.types = types
        self.dim = dim
        self.conv = Conv2d(in_channels, types * dim, kernel_size, stride)
        # Seven times the usual scale, 1/√fan-in. Adam moves a weight by about its rate, however small the weight is:
        # at the usual scale the first steps change the sum of 20,736 inputs by more than its own size and training
        # limps, while squash makes larger sums no longer than one. Measured by scripts/initial_scales.py.
        nn.init.normal_(self.conv.weight, std=7 * (in_channels * kernel_size**2) ** -0.5)
        nn.init.zeros_(_bias(self.conv))

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch capsules dim"]:
        s = self.conv(features).permute(0, 2, 3, 1).reshape(len(features), -1, self.dim)
        return functional.squash(s)


class DenseCapsules(nn.Module):
    """Capsules fully connected to those below by one matrix for each pair, and routing by agreement (section 2).

    Input `(B, in_capsules, in_dim)`; output `(B, out_capsules, out_dim)`.
    `weight[j, i]` is the matrix that turns capsule `i`'s output into its vote for capsule `j`.
    """

    def __init__(
        self,
        in_capsules: int,
        in_dim: int,
        out_capsules: int,
        out_dim: int,
        iterations: int = 3,
        *,
        leaky: bool = False,
        detach_early: bool = False,
    ) -> None:
        super().__init__()
        if min(in_capsules, in_dim, out_capsules, out_dim, iterations) < 1:
            raise ValueError("capsules, dimensions and iterations must be at least 1")
        self.iterations = iterations
        self.leaky = leaky
        self.detach_early = detach_early
        self.weight = nn.Parameter(torch.empty(out_capsules, in_capsules, in_dim, out_dim))
        nn.init.normal_(self.weight, std=_weight_std(in_capsules, out_capsules, out_dim))

    def forward(self, u: Float[Tensor, "batch in_capsules in_dim"]) -> Float[Tensor, "batch out_capsules out_dim"]:
        return routing.route(u, self.weight, self.iterations, leaky=self.leaky, detach_early=self.detach_early)

    def couplings(
        self, u: Float[Tensor, "batch in_capsules in_dim"]
    ) -> Float[Tensor, "iterations batch in_capsules out_capsules"]:
        """The coupling coefficients `c_ij` that each routing iteration uses, for looking at; without gradients."""
        return routing.couplings(u, self.weight, self.iterations, leaky=self.leaky)


class Decoder(nn.Module):
    """Reconstructs an image from the capsule of one class; the others are masked (paper, section 4.1)."""

    def __init__(
        self, num_classes: int, capsule_dim: int, out_shape: tuple[int, int, int], hidden: tuple[int, ...] = (512, 1024)
    ) -> None:
        super().__init__()
        self.out_shape = out_shape
        widths = [num_classes * capsule_dim, *hidden]
        stages: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            stages += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.stages = nn.Sequential(*stages, nn.Linear(widths[-1], math.prod(out_shape)), nn.Sigmoid())

    def forward(
        self, capsules: Float[Tensor, "batch classes dim"], classes: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        keep = nn.functional.one_hot(classes, capsules.shape[1]).to(capsules.dtype)
        return self.stages((capsules * keep[..., None]).flatten(1)).unflatten(1, self.out_shape)


def _weight_std(in_capsules: int, out_capsules: int, out_dim: int) -> float:
    """A scale at which the first outputs are neither silent nor saturated, whatever the sizes.

    In the first iteration every coupling is 1/J, so `s_j` sums I votes of weight 1/J. With votes of independent
    sign, `‖s_j‖ ≈ √(I·D) / J · ‖u‖ · std`. The value below asks for `‖s_j‖ ≈ ½` at `‖u‖ ≈ 1`, near where squash is
    steepest. Much below, squash is quadratic and all but silences what little there is to learn from; at 1 and above,
    routing drives all capsules to full length, and the first steps are spent on undoing that.
    """
    return out_capsules / (2 * math.sqrt(in_capsules * out_dim))


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias

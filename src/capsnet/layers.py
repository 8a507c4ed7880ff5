"""The building blocks of a capsule network: PrimaryCapsules, DenseCapsules, ConvCapsules, Decoder."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from capsnet import functional, routing
from capsnet.batch_norm import BatchNorm
from capsnet.convolution import Conv2d

DENSE_PIXELS = 64 * 64
"""Larger images are decoded by convolutions."""
ROUTED_LENGTH = 0.35
"""How long routed capsules are when training starts, about: the `input_length` of a layer above them."""


class PrimaryCapsules(nn.Module):
    """The first capsules: a convolution whose channels are cut into vectors and squashed (paper, section 4).

    Input `(B, in_channels, H, W)`; output `(B, I, dim)` with `I = H' · W' · types`, where `H' × W'` is the grid that
    the convolution leaves. Capsules are ordered by grid position (row, column), then by type.

    With `batch_norm`, training normalises what is squashed, so that a capsule's length keeps something to say
    (`BatchNorm`). `fold_batch_norm` turns the layer into the paper's, which computes the same.
    """

    def __init__(
        self,
        in_channels: int,
        types: int,
        dim: int,
        kernel_size: int = 9,
        stride: int = 2,
        *,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.types = types
        self.dim = dim
        self.conv = Conv2d(in_channels, types * dim, kernel_size, stride)
        # Seven times the usual scale, 1/√fan-in. Adam moves a weight by about its rate, however small the weight is:
        # at the usual scale the first steps change the sum of 20,736 inputs by more than its own size and training
        # limps, while squash makes larger sums no longer than one. Measured by scripts/initial_scales.py.
        nn.init.normal_(self.conv.weight, std=7 * (in_channels * kernel_size**2) ** -0.5)
        nn.init.zeros_(_bias(self.conv))
        self.norm = BatchNorm(types * dim, scale=dim**-0.5) if batch_norm else None
        _bias(self.conv).requires_grad_(not batch_norm)  # normalising would take away what it adds

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch capsules dim"]:
        s = self.conv(features)
        if self.norm is not None:
            s = self.norm(s)
        return functional.squash(s.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.dim)))

    @torch.no_grad()
    def fold_batch_norm(self) -> None:
        """Move the normalisation, with the statistics that it has gathered, into the convolution."""
        if self.norm is None:
            return
        scale, shift = self.norm.scale_and_shift()
        self.conv.weight.mul_(scale[:, None, None, None])
        _bias(self.conv).mul_(scale).add_(shift).requires_grad_()
        self.norm = None


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
        temperature: float = 1.0,
        input_length: float = 1.0,
    ) -> None:
        super().__init__()
        if min(in_capsules, in_dim, out_capsules, out_dim, iterations) < 1:
            raise ValueError("capsules, dimensions and iterations must be at least 1")
        self.iterations = iterations
        self.leaky = leaky
        self.detach_early = detach_early
        self.temperature = temperature
        self.weight = nn.Parameter(torch.empty(out_capsules, in_capsules, in_dim, out_dim))
        nn.init.normal_(self.weight, std=_weight_std(in_capsules, out_capsules, out_dim, input_length))

    def forward(self, u: Float[Tensor, "batch in_capsules in_dim"]) -> Float[Tensor, "batch out_capsules out_dim"]:
        return routing.route(
            u,
            self.weight,
            self.iterations,
            leaky=self.leaky,
            detach_early=self.detach_early,
            temperature=self.temperature,
        )

    def after_one_iteration(
        self, u: Float[Tensor, "batch in_capsules in_dim"]
    ) -> Float[Tensor, "batch out_capsules out_dim"]:
        """What comes out of equal couplings, before routing by agreement has begun."""
        return routing.route(u, self.weight, 1, leaky=self.leaky)

    def couplings(
        self, u: Float[Tensor, "batch in_capsules in_dim"]
    ) -> Float[Tensor, "iterations batch in_capsules out_capsules"]:
        """The coupling coefficients `c_ij` that each routing iteration uses, for looking at; without gradients."""
        return routing.couplings(u, self.weight, self.iterations, leaky=self.leaky, temperature=self.temperature)


class ConvCapsules(nn.Module):
    """Capsules that each see a neighbourhood of those below, by matrices shared over positions, and local routing.

    Input `(B, rows, columns, in_types, in_dim)`; output `(B, rows', columns', out_types, out_dim)`, with
    `side' = (side - kernel_size) // stride + 1`. `weight[j, i]` turns capsule `i` of a neighbourhood (by row, column,
    then type) into its vote for type `j` there. The output of `PrimaryCapsules` is
    `capsules.unflatten(1, (rows, columns, types))` in this shape.

    Whose competition is it? A capsule lies in several neighbourhoods, and in each it competes for itself: for every
    output position its couplings sum to one over the output types. So it is in the paper where there is one position;
    and so the authors' released convolutional layer (`conv_slim_capsule`) takes its softmax, though there a type sums
    its votes over the neighbourhood before they are routed. Here each capsule is routed alone. Had it to
    share one unit among all positions too, as in EM routing (Hinton, Sabour and Frosst 2018), capsules in the middle of
    a grid, seen by up to `kernel_size²` neighbourhoods, would count for less in each than those at its edge.

    Routing works on the inputs of all neighbourhoods side by side, `kernel_size² / stride²` times as large as the
    input, and never on the votes, which would be larger by another `out_types · out_dim / in_dim`.
    Raises `ValueError` for sizes below one.
    """

    def __init__(
        self,
        in_types: int,
        in_dim: int,
        out_types: int,
        out_dim: int,
        kernel_size: int,
        stride: int = 1,
        iterations: int = 3,
        *,
        leaky: bool = False,
        temperature: float = 1.0,
        input_length: float = 1.0,
    ) -> None:
        super().__init__()
        if min(in_types, in_dim, out_types, out_dim, kernel_size, stride, iterations) < 1:
            raise ValueError("types, dimensions, kernel size, stride and iterations must be at least 1")
        self.kernel_size = kernel_size
        self.stride = stride
        self.iterations = iterations
        self.leaky = leaky
        self.temperature = temperature
        seen = kernel_size**2 * in_types
        self.weight = nn.Parameter(torch.empty(out_types, seen, in_dim, out_dim))
        nn.init.normal_(self.weight, std=_weight_std(seen, out_types, out_dim, input_length))

    def forward(
        self, u: Float[Tensor, "batch rows columns in_types in_dim"]
    ) -> Float[Tensor, "batch new_rows new_columns out_types out_dim"]:
        size, step = self.kernel_size, self.stride
        windows = u.unfold(1, size, step).unfold(2, size, step)  # (B, rows', columns', types, dim, k, k), a view
        seen = windows.permute(0, 1, 2, 5, 6, 3, 4).flatten(3, 5)
        v = routing.route(
            seen.flatten(0, 2), self.weight, self.iterations, leaky=self.leaky, temperature=self.temperature
        )
        return v.unflatten(0, seen.shape[:3])


class Decoder(nn.Module):
    """Reconstructs an image from the capsule of one class; the others are masked (paper, section 4.1).

    Up to 64×64 pixels all layers are dense, as in the paper. Above, a dense output layer would have most of the
    network's weights, 154 million at 224×224×3; there the last but one makes a small picture of many channels, and
    convolutions draw it larger and larger. It grows by repeating pixels: transposed convolutions leave the pattern of a
    chequerboard (Odena, Dumoulin and Olah 2016, *Deconvolution and checkerboard artifacts*).
    """

    def __init__(
        self, num_classes: int, capsule_dim: int, out_shape: tuple[int, int, int], hidden: tuple[int, ...] = (512, 1024)
    ) -> None:
        super().__init__()
        self.out_shape = out_shape
        widths = [num_classes * capsule_dim, *hidden]
        stages: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            stages += [nn.Linear(width_in, width_out), nn.ReLU()]
        if math.prod(out_shape[1:]) <= DENSE_PIXELS:
            stages.append(nn.Linear(widths[-1], math.prod(out_shape)))
        else:
            stages += _growing(widths[-1], out_shape)
            _start_awake(stages, num_classes)
        self.stages = nn.Sequential(*stages, nn.Sigmoid())

    def forward(
        self, capsules: Float[Tensor, "batch classes dim"], classes: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        keep = nn.functional.one_hot(classes, capsules.shape[1]).to(capsules.dtype)
        return self.stages((capsules * keep[..., None]).flatten(1)).reshape(-1, *self.out_shape)


def _growing(features: int, out_shape: tuple[int, int, int]) -> list[nn.Module]:
    """From `features` numbers to an image: a picture of at most 8×8, doubled and convolved until it has the full size.

    Channels halve as the sides double, so that every step costs about the same, from a sixteenth of the features (or 8,
    lest a ReLU silence all of them) at most down to 16 at half the full size.
    """
    sizes = [out_shape[1:]]
    while max(sizes[0]) > 8:
        sizes.insert(0, ((sizes[0][0] + 1) // 2, (sizes[0][1] + 1) // 2))
    most = max(8, features // 16)
    channels = [min(most, 2**doublings) for doublings in range(len(sizes) + 2, 3, -1)]
    first = nn.Linear(features, channels[0] * math.prod(sizes[0]))
    stages = [first, nn.ReLU(), nn.Unflatten(1, (channels[0], *sizes[0]))]
    for size, (before, after) in zip(sizes[1:], pairwise([*channels, out_shape[0]]), strict=True):
        conv = Conv2d(before, after, 3, padding=1, relu=size != sizes[-1])
        stages += [nn.Upsample(size), conv]
    return stages


def _start_awake(stages: list[nn.Module], num_classes: int) -> None:
    """He's scale throughout: PyTorch's own leaves nothing of a capsule after so many layers."""
    layers = [stage for stage in stages if isinstance(stage, nn.Linear | nn.Conv2d)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is layers[-1] else "relu")
        nn.init.zeros_(_bias(layer))
    with torch.no_grad():
        layers[0].weight *= num_classes**0.5  # of its inputs all but one class's are masked


def _weight_std(in_capsules: int, out_capsules: int, out_dim: int, input_length: float) -> float:
    """A scale at which the first outputs are neither silent nor saturated, whatever the sizes.

    In the first iteration every coupling is 1/J, so `s_j` sums I votes of weight 1/J. With votes of independent
    sign, `‖s_j‖ ≈ √(I·D) / J · ‖u‖ · std`. The value below asks for `‖s_j‖ ≈ ½` at `‖u‖ ≈ 1`, near where squash is
    steepest. Much below, squash is quadratic and all but silences what little there is to learn from; at 1 and above,
    routing drives all capsules to full length, and the first steps are spent on undoing that.
    Above a routed layer the inputs are shorter than one, by `input_length`, and the weights make up for it; else each
    layer would be more silent than the one below it.
    """
    return out_capsules / (2 * input_length * math.sqrt(in_capsules * out_dim))


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    assert layer.bias is not None
    return layer.bias

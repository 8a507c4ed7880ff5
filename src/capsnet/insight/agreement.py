"""Agreement: which part of an image votes for which class, and how the vote sharpens as routing goes on."""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from capsnet.data.image_set import to_float
from capsnet.functional import lengths
from capsnet.health import coupling_entropy
from capsnet.insight.style import style, to_rgb
from capsnet.models import CapsNet


@dataclass(frozen=True)
class Agreement:
    """How the primary capsules of one image share themselves out among the classes, in each iteration.

    `couplings` are the coefficients c_ij that the iteration uses; the first are all alike. `activity` is the length
    of each primary capsule: how much its vote weighs. `centres` are the pixels that the grid positions look at, down
    and right, and `reach` is how many pixels each sees around them.
    """

    image: UInt8[Tensor, "channels height width"]
    couplings: Float[Tensor, "iterations rows columns types classes"]
    activity: Float[Tensor, "rows columns types"]
    lengths: Float[Tensor, " classes"]
    centres: tuple[Float[Tensor, " rows"], Float[Tensor, " columns"]]
    reach: int
    class_names: tuple[str, ...]

    @property
    def by_position(self) -> Float[Tensor, "iterations rows columns classes"]:
        """The share of each grid position's votes for each class; a vote weighs as much as its capsule is long."""
        return _average(self.couplings, self.activity[..., None], 3)

    @property
    def by_type(self) -> Float[Tensor, "iterations types classes"]:
        """The share of each type's votes for each class. Of leaky routing, the rest goes to none."""
        return _average(self.couplings.flatten(1, 2), self.activity.flatten(0, 1)[..., None], 1)

    @property
    def entropy(self) -> Float[Tensor, " iterations"]:
        """Mean entropy of the couplings in bits, weighted by activity: 0 when each capsule has one parent."""
        return coupling_entropy(self.couplings, self.activity)


def _average(values: Tensor, weights: Tensor, dim: int) -> Tensor:
    return (values * weights).sum(dim) / weights.expand_as(values).sum(dim).clamp_min(1e-12)


@torch.inference_mode()
def agree(model: CapsNet, image: UInt8[Tensor, "channels height width"], class_names: tuple[str, ...]) -> Agreement:
    """Route one image and keep the couplings of every iteration."""
    device = next(model.parameters()).device
    features = model.features(to_float(image[None].to(device)))
    primary = model.primary(features)
    conv = model.primary.conv
    kernels = [model.conv.kernel_size[0], conv.kernel_size[0]]
    stride, reach = conv.stride[0], sum(kernels) - 1
    sides = [(side - kernels[1]) // stride + 1 for side in features.shape[2:]]
    grid = (*sides, model.primary.types)
    centres = [(reach - 1) / 2 + stride * torch.arange(side, dtype=torch.float32) for side in sides]
    return Agreement(
        image,
        model.classes.couplings(primary)[:, 0].unflatten(1, grid).cpu(),
        lengths(primary)[0].unflatten(0, grid).cpu(),
        lengths(model.classes(primary))[0].cpu(),
        (centres[0], centres[1]),
        reach,
        class_names,
    )


def draw_agreement(data: Agreement, dark: bool = False) -> Figure:
    """Above, over the image, how many of each position's votes are for the winner; below, of each capsule type.

    An even share is 1. The number at a position is the class that it votes for most. Both halves have the same scale,
    which reaches as far as this image needs: in a large network couplings differ by little, and decide all the same.
    """
    iterations, types, classes = len(data.couplings), data.activity.shape[2], len(data.class_names)
    even = float(data.couplings[0].mean())
    winner = int(data.lengths.argmax())
    reach = max(float((part / even - 1).abs().max()) for part in (data.by_type, data.by_position[..., winner]))
    scale = ScalarMappable(Normalize(1 - reach, 1 + reach), "PuOr_r")
    tall = min(0.12 * types + 0.4, 4.0)
    with style(dark):
        figure = Figure(figsize=(3.2 * iterations + 0.6, 4.1 + tall), layout="constrained")
        axes = figure.subplots(2, iterations, squeeze=False, height_ratios=[3.2, tall])
        for t in range(iterations):
            _draw_positions(axes[0, t], data, t, winner, even, scale)
            axes[0, t].set_title(f"iteration {t + 1}: {data.entropy[t]:.3f} bits")
            axes[1, t].imshow(scale.to_rgba(data.by_type[t].numpy() / even), aspect="auto")
            axes[1, t].set_xticks(range(classes), data.class_names)
            axes[1, t].set(xlabel="class", ylabel="capsule type" if t == 0 else "", yticks=[])
        figure.colorbar(scale, ax=axes, label="share of the votes (1 = even)", shrink=0.7)
        figure.suptitle(f"Who votes for {data.class_names[winner]}, ‖v‖ = {data.lengths[winner]:.2f}", fontsize=11)
    return figure


def _draw_positions(
    axis: Axes, data: Agreement, iteration: int, winner: int, even: float, scale: ScalarMappable
) -> None:
    votes = data.by_position[iteration]
    down, right = (centres.tolist() for centres in data.centres)
    half = (down[1] - down[0]) / 2 if len(down) > 1 else data.reach / 2
    extent = (right[0] - half, right[-1] + half, down[-1] + half, down[0] - half)
    axis.imshow(to_rgb(to_float(data.image)).numpy())
    axis.imshow(scale.to_rgba(votes[..., winner].numpy() / even), extent=extent, alpha=0.7)
    height, width = data.image.shape[1:]
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axis.set_axis_off()
    if iteration:  # before that, no class has more than another
        for (y, x), favourite in zip(itertools.product(down, right), votes.argmax(-1).flatten().tolist(), strict=True):
            axis.text(x, y, data.class_names[favourite], ha="center", va="center", fontsize=6, color="black")

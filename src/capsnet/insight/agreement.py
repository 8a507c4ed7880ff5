"""Agreement: which part of an image votes for which class, and how the vote sharpens as routing goes on."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from capsnet.data.image_set import to_float
from capsnet.functional import lengths
from capsnet.health import coupling_entropy
from capsnet.insight.style import style, to_rgb
from capsnet.models import CapsNet

VOTES = "cividis"
"""Colours from few votes to many; they become lighter all the way, so that grey tells them apart too."""


@dataclass(frozen=True)
class Agreement:
    """How the primary capsules of one image share themselves out among the classes, in each iteration.

    `couplings` are the coefficients c_ij that the iteration uses; the first are all alike. `activity` is the length
    of each primary capsule: how much its vote weighs. `capsules` are what came out. `centres` are the pixels in the
    middle of what the grid positions see, down and right; each sees `reach` × `reach` pixels.
    """

    image: UInt8[Tensor, "channels height width"]
    couplings: Float[Tensor, "iterations rows columns types classes"]
    activity: Float[Tensor, "rows columns types"]
    capsules: Float[Tensor, "classes dim"]
    centres: tuple[Float[Tensor, " rows"], Float[Tensor, " columns"]]
    reach: int
    class_names: tuple[str, ...]

    @property
    def lengths(self) -> Float[Tensor, " classes"]:
        return lengths(self.capsules)

    @property
    def by_position(self) -> Float[Tensor, "iterations rows columns classes"]:
        """The share of each grid position's votes for each class; a vote weighs as much as its capsule is long."""
        return _average(self.couplings, self.activity[..., None], 3)

    @property
    def by_type(self) -> Float[Tensor, "iterations types classes"]:
        """The share of each type's votes for each class. Of leaky routing, the rest goes to none."""
        return _average(self.couplings.flatten(1, 2), self.activity.flatten(0, 1)[..., None], 1)

    def relative(self, shares: Tensor) -> Tensor:
        """Shares as multiples of an even one, which every class has in the first iteration."""
        return shares / self.couplings[0].mean()

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
        model.classes(primary)[0].cpu(),
        (centres[0], centres[1]),
        reach,
        class_names,
    )


def draw_agreement(data: Agreement, dark: bool = False) -> Figure:
    """Above, over the image, how many of each position's votes are for the winner; below, of each capsule type.

    An even share is 1. The number at a position is the class that it votes for most. Each half has its own scale, from
    the least share to the most: in a large network couplings differ by little, and decide all the same.
    """
    iterations, types, classes = len(data.couplings), data.activity.shape[2], len(data.class_names)
    winner = int(data.lengths.argmax())
    by_position, by_type = data.relative(data.by_position), data.relative(data.by_type)
    scales = [
        ScalarMappable(Normalize(float(shares.min()), float(shares.max())), VOTES)
        for shares in (by_position[..., winner], by_type)
    ]
    tall = min(0.12 * types + 0.4, 4.0)
    with style(dark):
        figure = Figure(figsize=(3.2 * iterations + 0.6, 4.1 + tall), layout="constrained")
        axes = figure.subplots(2, iterations, squeeze=False, height_ratios=[3.2, tall])
        for t in range(iterations):
            favourites = by_position[t].argmax(-1) if t else None  # before that, no class has more than another
            _draw_positions(axes[0, t], data, scales[0].to_rgba(by_position[t, ..., winner].numpy()), favourites)
            axes[0, t].set_title(f"iteration {t + 1}: {data.entropy[t]:.3f} bits")
            axes[1, t].imshow(scales[1].to_rgba(by_type[t].numpy()), aspect="auto")
            axes[1, t].set_xticks(range(classes), data.class_names)
            axes[1, t].set(xlabel="class", ylabel="capsule type" if t == 0 else "", yticks=[])
        for row, scale in zip(axes, scales, strict=True):
            figure.colorbar(scale, ax=row, label="share of the votes\n(1 = even)", aspect=15)
        figure.suptitle(f"Who votes for {data.class_names[winner]}, ‖v‖ = {data.lengths[winner]:.2f}", fontsize=11)
    return figure


def _draw_positions(axis: Axes, data: Agreement, colours: Any, favourites: Tensor | None) -> None:
    """The image, below a square for each grid position, with the class that it favours."""
    down, right = (centres.tolist() for centres in data.centres)
    half = (down[1] - down[0]) / 2 if len(down) > 1 else data.reach / 2
    axis.imshow(to_rgb(to_float(data.image)).numpy())
    axis.imshow(colours, extent=(right[0] - half, right[-1] + half, down[-1] + half, down[0] - half), alpha=0.7)
    height, width = data.image.shape[1:]
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axis.set_axis_off()
    outline: dict[str, Any] = {"path_effects": [withStroke(linewidth=1.2, foreground="black")]}
    if favourites is not None:
        for (y, x), favourite in zip(itertools.product(down, right), favourites.flatten().tolist(), strict=True):
            axis.text(x, y, data.class_names[favourite], ha="center", va="center", fontsize=6, color="white", **outline)

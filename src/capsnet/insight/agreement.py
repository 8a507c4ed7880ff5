"""Agreement: which part of an image votes for which class, and how the vote sharpens as routing goes on."""

import itertools
from collections.abc import Sequence
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
from capsnet.insight.style import fit_text, style, text_width, to_rgb
from capsnet.layers import ConvCapsules, DenseCapsules
from capsnet.models import CapsNet

VOTES = "cividis"
"""Colours from few votes to many; they become lighter all the way, so that grey tells them apart too."""
CLASSES = 20
"""So many have room beside each other."""
MARK_SIZE = 6
MARK_ROOM = 14
"""Points: for letters on a square of the grid, and from there to the next."""


@dataclass(frozen=True)
class Agreement:
    """How the capsules below the classes share themselves out among those, for one image, in each iteration.

    They are the primary capsules, or those of the last hidden layer; a dense one has a single position. `couplings` are
    the coefficients c_ij that the iteration uses; the first are all alike. `activity` is the length of each capsule:
    how much its vote weighs. `capsules` are what came out. `centres` are the pixels in the middle of what the grid
    positions see, down and right; each sees `reach` × `reach` pixels, about, where there is a stem.
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
    voters = model.voters(model.primary(features))
    grid = (*model.voter_grid, model.voter_types)
    centres, reach = _fields(model, features.shape[2:], image.shape[1:])
    return Agreement(
        image,
        model.classes.couplings(voters)[:, 0].unflatten(1, grid).cpu(),
        lengths(voters)[0].unflatten(0, grid).cpu(),
        model.classes(voters)[0].cpu(),
        (centres[0], centres[1]),
        reach,
        class_names,
    )


def _fields(model: CapsNet, features: torch.Size, image: torch.Size) -> tuple[list[Float[Tensor, " side"]], int]:
    """Where the capsules below the classes look: the middles, down and right, and how many pixels each sees."""
    if any(isinstance(layer, DenseCapsules) for layer in model.hidden):
        return [torch.tensor([(side - 1) / 2]) for side in image], max(image)
    size = model.conv.kernel_size[0]
    kernels = [(size, 1), (model.primary.conv.kernel_size[0], model.primary.conv.stride[0])]
    kernels += [(layer.kernel_size, layer.stride) for layer in model.hidden if isinstance(layer, ConvCapsules)]
    reach, step = 1, 1
    for kernel, stride in kernels:
        reach, step = reach + (kernel - 1) * step, step * stride
    # What Conv1 sees is the image, or what a stem has made of it, whose features lie evenly over the image.
    scales = [pixels / (side + size - 1) for pixels, side in zip(image, features, strict=True)]
    middles = [reach / 2 + step * torch.arange(side, dtype=torch.float32) for side in model.voter_grid]
    return [scale * middle - 0.5 for scale, middle in zip(scales, middles, strict=True)], round(max(scales) * reach)


def draw_agreement(data: Agreement, dark: bool = False) -> Figure:
    """Above, over the image, how many of each position's votes are for the winner; below, of each capsule type.

    An even share is 1. The number at a position is the class that it votes for most. Each half has its own scale, from
    the least share to the most: in a large network couplings differ by little, and decide all the same. Of many
    classes, the lower half shows those with the longest capsules.
    """
    iterations, types = len(data.couplings), data.activity.shape[2]
    winner = int(data.lengths.argmax())
    shown = data.lengths.topk(min(CLASSES, len(data.class_names))).indices.sort().values.tolist()
    marks = _marks(data.class_names)
    names = [marks[k] if marks[k] == data.class_names[k] else f"{marks[k]} {data.class_names[k]}" for k in shown]
    names = [fit_text(name, 90, 8) for name in names]
    upright = max(map(len, names)) > 3
    by_position, by_type = data.relative(data.by_position), data.relative(data.by_type)[..., shown]
    scales = [
        ScalarMappable(Normalize(float(shares.min()), float(shares.max())), VOTES)
        for shares in (by_position[..., winner], by_type)
    ]
    tall = min(max(0.12 * types + 0.4, 1.4), 4.0)  # with room for what its scale is called
    below = max(text_width(name, 8) for name in names) / 72 if upright else 0  # inches
    with style(dark):
        figure = Figure(figsize=(3.2 * iterations + 0.6, 4.1 + tall + below), layout="constrained")
        axes = figure.subplots(2, iterations, squeeze=False, height_ratios=[3.2, tall])
        for t in range(iterations):
            favourites = by_position[t].argmax(-1) if t else None  # before that, no class has more than another
            _draw_positions(axes[0, t], data, scales[0].to_rgba(by_position[t, ..., winner].numpy()), favourites, marks)
            axes[0, t].set_title(f"iteration {t + 1}: {data.entropy[t]:.3f} bits")
            axes[1, t].imshow(scales[1].to_rgba(by_type[t].numpy()), aspect="auto")
            axes[1, t].set_xticks(range(len(names)), names, rotation=90 if upright else 0)
            axes[1, t].set(xlabel="class", ylabel="capsule type" if t == 0 else "", yticks=[])
        for row, scale in zip(axes, scales, strict=True):
            figure.colorbar(scale, ax=row, label="share of the votes\n(1 = even)", aspect=15)
        name = fit_text(data.class_names[winner], 200 * iterations - 60, 11)
        figure.suptitle(f"Who votes for {name}, ‖v‖ = {data.lengths[winner]:.2f}", fontsize=11)
    return figure


def _marks(class_names: tuple[str, ...]) -> list[str]:
    """What stands for each class on the grid: its name if all are short, else its number."""
    if all(text_width(name, MARK_SIZE) <= MARK_ROOM for name in class_names):
        return list(class_names)
    return [str(number) for number in range(len(class_names))]


def _draw_positions(axis: Axes, data: Agreement, colours: Any, favourites: Tensor | None, marks: Sequence[str]) -> None:
    """The image, below a square for each grid position, with the mark of the class that it favours."""
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
            axis.text(
                x, y, marks[int(favourite)], ha="center", va="center", fontsize=MARK_SIZE, color="white", **outline
            )

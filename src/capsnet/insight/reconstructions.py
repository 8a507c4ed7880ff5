"""Reconstructions: what the winning capsule alone says the image looks like, beside the image (paper, figure 3)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from capsnet.data.image_set import ImageSet, to_float
from capsnet.insight.style import Colours, fit_lines, style, to_rgb
from capsnet.models import CapsNet

COLUMNS = 10
ROOM = 62
"""Points for what is written above and below an image."""


@dataclass(frozen=True)
class Reconstructions:
    """A few images with what the model makes of them: `[:, 0]` is the predicted class, `[:, 1]` the true one."""

    images: UInt8[Tensor, "count channels height width"]
    classes: Int[Tensor, "count 2"]
    lengths: Float[Tensor, "count 2"]
    reconstructions: Float[Tensor, "count 2 channels height width"]
    class_names: tuple[str, ...]


def choose_examples(labels: Int[Tensor, " count"], predictions: Int[Tensor, " count"], num_classes: int) -> Tensor:
    """Positions of one success of each class (the first ten classes), then of the first ten failures."""
    right = predictions == labels
    firsts = [torch.nonzero(right & (labels == k))[:1, 0] for k in range(min(num_classes, COLUMNS))]
    return torch.cat([*firsts, torch.nonzero(~right)[:COLUMNS, 0]])


def reconstruct(model: CapsNet, image_set: ImageSet, indices: Int[Tensor, " count"]) -> Reconstructions:
    """Run the model on the images at `indices`; the longest capsule of each is decoded, and the true class's."""
    chosen = image_set.select(indices)
    device = next(model.parameters()).device
    with torch.inference_mode():
        output = model(to_float(chosen.images.to(device)))
        classes = torch.stack([output.lengths.argmax(dim=1), chosen.labels.to(device)], dim=1)
        decoded = torch.stack([model.reconstruct(output.capsules, each) for each in classes.unbind(1)], dim=1)
        lengths = output.lengths.gather(1, classes)
    return Reconstructions(chosen.images, classes.cpu(), lengths.cpu(), decoded.cpu(), image_set.class_names)


def draw_reconstructions(data: Reconstructions, dark: bool = False) -> Figure:
    """Successes above; failures below, as what they were taken for and as what they are. Each with its length."""
    right = data.classes[:, 0] == data.classes[:, 1]
    groups = [
        ("Recognised", torch.nonzero(right)[:, 0].tolist(), 2),
        ("Mistaken: as what it was taken for, and as what it is", torch.nonzero(~right)[:, 0].tolist(), 3),
    ]
    groups = [(title, positions[:COLUMNS], rows) for title, positions, rows in groups if positions]
    heights = [0.45 + 1.1 * rows for _, _, rows in groups]
    with style(dark) as colours:
        figure = Figure(figsize=(10, sum(heights)), layout="constrained")
        panels = figure.subfigures(len(groups), 1, hspace=0.04, squeeze=False, height_ratios=heights)
        for panel, (title, positions, rows) in zip(panels.flat, groups, strict=True):
            panel.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
            axes = panel.subplots(rows, COLUMNS, squeeze=False, gridspec_kw={"hspace": 0.02, "wspace": 0.06})
            for axis in axes.flat:
                axis.set_axis_off()
            for column, position in enumerate(positions):
                _draw_column(axes[:, column], data, position, colours)
            for axis, name in zip(axes[:, 0], ("input", "taken for" if rows == 3 else "decoded", "is"), strict=False):
                axis.text(-0.12, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=9)
    return figure


def _draw_column(axes, data: Reconstructions, position: int, colours: Colours) -> None:
    names = [data.class_names[k] for k in data.classes[position].tolist()]
    axes[0].imshow(to_rgb(to_float(data.images[position])).numpy())
    axes[0].set_title(fit_lines("label", names[1], ROOM, 9), fontsize=9, pad=3)
    right = names[0] == names[1]
    for which, axis in enumerate(axes[1:]):
        axis.imshow(to_rgb(data.reconstructions[position, which]).numpy())
        said = fit_lines(names[which], f" ‖v‖ {data.lengths[position, which]:.2f}", ROOM, 8)
        colour = colours.right if right or which == 1 else colours.wrong
        axis.text(0.5, -0.05, said, transform=axis.transAxes, ha="center", va="top", fontsize=8, color=colour)

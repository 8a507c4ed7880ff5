"""Reconstructions: what the winning capsule alone says the image looks like, beside the image (paper, figure 3)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from capsnet.data.image_set import ImageSet, to_float
from capsnet.models import CapsNet

COLUMNS = 10
INK, RIGHT, WRONG = "#333333", "#1b7f4d", "#c2410c"


@dataclass(frozen=True)
class Reconstructions:
    """A few images with what the model makes of them."""

    images: UInt8[Tensor, "count channels height width"]
    reconstructions: Float[Tensor, "count channels height width"]
    labels: Int[Tensor, " count"]
    predictions: Int[Tensor, " count"]
    lengths: Float[Tensor, " count"]
    class_names: tuple[str, ...]


def choose_examples(labels: Int[Tensor, " count"], predictions: Int[Tensor, " count"], num_classes: int) -> Tensor:
    """Positions of one success of each class (the first ten classes), then of the first ten failures."""
    right = predictions == labels
    firsts = [torch.nonzero(right & (labels == k))[:1, 0] for k in range(min(num_classes, COLUMNS))]
    return torch.cat([*firsts, torch.nonzero(~right)[:COLUMNS, 0]])


def reconstruct(model: CapsNet, image_set: ImageSet, indices: Int[Tensor, " count"]) -> Reconstructions:
    """Run the model on the images at `indices`; the longest capsule of each is decoded."""
    chosen = image_set.select(indices)
    device = next(model.parameters()).device
    with torch.inference_mode():
        output = model(to_float(chosen.images.to(device)))
        lengths, predictions = output.lengths.max(dim=1)
        decoded = model.reconstruct(output.capsules, predictions)
    return Reconstructions(
        chosen.images, decoded.cpu(), chosen.labels, predictions.cpu(), lengths.cpu(), image_set.class_names
    )


def draw_reconstructions(data: Reconstructions) -> Figure:
    """Successes above, failures below; each image over its reconstruction, with label, prediction and length."""
    right = data.predictions == data.labels
    groups = [
        (title, positions)
        for title, positions in (
            ("Recognised", torch.nonzero(right)[:, 0]),
            ("Mistaken", torch.nonzero(~right)[:, 0]),
        )
        if len(positions)
    ]
    figure = Figure(figsize=(10, 2.45 * len(groups)), dpi=150, facecolor="white", layout="constrained")
    panels = figure.subfigures(len(groups), 1, hspace=0.04, squeeze=False)
    for panel, (title, positions) in zip(panels.flat, groups, strict=True):
        panel.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
        axes = panel.subplots(2, COLUMNS, squeeze=False, gridspec_kw={"hspace": 0.02, "wspace": 0.06})
        for axis in axes.flat:
            axis.set_axis_off()
        for column, position in enumerate(positions[:COLUMNS].tolist()):
            _draw_pair(axes[:, column], data, position)
        _name_rows(axes, min(len(positions), COLUMNS))
    return figure


def _draw_pair(axes, data: Reconstructions, position: int) -> None:
    label, prediction = (data.class_names[int(k[position])] for k in (data.labels, data.predictions))
    right = label == prediction
    pictures = (data.images[position].float() / 255, data.reconstructions[position])
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(picture.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
    axes[0].set_title(f"label {label}", fontsize=9, color=INK, pad=3)
    said = f"{prediction} ({data.lengths[position]:.2f})"
    axes[1].text(
        *(0.5, -0.06, said),
        transform=axes[1].transAxes,
        ha="center",
        va="top",
        fontsize=9,
        color=RIGHT if right else WRONG,
    )


def _name_rows(axes, columns: int) -> None:
    for axis, name in zip(axes[:, 0], ("input", "reconstruction"), strict=True):
        if columns:
            axis.text(
                -0.12, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=9, color=INK
            )

"""Equivariance: when a thing is turned, moved or resized, its capsule should keep its length and turn smoothly."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from capsnet.data.augment import affine, pose_matrices
from capsnet.data.image_set import to_float
from capsnet.functional import lengths
from capsnet.insight.style import Colours, fit_text, mosaic, style
from capsnet.models import CapsNet, Model

SHOWN = 7
"""So many of the transformed images are shown above each curve."""


@dataclass(frozen=True)
class Sweep:
    """One image under more and more of a transformation: the capsule of class `number` at each of `amounts`.

    `angles` are between the capsule and the same capsule at `still`, the amount that changes nothing, in degrees;
    not a number where a capsule is so short that it has no direction. `other` is what another model says of the class.
    """

    name: str
    unit: str
    still: float
    amounts: Float[Tensor, " amounts"]
    images: UInt8[Tensor, "amounts channels height width"]
    number: int
    capsules: Float[Tensor, "amounts dim"]
    winners: list[int]
    other: Float[Tensor, " amounts"] | None
    other_name: str
    class_names: tuple[str, ...]

    @property
    def lengths(self) -> Float[Tensor, " amounts"]:
        return lengths(self.capsules)

    @property
    def angles(self) -> Float[Tensor, " amounts"]:
        reference = self.capsules[int((self.amounts - self.still).abs().argmin())]
        cosines = torch.cosine_similarity(self.capsules, reference[None], dim=1).clamp(-1, 1)
        return torch.where(self.lengths > 0.01, cosines.arccos().rad2deg(), torch.nan)


def transform(
    images: UInt8[Tensor, "batch channels height width"],
    rotation: float | int | Tensor = 0.0,
    scale: float | int | Tensor = 1.0,
    down: float | int | Tensor = 0.0,
    right: float | int | Tensor = 0.0,
) -> UInt8[Tensor, "batch channels height width"]:
    """Turn (degrees, counter-clockwise), resize and move (pixels) images around their middle."""
    rotation, scale, down, right = (
        torch.as_tensor(x).float().expand(len(images)) for x in (rotation, scale, down, right)
    )
    matrices = pose_matrices(
        rotation, torch.zeros(len(images)), torch.stack([scale, scale], dim=1), torch.stack([down, right], dim=1)
    )
    return affine(images, matrices)


@torch.inference_mode()
def sweep(
    model: CapsNet,
    image: UInt8[Tensor, "channels height width"],
    class_names: tuple[str, ...],
    other: Model | None = None,
) -> list[Sweep]:
    """Rotate (±60°), scale (0.6 to 1.4) and shift (a quarter of the width either way) an image.

    The capsule followed is the one that wins on the image as it is. `other` is a model for the same images.
    """
    far = image.shape[2] // 4
    kinds = [
        ("rotation", "degrees", 0.0, torch.linspace(-60, 60, 25)),
        ("scale", "times", 1.0, torch.linspace(0.6, 1.4, 17)),
        ("shift", "pixels to the right", 0.0, torch.arange(-far, far + 1).float()),
    ]
    other_name = "another CapsNet" if isinstance(other, CapsNet) else "CNN"
    number = int(capsules_of(model, image[None])[0].norm(dim=1).argmax())
    sweeps = []
    for name, unit, still, amounts in kinds:
        images = transform(image.expand(len(amounts), -1, -1, -1), **{"right" if name == "shift" else name: amounts})
        capsules = capsules_of(model, images)
        winners = lengths(capsules).argmax(dim=1).tolist()
        answers = None if other is None else other.probabilities(_on(other, images))[:, number].float().cpu()
        followed = capsules[:, number]
        sweeps.append(
            Sweep(name, unit, still, amounts, images, number, followed, winners, answers, other_name, class_names)
        )
    return sweeps


@torch.inference_mode()
def capsules_of(
    model: CapsNet, images: UInt8[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch classes dim"]:
    """All class capsules of each image."""
    return model(_on(model, images)).capsules.float().cpu()


def draw_equivariance(data: list[Sweep], dark: bool = False) -> Figure:
    """A column for each transformation: the images, the length (and the other model's answer), the direction."""
    with style(dark) as colours:
        figure = Figure(figsize=(4.4 * len(data), 5.6), layout="constrained")
        axes = figure.subplots(3, len(data), squeeze=False, sharey="row", height_ratios=[0.45, 1, 1])
        for column, each in zip(axes.T, data, strict=True):
            _draw_sweep(column, each, colours)
        axes[1, 0].set_ylabel("how sure of the class")
        axes[2, 0].set_ylabel("direction turned by (degrees)")
        axes[1, 0].legend(loc="lower center")
        name = fit_text(data[0].class_names[data[0].number], 280, 11)
        figure.suptitle(f"Capsule {name}: its length should stay, its direction should turn smoothly", fontsize=11)
    return figure


def _draw_sweep(axes, data: Sweep, colours: Colours) -> None:
    shown = torch.linspace(0, len(data.amounts) - 1, SHOWN).round().long()
    strip, length, angle = axes
    strip.imshow(mosaic(to_float(data.images[shown])[None]).numpy())
    strip.set_axis_off()
    strip.set_title(data.name, fontweight="bold")
    amounts = data.amounts.numpy()
    first: dict[str, Any] = {"color": colours.first, "marker": "o", "markersize": 3}
    second: dict[str, Any] = {"color": colours.second, "marker": "s", "markersize": 3, "linestyle": "--"}
    length.plot(amounts, data.lengths.numpy(), label="length of the capsule", **first)
    if data.other is not None:
        length.plot(amounts, data.other.numpy(), label=data.other_name, **second)
    length.set_ylim(-0.03, 1.05)
    angle.plot(amounts, data.angles.numpy(), **first)
    angle.set_ylim(bottom=0)
    angle.set_xlabel(data.unit)
    for axis in (length, angle):
        axis.grid(True)
        axis.axvline(data.still, color=colours.faint, linewidth=0.8)


def _on(model: Model, images: UInt8[Tensor, "batch channels height width"]) -> Tensor:
    return to_float(images.to(next(model.parameters()).device))

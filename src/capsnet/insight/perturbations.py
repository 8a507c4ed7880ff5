"""Dimension perturbations: what each dimension of a capsule means, seen by moving it (paper, figure 4)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from capsnet.data.image_set import to_float
from capsnet.insight.style import fit_text, mosaic, style
from capsnet.models import CapsNet

STEPS = torch.arange(-5, 6) / 20
"""The paper's: −0.25 to 0.25 in steps of 0.05."""


@dataclass(frozen=True)
class Perturbations:
    """The decoded capsule `number` (a class) of an image, one dimension at a time moved by each of `steps`."""

    image: UInt8[Tensor, "channels height width"]
    number: int
    length: float
    steps: Float[Tensor, " steps"]
    decoded: Float[Tensor, "dims steps channels height width"]
    class_names: tuple[str, ...]


@torch.inference_mode()
def perturb(
    model: CapsNet,
    image: UInt8[Tensor, "channels height width"],
    class_names: tuple[str, ...],
    number: int | None = None,
    steps: Float[Tensor, " steps"] = STEPS,
) -> Perturbations:
    """Move each dimension of the capsule of class `number`, by default the longest, by each of `steps`."""
    device = next(model.parameters()).device
    output = model(to_float(image[None].to(device)))
    number = int(output.lengths[0].argmax()) if number is None else number
    dim = output.capsules.shape[2]
    moves = torch.eye(dim, device=device)[:, None] * steps.to(device)[:, None]  # (dims, steps, dim)
    decoded = decode(model, (output.capsules[0, number] + moves).flatten(0, 1), number)
    return Perturbations(
        image, number, float(output.lengths[0, number]), steps, decoded.unflatten(0, moves.shape[:2]).cpu(), class_names
    )


def decode(
    model: CapsNet, vectors: Float[Tensor, "count dim"], number: int
) -> Float[Tensor, "count channels height width"]:
    """The images that these vectors stand for as capsules of class `number`."""
    capsules = vectors.new_zeros(len(vectors), model.config["num_classes"], vectors.shape[1])
    capsules[:, number] = vectors
    return model.reconstruct(capsules, torch.full((len(vectors),), number, device=vectors.device))


def draw_perturbations(data: Perturbations, dark: bool = False) -> Figure:
    """A row for each dimension, a column for each step; the middle column is the capsule as it is."""
    rows, columns, _, height, width = data.decoded.shape
    gap = 2
    with style(dark) as colours:
        figure = Figure(figsize=(0.5 * columns + 0.9, 0.5 * rows * height / width + 0.9), layout="constrained")
        axis = figure.subplots()
        axis.imshow(mosaic(data.decoded, gap).numpy())
        axis.set_xticks([(width + gap) * k + width / 2 for k in range(columns)], [f"{s:+.2f}" for s in data.steps])
        axis.set_yticks([(height + gap) * k + height / 2 for k in range(rows)], [str(k + 1) for k in range(rows)])
        axis.set(xlabel="added to the dimension", ylabel="dimension")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        still = int(data.steps.abs().argmin())
        left, bottom = still * (width + gap) - 1.5, rows * (height + gap) - gap + 0.5
        axis.plot([left, left, left + width + 2, left + width + 2], [bottom, -1.5, -1.5, bottom], color=colours.second)
        axis.set_xlim(-2, columns * (width + gap))
        axis.set_ylim(bottom + 0.5, -3)
        name = fit_text(data.class_names[data.number], 280, 11)
        figure.suptitle(f"Capsule {name}, ‖v‖ = {data.length:.2f}", fontsize=11)
    return figure

"""Overlap: two things on one image, told apart by decoding one capsule at a time (paper, figure 5)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from capsnet.data.image_set import to_float
from capsnet.insight.style import PAIR, fit_lines, style, to_rgb
from capsnet.models import CapsNet

FAINT = 0.3
"""How bright the input is below the two reconstructions."""
ROOM = 100
"""Points for what is written above an image."""


@dataclass(frozen=True)
class Overlap:
    """An image, and each of `classes` decoded alone. `lengths` are those of all capsules."""

    image: UInt8[Tensor, "channels height width"]
    lengths: Float[Tensor, " all_classes"]
    classes: Int[Tensor, " asked"]
    reconstructions: Float[Tensor, "asked channels height width"]
    class_names: tuple[str, ...]


@torch.inference_mode()
def separate(
    model: CapsNet,
    image: UInt8[Tensor, "channels height width"],
    class_names: tuple[str, ...],
    classes: Int[Tensor, " asked"] | None = None,
) -> Overlap:
    """Decode each of `classes` alone, by default those of the two longest capsules; they need not be there."""
    device = next(model.parameters()).device
    output = model(to_float(image[None].to(device)))
    asked = output.lengths[0].topk(2).indices if classes is None else classes.to(device)
    decoded = model.reconstruct(output.capsules.expand(len(asked), -1, -1), asked)
    return Overlap(image, output.lengths[0].cpu(), asked.cpu(), decoded.cpu(), class_names)


def separate_with_wrong(
    model: CapsNet, image: UInt8[Tensor, "channels height width"], class_names: tuple[str, ...]
) -> Overlap:
    """The two longest capsules, then two that lost: the third, which came closest, and the shortest."""
    order = separate(model, image, class_names).lengths.argsort(descending=True, stable=True)
    return separate(model, image, class_names, torch.cat([order[:2], order[2:3], order[-1:]])[: len(order)])


def blend(data: Overlap) -> Float[Tensor, "height width 3"]:
    """The first two reconstructions as light of two colours, added, over the input in dark grey."""
    ink = data.reconstructions[:2].mean(dim=1).clamp(0, 1)  # (2, H, W)
    light = torch.einsum("khw,kc->hwc", ink, torch.tensor(PAIR)[: len(ink)]).clamp(0, 1)
    return torch.maximum(light, FAINT * to_rgb(to_float(data.image)))


def draw_overlap(data: list[Overlap], dark: bool = False) -> Figure:
    """A row for each image: the input, its two digits in two colours, each alone, and capsules that lost, forced.

    What a capsule draws that lost should be empty or poor: it was told that its thing is there, and knows nothing.
    """
    columns = 2 + max(len(each.classes) for each in data)
    with style(dark) as colours:
        figure = Figure(figsize=(1.5 * columns, 1.75 * len(data)), layout="constrained")
        axes = figure.subplots(len(data), columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for row, each in zip(axes, data, strict=True):
            pictures = [to_rgb(to_float(each.image)), blend(each), *to_rgb(each.reconstructions)]
            for axis, picture in zip(row, pictures, strict=False):
                axis.imshow(picture.numpy())
            names = [each.class_names[k] for k in each.classes.tolist()]
            row[0].set_title("input", fontsize=9, pad=3)
            row[1].set_title(fit_lines(f"{names[0]} and", names[1], ROOM, 9), fontsize=9, pad=3)
            for which, (axis, name) in enumerate(zip(row[2:], names, strict=False)):
                length = float(each.lengths[each.classes[which]])
                title = fit_lines(name if which < 2 else f"if told {name}", f" ‖v‖ {length:.2f}", ROOM, 9)
                axis.set_title(title, fontsize=9, pad=3, color=colours.ink if which < 2 else colours.wrong)
    return figure

"""Drawing shapes on whole batches: signed distances, and how much of a pixel they cover.

Points are (down, right), `(batch, 2, points)`, in whatever unit the shape is given in. A signed distance is negative
inside. Those of curved shapes are of first order: exact on the edge, which is what shows.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "batch 2 points"]
Distance = Float[Tensor, "batch points"]
TINY = 1e-6


def local(points: Points, centre: Float[Tensor, "batch 2"], turn: Float[Tensor, " batch"]) -> Points:
    """The points as seen by a thing that stands at `centre`, turned counter-clockwise by `turn` degrees."""
    cos, sin = turn.deg2rad().cos(), turn.deg2rad().sin()
    back = torch.stack([cos, sin, -sin, cos], dim=1).unflatten(1, (2, 2))
    return back @ points - (back @ centre[:, :, None])


def ellipse(points: Points, radii: Float[Tensor, "batch 2"]) -> Distance:
    """Distance to an ellipse around the origin with these radii (down, right)."""
    down, right = (points / radii[:, :, None]).unbind(1)
    norm = torch.hypot(down, right)
    slope = torch.hypot(down / radii[:, :1], right / radii[:, 1:]).clamp_min(TINY)
    return norm * (norm - 1) / slope


def circle(points: Points, centre: Float[Tensor, "batch 2"], radius: Float[Tensor, " batch"]) -> Distance:
    down, right = (points - centre[:, :, None]).unbind(1)
    return torch.hypot(down, right) - radius[:, None]


def rounded(
    points: Points, width: Float[Tensor, " batch"], squareness: Float[Tensor, " batch"], taper: Float[Tensor, " batch"]
) -> tuple[Distance, Distance]:
    """Distance to a head: a superellipse 2 high and 2 `width` wide, narrower by the share `taper` at its lower end.

    `squareness` is the exponent, 2 for an ellipse. Also by how much the distance falls where the head grows by its
    half height.
    """
    down, right = points.unbind(1)
    narrowed = width[:, None] * (1 - taper[:, None] * down).clamp(0.3, 1.7)
    power = squareness[:, None]
    along, across = down.abs().clamp_min(TINY), (right.abs() / narrowed).clamp_min(TINY)
    along_power, across_power = along**power, across**power
    total = along_power + across_power
    grown = total ** (1 / power)
    # The gradient of `grown`, whose components are those of a superellipse of exponent power - 1.
    slope = torch.hypot(along_power / along, across_power / (across * narrowed)) * grown / total
    reach = 1 / slope.clamp_min(0.3)
    return (grown - 1) * reach, reach


def line(points: Points, knots: Float[Tensor, "batch knots 2"]) -> Distance:
    """Distance to the line through the knots, which has no inside."""
    down, right = points.unbind(1)
    nearest = torch.full_like(down, torch.inf)
    for start, end in zip(knots[:, :-1].unbind(1), knots[:, 1:].unbind(1), strict=True):
        step = end - start
        far = step / step.square().sum(1, keepdim=True).clamp_min(TINY)
        begun = (start * far).sum(1, keepdim=True)
        place = torch.addcmul(torch.addcmul(-begun, down, far[:, :1]), right, far[:, 1:]).clamp_(0, 1)
        below = torch.addcmul(down - start[:, :1], place, step[:, :1], value=-1)
        beside = torch.addcmul(right - start[:, 1:], place, step[:, 1:], value=-1)
        nearest = torch.minimum(nearest, below.square_().addcmul_(beside, beside))
    return nearest.sqrt_()


def outline(distance: Distance, thickness: Float[Tensor, " batch"]) -> Distance:
    """Distance to a stroke of this thickness along the edge of a shape, or along a line."""
    return distance.abs() - thickness[:, None] / 2


def paint(
    canvas: Float[Tensor, "batch channels points"],
    distance: Distance,
    colour: Float[Tensor, "batch channels"],
    unit: Float[Tensor, " batch"],
    opacity: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch channels points"]:
    """The canvas with a shape laid on it; `unit` is how many pixels long the unit of `distance` is.

    The edge is as wide as a pixel, so that a pixel's tone is the share of it that is covered.
    """
    share = torch.addcmul(distance.new_full((), 0.5), distance, unit[:, None], value=-1).clamp_(0, 1)
    if opacity is not None:
        share *= opacity[:, None]
    return torch.lerp(canvas, colour[:, :, None], share[:, None])

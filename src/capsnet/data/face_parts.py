"""The parts that faces are made of: a hundred shapes of each, some for training, others for validation and test.

Lengths are in halves of the height of a head; points are (down, right) from the middle of the part.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from capsnet.data.draws import NUMBERS, draw

SHAPES = {"train": (0, 60), "validation": (60, 80), "test": (80, 100)}
"""Which of the hundred shapes of each part belong to which split: from, to."""
COUNT = 100
LIBRARY_SEED = 20171026
CURVE = np.linspace(-1, 1, 5)
"""Where the knots of a mouth are, from its left to its right corner."""

Uniform = list[float]


def _heads(u: Uniform) -> list[float]:
    """Width, squareness, how much narrower the chin is."""
    return [0.68 + 0.22 * u[0], 1.9 + 0.9 * u[1], -0.05 + 0.25 * u[2]]


def _hairs(u: Uniform) -> list[float]:
    """Whether there is any, how much it adds to the head, its line: height, bow, slant; whether long, and how long."""
    return [
        float(u[0] < 0.88),
        1.06 + 0.14 * u[1],
        -0.8 + 0.35 * u[2],
        0.5 * u[3] - 0.2,
        0.6 * (u[4] - 0.5),
        float(u[5] < 0.35),
        u[6],
    ]


def _ears(u: Uniform) -> list[float]:
    """Whether they show, their size, how far down they are."""
    return [float(u[0] < 0.75), 0.15 + 0.1 * u[1], 0.25 * u[2] - 0.1]


def _brows(u: Uniform) -> list[float]:
    """Three knots, the inner one first, and the thickness beside that of other strokes."""
    reach, bend = 0.14 + 0.08 * u[0], 0.03 + 0.07 * u[1]
    inner, outer = 0.07 * (u[2] - 0.6), 0.07 * (u[3] - 0.3)
    return [inner, -reach, -bend, 0.4 * (u[4] - 0.5) * reach, outer, reach, 0.9 + 0.9 * u[5]]


def _eyes(u: Uniform) -> list[float]:
    """Half the height and width, whether there is white, the radius of the pupil, how far it looks down and aside."""
    white = float(u[2] < 0.75)
    high, wide = (0.1 + 0.08 * u[0]) * (0.5 + 0.5 * white), (0.14 + 0.08 * u[1]) * (0.5 + 0.5 * white)
    return [high, wide, white, 0.05 + 0.03 * u[3], 0.06 * (u[5] - 0.5), 0.1 * (u[4] - 0.5)]


def _noses(u: Uniform) -> list[float]:
    """Four knots: a hooked line, a wedge, or a button seen from below."""
    high, wide = 0.12 + 0.09 * u[1], 0.09 + 0.07 * u[2]
    side = 1 if u[3] < 0.5 else -1
    if u[0] < 0.45:
        return [-high, 0.0, 0.3 * high, side * 0.4 * wide, high, side * wide, high, -side * 0.5 * wide]
    if u[0] < 0.75:
        return [-high, 0.0, high, -wide, high, wide, -high, 0.0]
    return [-0.2 * high, -wide, 0.5 * high, -0.6 * wide, 0.5 * high, 0.6 * wide, -0.2 * high, wide]


def _mouths(u: Uniform) -> list[float]:
    """Half the width, how far the middle of the upper and of the lower lip hang, whether teeth show."""
    half = 0.22 + 0.18 * u[1]
    if u[0] < 0.6:  # shut: mostly a smile
        hang = -0.04 + 0.23 * u[2]
        return [half, hang, hang, 0.0]
    return [half, 0.1 * u[2] - 0.04, 0.16 + 0.12 * u[3], float(u[4] < 0.5)]


PARTS: dict[str, Callable[[Uniform], list[float]]] = {
    "head": _heads,
    "hair": _hairs,
    "ears": _ears,
    "brows": _brows,
    "eyes": _eyes,
    "nose": _noses,
    "mouth": _mouths,
}


@cache
def library(part: str) -> Float32[Tensor, "shapes numbers"]:
    """All shapes of a part, each described by a few numbers."""
    uniform = (draw(LIBRARY_SEED, 0, COUNT, stream=list(PARTS).index(part)) + 0.5) / 2**32
    assert uniform.shape[1] == NUMBERS
    return torch.tensor([[float(x) for x in PARTS[part](row)] for row in uniform.tolist()], dtype=torch.float32)


def pick(
    split: str, part: str, uniform: Float[Tensor, " batch"], device: torch.device
) -> Float32[Tensor, "batch numbers"]:
    """A shape of the split for each number from 0 to 1."""
    first, end = SHAPES[split]
    return library(part)[(first + (end - first) * uniform).long().clamp(first, end - 1)].to(device)


def lips(half: Float[Tensor, " batch"], hang: Float[Tensor, " batch"]) -> Float[Tensor, "batch knots 2"]:
    """The line of a lip whose middle hangs below its corners."""
    places = torch.tensor(CURVE, dtype=half.dtype, device=half.device)
    return torch.stack([hang[:, None] * (1 - places.square()), half[:, None] * places.expand(len(half), -1)], dim=2)

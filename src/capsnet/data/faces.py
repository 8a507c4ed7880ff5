"""Faces drawn from parts under a known pose, and three kinds of non-faces made of the same parts.

A scrambled one has its parts in the wrong places, a misoriented one has each part turned on its own, and in the third
kind parts are missing or doubled. What tells them from faces is not which parts there are but how they stand to each
other; so they test the claim that a capsule knows that. Training, validation and test use different shapes of parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from operator import itemgetter

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

from capsnet.data.augment import pose_matrices
from capsnet.data.draws import draw
from capsnet.data.face_parts import SHAPES, lips, pick
from capsnet.data.painting import circle, ellipse, line, local, outline, paint, rounded
from capsnet.data.posed import PosedSet
from capsnet.errors import InputError

KINDS = ("face", "scrambled", "misoriented", "missing")
CLASS_NAMES = ("no face", "face")
SLOTS = ("left brow", "right brow", "left eye", "right eye", "nose", "mouth")
"""The parts within a face, and the places where they belong."""
SIZE = 32
SPLITS = {"train": 10_000, "test": 6_000}
"""Images in the sets that have a name."""
BATCH = 128
STREAMS = 8
"""Of eight random numbers each, for an image."""


@dataclass(frozen=True)
class Poses:
    """From where to where poses are drawn, evenly, either way: up and down, left and right, to either side.

    Position and size are in shares of the image, orientation in degrees, as in `POSE`.
    """

    position: tuple[float, float] = (0.0, 0.08)
    """The distance from the middle along the axis along which it is larger."""
    orientation: tuple[float, float] = (0.0, 30.0)
    size: tuple[float, float] = (0.58, 0.78)
    shear: tuple[float, float] = (0.0, 0.15)


NEAR = Poses()
"""What is trained on: faces that stand a little aside, a little askew, and are of middle size."""


def mixed(*kinds: str) -> tuple[str, ...]:
    """Every other image a face, the others of these kinds in turn; by default of all three kinds of non-faces."""
    return tuple(name for kind in kinds or KINDS[1:] for name in ("face", kind))


def load_faces(split: str) -> PosedSet:
    """10,000 faces and non-faces of 1×32×32 to train on, 6,000 with other part shapes to test on."""
    return make_faces(SPLITS[split], split)


def make_faces(
    count: int,
    split: str = "train",
    *,
    kinds: tuple[str, ...] = mixed(),
    poses: Poses = NEAR,
    size: int = SIZE,
    channels: int = 1,
    painted: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> PosedSet:
    """`count` images of the `kinds` in turn, `channels` (1 or 3) × `size` × `size`, with labels and poses.

    They are drawn with light strokes on black, as MNIST's digits are, or `painted`, with skin, hair and background.
    Image n depends on its kind, the split, the seed and n alone, so that a larger set begins with a smaller one.
    Computed on `device`, returned on the CPU. Raises `InputError` for an unknown split or kind, and impossible sizes.
    """
    if split not in SHAPES:
        raise InputError(f"unknown split {split!r}; there are: {', '.join(SHAPES)}")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"unknown kind of face {kind!r}; there are: {', '.join(KINDS)}")
    if count < 1 or size < 8 or channels not in (1, 3) or not kinds:
        raise InputError("faces are drawn at least one at a time, on 8×8 pixels or more, in grey (1) or colour (3)")
    kind_of = torch.tensor([KINDS.index(kind) for kind in kinds])[torch.arange(count) % len(kinds)]
    images = torch.empty(count, channels, size, size, dtype=torch.uint8)
    all_poses = torch.empty(count, 5)
    for start in range(0, count, BATCH):
        stop = min(start + BATCH, count)
        uniform = _uniform(seed, split, start, stop)
        all_poses[start:stop] = _draw_poses(uniform[:, :6], poses)
        sketch = arrange(uniform[:, 6:], split, kind_of[start:stop], channels, painted)
        images[start:stop] = render(
            sketch.each(lambda tensor: tensor.to(device)), all_poses[start:stop].to(device), size
        ).cpu()
    return PosedSet(images, (kind_of == 0).long(), CLASS_NAMES, poses=all_poses)


@dataclass(frozen=True)
class Sketch:
    """Faces before they are drawn: which shapes, where, in what colours.

    `centres` (down, right), in halves of the head's height from its middle; `turns`, in degrees counter-clockwise; and
    `visible`, for each of `SLOTS` and, last, for a part that there may be twice.
    """

    shapes: dict[str, Float[Tensor, "batch numbers"]]
    centres: Float[Tensor, "batch 7 2"]
    turns: Float[Tensor, "batch 7"]
    visible: Bool[Tensor, "batch 7"]
    doubled: Float[Tensor, " batch"]
    """Which of `SLOTS` the part that is there twice looks like."""
    colours: dict[str, Float[Tensor, "batch channels"]]
    stroke: Float[Tensor, " batch"]

    def each(self, change: Callable[[Tensor], Tensor]) -> "Sketch":
        """The same with every tensor changed: moved to a device, or only some of the batch."""
        return Sketch(
            {name: change(shape) for name, shape in self.shapes.items()},
            change(self.centres),
            change(self.turns),
            change(self.visible),
            change(self.doubled),
            {name: change(colour) for name, colour in self.colours.items()},
            change(self.stroke),
        )


def arrange(
    uniform: Float[Tensor, "batch numbers"], split: str, kind: Int[Tensor, " batch"], channels: int, painted: bool
) -> Sketch:
    """Choose shapes and colours, and put the parts where they belong in a face, or do not in a non-face."""
    u = list(uniform.unbind(1))
    here = uniform.device
    shapes = {part: pick(split, part, u.pop(), here) for part in ("head", "hair", "ears", "brows", "eyes", "nose")}
    shapes["mouth"] = pick(split, "mouth", u.pop(), here)
    colours = _choose_colours([u.pop() for _ in range(8)], channels, painted)
    stroke = 0.06 + 0.05 * u.pop()
    eyes, apart = -0.04 - 0.16 * u.pop(), (0.42 + 0.06 * u.pop()) * shapes["head"][:, 0]
    brows, nose, mouth = eyes - 0.2 - 0.08 * u.pop(), 0.1 + 0.08 * u.pop(), 0.5 + 0.08 * u.pop()
    zero = torch.zeros_like(eyes)
    down = [brows, brows, eyes, eyes, nose, mouth, zero]
    right = [-apart, apart, -apart, apart, zero, zero, zero]
    centres = torch.stack([torch.stack(down, 1), torch.stack(right, 1)], 2)
    centres, turns = _scramble(centres, u.pop(), kind == 1), torch.zeros_like(centres[..., 0])
    sides = torch.stack([u.pop() for _ in SLOTS], 1) - 0.5
    turns[:, :6] = torch.where((kind == 2)[:, None], sides.sign() * (60 + 120 * sides.abs()), 0)
    visible, doubled = _leave_out_or_double(u.pop(), kind == 3)
    places = torch.tensor([[-0.62, 0.0], [0.3, 0.5], [0.3, -0.5], [-0.62, 0.25], [-0.62, -0.25]], device=here)
    centres[:, 6] = places[(u.pop() * len(places)).long()]
    return Sketch(shapes, centres, turns, visible, doubled, colours, stroke)


def sketch_of(kind: str, number: int, split: str = "test", *, painted: bool = False) -> Sketch:
    """The face of this number in the split, or the non-face of this kind made of it, to be changed and drawn."""
    uniform = _uniform(0, split, number, number + 1)
    return arrange(uniform[:, 6:], split, torch.tensor([KINDS.index(kind)]), 1, painted)


def render(sketch: Sketch, poses: Float[Tensor, "batch 5"], size: int) -> UInt8[Tensor, "batch channels {size} {size}"]:
    """Draw sketches under these poses, from back to front; edges are a pixel wide."""
    down, right, orientation, height, shear = poses.unbind(1)
    unit = height * size / 2
    offset = torch.stack([down, right], 1) * size
    matrices = pose_matrices(orientation, shear, torch.stack([unit, unit], 1), offset).to(poses.device)
    middles = torch.arange(size, device=poses.device, dtype=torch.float32) - (size - 1) / 2
    points = torch.linalg.inv(matrices[:, :, :2]) @ (torch.cartesian_prod(middles, middles).T - offset[:, :, None])
    canvas = sketch.colours["ground"][:, :, None].repeat(1, 1, size * size)
    canvas = _paint_head(canvas, points, sketch, unit)
    for number, slot in enumerate(SLOTS):
        canvas = _paint_part(canvas, points, sketch, unit, number, slot)
    again = torch.nonzero(sketch.visible[:, 6])[:, 0]
    for number, slot in enumerate(SLOTS):
        those = again[sketch.doubled[again] == number]
        if len(those):
            canvas[those] = _paint_part(
                canvas[those], points[those], sketch.each(itemgetter(those)), unit[those], 6, slot
            )
    return (canvas * 255).round().clamp(0, 255).byte().unflatten(2, (size, size))


def _paint_head(canvas: Tensor, points: Tensor, sketch: Sketch, unit: Tensor) -> Tensor:
    width, squareness, taper = sketch.shapes["head"].unbind(1)
    hair, grown, height, bow, slant, long, length = sketch.shapes["hair"].unbind(1)
    ears, ear, beside = sketch.shapes["ears"].unbind(1)
    skin, ink, hair_colour = (sketch.colours[name] for name in ("skin", "ink", "hair"))
    down, right = points.unbind(1)
    low = torch.stack([0.3 * length, torch.zeros_like(length)], 1)
    mane = ellipse(points - low[:, :, None], torch.stack([1 + 0.2 * length, width + 0.2], 1))
    canvas = paint(canvas, mane, hair_colour, unit, hair * long)
    for side in (-1, 1):
        place = torch.stack([beside, side * (width + 0.3 * ear)], 1)
        flap = ellipse(points - place[:, :, None], torch.stack([ear, 0.75 * ear], 1))
        canvas = paint(canvas, flap, skin, unit, ears)
        canvas = paint(canvas, outline(flap, sketch.stroke), ink, unit, ears)
    head, reach = rounded(points, width, squareness, taper)
    canvas = paint(canvas, head, skin, unit)
    canvas = paint(canvas, outline(head, sketch.stroke), ink, unit)
    hairline = (down - (height[:, None] + bow[:, None] * right.square() + slant[:, None] * right)) * 0.9
    scalp = head - (grown[:, None] - 1) * reach
    return paint(canvas, torch.maximum(scalp, hairline), hair_colour, unit, hair)


def _paint_part(canvas: Tensor, points: Tensor, sketch: Sketch, unit: Tensor, number: int, slot: str) -> Tensor:
    """The part that belongs in `slot`, where number `number` of the sketch is; a left one is a right one mirrored."""
    side, _, kind = slot.rpartition(" ")
    own = local(points, sketch.centres[:, number], sketch.turns[:, number])
    if side == "left":
        own = own * own.new_tensor([[1.0], [-1.0]])
    seen = sketch.visible[:, number].float()
    ink, white = sketch.colours["ink"], sketch.colours["white"]
    stroke = sketch.stroke
    if kind == "eye":
        high, wide, has_white, pupil, below, aside = sketch.shapes["eyes"].unbind(1)
        ball = ellipse(own, torch.stack([high, wide], 1))
        canvas = paint(canvas, ball, torch.lerp(ink, white, has_white[:, None]), unit, seen)
        canvas = paint(canvas, outline(ball, 0.7 * stroke), ink, unit, seen)
        gaze = torch.stack([below, -aside if side == "left" else aside], 1)
        return paint(canvas, circle(own, gaze, pupil), ink, unit, seen)
    if kind == "brow":
        *knots, thickness = sketch.shapes["brows"].unbind(1)
        bow = line(own, torch.stack(knots, 1).unflatten(1, (3, 2)))
        return paint(canvas, outline(bow, thickness * stroke), sketch.colours["brow"], unit, seen)
    if kind == "nose":
        bridge = line(own, sketch.shapes["nose"].unflatten(1, (4, 2)))
        return paint(canvas, outline(bridge, stroke), ink, unit, seen)
    half, upper, lower, teeth = sketch.shapes["mouth"].unbind(1)
    down, right = own.unbind(1)
    curve = (1 - (right / half[:, None]).square()).clamp_min(0)
    inside = torch.maximum(upper[:, None] * curve - down, down - lower[:, None] * curve)
    inside = torch.maximum(inside, right.abs() - half[:, None])
    filling = torch.lerp(sketch.colours["throat"], white, teeth[:, None])
    canvas = paint(canvas, inside, filling, unit, seen * (lower > upper))
    for hang in (upper, lower):
        canvas = paint(canvas, outline(line(own, lips(half, hang)), stroke), sketch.colours["lips"], unit, seen)
    return canvas


@cache
def _disorders() -> Tensor:
    """All ways to put the parts into `SLOTS` such that none is where one of its kind belongs, (ways, 6)."""
    kinds = [slot.rpartition(" ")[2] for slot in SLOTS]
    ways = [way for way in permutations(range(6)) if all(kinds[k] != kinds[place] for k, place in enumerate(way))]
    return torch.tensor(ways)


def _scramble(centres: Tensor, uniform: Tensor, which: Tensor) -> Tensor:
    ways = _disorders().to(centres.device)
    way = ways[(uniform * len(ways)).long().clamp_max(len(ways) - 1)]
    moved = centres.clone()
    moved[:, :6] = centres[:, :6].gather(1, way[:, :, None].expand(-1, -1, 2))
    return torch.where(which[:, None, None], moved, centres)


CHANGES = ((0, 2), (1, 3), (4,), (5,), (0, 1, 2, 3), -2, -3, -4, -5)
"""What is left out, as numbers of `SLOTS`: an eye with its brow, nose, mouth, all of eyes and brows; or, negative, what
there is twice: an eye, either one, a nose, a mouth."""


def _leave_out_or_double(uniform: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    seen = torch.ones(len(CHANGES), 7, dtype=torch.bool)
    doubled = torch.zeros(len(CHANGES))
    for number, change in enumerate(CHANGES):
        if isinstance(change, int):
            doubled[number] = -change
        else:
            seen[number, list(change)] = False
            seen[number, 6] = False
    choice = (uniform * len(CHANGES)).long().clamp_max(len(CHANGES) - 1)
    whole = torch.tensor([True] * 6 + [False], device=uniform.device)
    return torch.where(which[:, None], seen.to(uniform.device)[choice], whole), doubled.to(uniform.device)[choice]


_SKINS = ((0.99, 0.87, 0.75), (0.48, 0.32, 0.22))
_HAIRS = ((0.1, 0.08, 0.07), (0.36, 0.2, 0.1), (0.88, 0.72, 0.36), (0.72, 0.32, 0.12), (0.72, 0.72, 0.74))


def _choose_colours(u: list[Tensor], channels: int, painted: bool) -> dict[str, Tensor]:
    """Red, green and blue, or the grey that is as light."""
    colours = _paints(u) if painted else _chalks(u)
    if channels == 3:
        return colours
    weights = torch.tensor([0.299, 0.587, 0.114], device=u[0].device)
    return {name: (colour @ weights)[:, None] for name, colour in colours.items()}


def _chalks(u: list[Tensor]) -> dict[str, Tensor]:
    """Light strokes on black; what is not a stroke is black, but hair and the inside of a mouth are shaded."""
    black = torch.zeros(len(u[0]), 3, device=u[0].device)
    white, shade = torch.ones_like(black), (0.25 + 0.2 * u[0])[:, None] + black
    strokes = {
        name: (0.85 + 0.15 * each)[:, None] + black for name, each in zip(("ink", "brow", "lips"), u[1:], strict=False)
    }
    return {
        **dict.fromkeys(("ground", "skin"), black),
        **strokes,
        "white": black,
        "hair": shade,
        "throat": 0.55 * white,
    }


def _paints(u: list[Tensor]) -> dict[str, Tensor]:
    batch, here = len(u[0]), u[0].device

    def fixed(*rgb: float) -> Tensor:
        return torch.tensor(rgb, device=here).expand(batch, 3)

    hairs = torch.tensor(_HAIRS, device=here)
    hair = hairs[(u[1] * len(hairs)).long().clamp_max(len(hairs) - 1)] * (0.8 + 0.25 * u[2])[:, None]
    ground = 0.05 + 0.3 * torch.stack(u[3:6], 1)
    return {
        **{"ground": ground, "skin": torch.lerp(fixed(*_SKINS[0]), fixed(*_SKINS[1]), u[0][:, None]), "hair": hair},
        **{"brow": hair * 0.5, "ink": fixed(0.1, 0.07, 0.08), "white": fixed(0.98, 0.98, 0.97)},
        **{
            "throat": fixed(0.32, 0.06, 0.1),
            "lips": torch.lerp(fixed(0.15, 0.07, 0.08), fixed(0.66, 0.16, 0.2), u[6][:, None]),
        },
    }


def _uniform(seed: int, split: str, start: int, stop: int) -> Float[Tensor, "batch numbers"]:
    """All the random numbers that a face is made of, from 0 to 1; those of the splits have nothing in common."""
    first = 100 * list(SHAPES).index(split)
    drawn = [draw(seed, start, stop, stream=first + stream) for stream in range(STREAMS)]
    return torch.from_numpy((np.concatenate(drawn, axis=1) + 0.5) / 2**32).float().clamp(0, 1 - 2**-24)


def _draw_poses(u: Float[Tensor, "batch 6"], poses: Poses) -> Float32[Tensor, "batch 5"]:
    def either_way(uniform: Tensor, reach: tuple[float, float]) -> Tensor:
        both = 2 * uniform - 1
        return both.sign() * (reach[0] + (reach[1] - reach[0]) * both.abs())

    # Evenly over a square without the square in its middle: how far out, then where along the border of that square.
    inner, outer = poses.position
    far = (inner**2 + u[:, 0] * (outer**2 - inner**2)).sqrt()
    along, side = 2 * ((4 * u[:, 1]) % 1) - 1, (4 * u[:, 1]).long()
    down = torch.where(side < 2, 2.0 * side - 1, along) * far
    right = torch.where(side < 2, along, 2.0 * side - 5) * far
    small, large = poses.size
    orientation, shear = either_way(u[:, 2], poses.orientation), either_way(u[:, 4], poses.shear)
    return torch.stack([down, right, orientation, small + (large - small) * u[:, 3], shear], 1)

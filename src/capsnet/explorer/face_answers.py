"""What capsule and CNN say of a face whose parts were moved: numbers in, data out. No page in here."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from capsnet.data.augment import pose_matrices
from capsnet.data.faces import KINDS, SLOTS, render, sketch_of
from capsnet.errors import InputError
from capsnet.evaluation import detect
from capsnet.insight.equivariance import capsules_of
from capsnet.models import CapsuleDetector, CNNDetector, Detection
from capsnet.models.detector import THING

LARGE = 192
"""Pixels of the picture that is shown; the models see their own."""
REACH = 1.4
"""How far from the middle of the head a part may be moved, in halves of the head's height."""
FACES = 1000


@dataclass(frozen=True)
class Detectors:
    """A CapsNet and a CNN of the same size, for faces, and what there is to say about them."""

    capsule: CapsuleDetector
    cnn: CNNDetector | None
    abouts: tuple[str, ...]

    @property
    def size(self) -> int:
        return self.capsule.config["in_shape"][1]


@dataclass(frozen=True)
class Seen:
    """The picture, large and as the models see it; what they say; and what the face capsule draws, if it can."""

    large: UInt8[Tensor, "channels large large"]
    small: UInt8[Tensor, "channels height width"]
    capsule: Detection
    cnn: Detection | None
    reconstruction: Float[Tensor, "channels height width"] | None
    places: list[list[float]]
    """Where each part is on the picture, right and down, from 0 to 1."""
    back: list[list[float]]
    """The matrix that makes a move on the picture one in the face: (right, down) in, (right, down) out."""


def arranged(number: int, kind: str = "face") -> dict[str, Any]:
    """The face of this number among the test faces, or a non-face of this kind, as the page has it."""
    if kind not in KINDS or not 0 <= number < FACES:
        raise InputError(f"there are faces 0 to {FACES - 1}, and the kinds {', '.join(KINDS)}")
    sketch = sketch_of(kind, number)
    rows = zip(sketch.centres[0].tolist(), sketch.turns[0].tolist(), sketch.visible[0].tolist(), strict=True)
    parts = [{"down": down, "right": right, "turn": turn, "there": there} for (down, right), turn, there in rows]
    return {"number": number, "kind": kind, "parts": parts[: len(SLOTS)]}


def see(detectors: Detectors, state: object, *pose: object) -> Seen:
    """What both say of the face in `state`, under a pose: (orientation, size, right, down).

    Raises `InputError` unless the state is one that a page can be in.
    """
    number, kind, parts = _checked(state)
    orientation, size, right, down = (_number(value, 180.0) for value in pose)
    if not 0.3 <= size <= 1:
        raise InputError(f"the size of a face is from 0.3 to 1, not {size}")
    sketch = sketch_of(kind, number)
    centres, turns, visible = sketch.centres.clone(), sketch.turns.clone(), sketch.visible.clone()
    for k, part in enumerate(parts):
        centres[0, k] = torch.tensor([_number(part["down"], REACH), _number(part["right"], REACH)])
        turns[0, k] = _number(part["turn"], 180.0)
        visible[0, k] = bool(part["there"])
    moved = replace(sketch, centres=centres, turns=turns, visible=visible)
    poses = torch.tensor([[down, right, orientation, size, 0.0]], dtype=torch.float32)
    small, large = (render(moved, poses, pixels) for pixels in (detectors.size, LARGE))
    places, back = _places(centres, poses)
    drawn = None
    if detectors.capsule.decoder is not None:
        with torch.inference_mode():
            drawn = detectors.capsule.reconstruct(capsules_of(detectors.capsule, small), torch.tensor([THING]))[0]
    cnn = None if detectors.cnn is None else detect(detectors.cnn, small)
    return Seen(large[0], small[0], detect(detectors.capsule, small), cnn, drawn, places, back)


def _places(centres: Tensor, poses: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    down, right, orientation, size, shear = poses.unbind(1)
    half = torch.stack([size, size], 1) / 2
    matrix = pose_matrices(orientation, shear, half, torch.stack([down, right], 1))[0]
    places = centres[0, : len(SLOTS)] @ matrix[:, :2].T + matrix[:, 2] + 0.5
    return places.flip(1).tolist(), torch.linalg.inv(matrix[:, :2]).flip(0, 1).tolist()


def _checked(state: object) -> tuple[int, str, list[dict[str, Any]]]:
    state = state if isinstance(state, dict) else {}
    number, kind, parts = state.get("number"), state.get("kind"), state.get("parts")
    if not isinstance(number, int) or not 0 <= number < FACES or kind not in KINDS:
        raise InputError("there is no face yet")
    names = {"down", "right", "turn", "there"}
    parts = parts if isinstance(parts, list) else []
    if len(parts) != len(SLOTS) or not all(isinstance(part, dict) and names <= set(part) for part in parts):
        raise InputError(f"a face has {len(SLOTS)} parts, each with down, right, turn and there")
    return number, str(kind), [{name: part[name] for name in names} for part in parts]


def _number(value: object, reach: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= reach:
        raise InputError(f"a part or face is moved by numbers up to {reach:g}, not {str(value)[:20]}")
    return float(value)

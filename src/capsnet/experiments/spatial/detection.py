"""How well a detector tells faces from non-faces, and how well it reads their poses."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from capsnet.data import PosedSet
from capsnet.data.faces import KINDS, NEAR, Poses, make_faces, mixed
from capsnet.evaluation import detect, evaluate
from capsnet.models import Detector

FALSE_REJECTS = 0.05
"""The share of faces that every model is allowed to miss; its threshold follows."""
COUNT = 2000
"""Images of each kind, and under each range of poses."""

RANGES: dict[str, Poses] = {
    "as in training": NEAR,
    "turned 30 to 60°": replace(NEAR, orientation=(30.0, 60.0)),
    "turned 60 to 90°": replace(NEAR, orientation=(60.0, 90.0)),
    "turned 90 to 180°": replace(NEAR, orientation=(90.0, 180.0)),
    "smaller (0.42 to 0.58)": replace(NEAR, size=(0.42, 0.58)),
    "larger (0.78 to 0.94)": replace(NEAR, size=(0.78, 0.94)),
    "further aside (0.08 to 0.14)": replace(NEAR, position=(0.08, 0.14)),
    "far aside (0.14 to 0.20)": replace(NEAR, position=(0.14, 0.20)),
}
"""Where faces are tested: one thing about the pose at a time is outside the range of training."""


def measure_detection(
    model: Detector, outside: bool = False, painted: bool = False, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """On test images, drawn or painted: error, and how often each kind of non-face is taken for a face.

    If `outside`, also under poses outside the range of training. Shares are in percent. All models see the same images.
    """
    kinds = {kind: detect(model, faces_to_test(kind, painted=painted).images, device).likelihoods for kind in KINDS}
    threshold = float(kinds["face"].quantile(FALSE_REJECTS))
    measures: dict[str, Any] = {
        "error": round(evaluate(model, faces_to_test("mixed", painted=painted), device).error, 4),
        "threshold": round(threshold, 6),
        "false_accepts": {kind: _percent(kinds[kind] >= threshold) for kind in KINDS[1:]},
        "auc": {kind: _rounded(100 * area_under_curve(kinds["face"], kinds[kind])) for kind in KINDS[1:]},
    }
    if outside:
        measures["ranges"] = {name: _measure_range(model, name, threshold, device) for name in RANGES}
    return measures


def _measure_range(model: Detector, name: str, threshold: float, device: torch.device | str) -> dict[str, float]:
    faces = faces_to_test("face", name)
    others = detect(model, faces_to_test("non-face", name).images, device)
    found = detect(model, faces.images, device)
    return {
        "found": _percent(found.likelihoods >= threshold),
        "false_accepts": _percent(others.likelihoods >= threshold),
        "auc": _rounded(100 * area_under_curve(found.likelihoods, others.likelihoods)),
        **{error: _rounded(value) for error, value in pose_errors(found.poses, faces.poses).items()},
    }


@cache
def faces_to_test(kind: str, name: str = "as in training", painted: bool = False) -> PosedSet:
    """Test images in a range: of one kind, of all kinds of non-faces, or of all ("mixed") with a face for each."""
    kinds = {"mixed": mixed(), "non-face": KINDS[1:]}.get(kind, (kind,))
    count = 3 * COUNT if kind == "mixed" else COUNT
    return make_faces(count, "test", kinds=kinds, poses=RANGES[name], painted=painted)


def pose_errors(read: Float[Tensor, "batch 5"], true: Float[Tensor, "batch 5"]) -> dict[str, float]:
    """Mean errors: of the orientation in degrees, of the size in percent, of the position in percent of the image."""
    turned = (read[:, 2] - true[:, 2] + 180) % 360 - 180
    return {
        "orientation": float(turned.abs().mean()),
        "size": float(100 * (read[:, 3] / true[:, 3] - 1).abs().mean()),
        "position": float(100 * (read[:, :2] - true[:, :2]).norm(dim=1).mean()),
    }


def area_under_curve(faces: Float[Tensor, " faces"], others: Float[Tensor, " others"]) -> float:
    """How often a face is given a higher likelihood than a non-face; a tie counts half."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, faces) + torch.searchsorted(ordered, faces, right=True)
    return float(below.double().mean() / (2 * len(others)))


def _percent(which: Tensor) -> float:
    return _rounded(100 * float(which.double().mean()))


def _rounded(value: float) -> float:
    return round(value, 4)

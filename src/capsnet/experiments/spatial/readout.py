"""What a linear read-out finds of how a digit was transformed, in the winning capsule and in a CNN's last layer."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from capsnet.data import ImageSet, to_float
from capsnet.data.augment import affine, pose_matrices
from capsnet.data.draws import between, draw
from capsnet.data.mnist import load_mnist
from capsnet.functional import lengths
from capsnet.insight.equivariance import transform
from capsnet.models import CapsNet, SmallCNN

Classifier = CapsNet | SmallCNN
FACTORS = ("rotation", "scale", "shear", "shift right", "shift down", "stroke width")
ROTATION, SCALE, SHEAR, SHIFT = 30.0, 0.25, 0.3, 3.0
"""Degrees, share, pixels a row, pixels; either way, drawn evenly and all at once."""
FITTED, TESTED = 10_000, 5000
"""Training digits that the read-out is fitted to, and test digits that it is tested on."""
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Of the read-out's weights, beside the variance of the features; chosen on a fifth of the digits fitted to."""
TURNS = tuple(range(-60, 61, 15))
SWEPT = 500
BATCH = 500

Features = Float[Tensor, "count features"]


def measure_readout(model: Classifier, device: torch.device | str = "cpu") -> dict[str, Any]:
    """R² of each of `FACTORS`, in all and by kind of features, and what turning a digit does to length and direction.

    Each class has a read-out of its own: the winning capsule of a 3 codes its pose otherwise than that of a 7. The CNN
    gets the same, by the class that it says; its layer has more numbers than a capsule, so that its principal
    components, as many as a capsule has dimensions, are read as well.
    """
    model.to(device).eval()
    fitted, tested = (
        _features(model, load_mnist(split).first(count), seed, device)
        for split, count, seed in (("train", FITTED, 0), ("test", TESTED, 1))
    )
    found = {"all": _explained(fitted, tested)}
    if isinstance(model, SmallCNN):
        dim = 16
        found[f"{dim} components"] = _explained(*_principal(fitted, tested, dim))
    shown = {kind: {name: round(x, 4) for name, x in zip(FACTORS, r2, strict=True)} for kind, r2 in found.items()}
    return {"r2": shown, "sweep": _sweep(model, device)}


class Answers(NamedTuple):
    """What a model makes of each digit, the class that it says, and the true factors."""

    features: Tensor
    winners: Tensor
    factors: Tensor


def stroke_width(images: UInt8[Tensor, "count channels height width"]) -> Float[Tensor, " count"]:
    """In pixels: twice the area of the ink over the length of its edge, which is its total variation."""
    ink = images.float().mean(1) / 255
    down, right = torch.diff(ink, dim=1)[:, :, :-1], torch.diff(ink, dim=2)[:, :-1]
    return 2 * ink.sum((1, 2)) / torch.hypot(down, right).sum((1, 2)).clamp_min(1e-3)


def transformed(
    digits: UInt8[Tensor, "count channels height width"], seed: int
) -> tuple[UInt8[Tensor, "count channels height width"], Float[Tensor, "count factors"]]:
    """Digits under random transformations, and the `FACTORS` of each."""
    numbers = draw(seed, 0, len(digits), stream=31)
    reaches = ((-ROTATION, ROTATION), (1 - SCALE, 1 + SCALE), (-SHEAR, SHEAR), (-SHIFT, SHIFT), (-SHIFT, SHIFT))
    rotation, scale, shear, right, down = (
        torch.from_numpy(between(numbers[:, k], *reach)).float() for k, reach in enumerate(reaches)
    )
    matrices = pose_matrices(rotation, shear, torch.stack([scale, scale], 1), torch.stack([down, right], 1))
    moved = torch.cat([affine(*part) for part in zip(digits.split(BATCH), matrices.split(BATCH), strict=True)])
    return moved, torch.stack([rotation, scale, shear, right, down, stroke_width(moved)], 1)


def _features(model: Classifier, digits: ImageSet, seed: int, device: torch.device | str) -> Answers:
    images, factors = transformed(digits.images, seed)
    parts = [_look(model, to_float(part.to(device))) for part in images.split(BATCH)]
    features, winners = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    return Answers(features, winners, factors)


@torch.inference_mode()
def _look(model: Classifier, images: Tensor) -> tuple[Features, Int[Tensor, " count"]]:
    if isinstance(model, CapsNet):
        capsules, scores = model(images)
        winners = scores.argmax(1)
        return capsules[torch.arange(len(images), device=images.device), winners], winners
    hidden = model.hidden(images)
    return hidden, model.head(hidden).argmax(1)


def _by_class(*answers: Answers) -> Iterator[list[Answers]]:
    for k in range(10):
        yield [Answers(*(each[side.winners == k] for each in side)) for side in answers]


def _explained(fitted: Answers, tested: Answers) -> list[float]:
    """R² of each factor over all tested digits."""
    wrong, true = [], []
    for (x, _, y), (new_x, _, new_y) in _by_class(fitted, tested):
        if len(new_x):
            wrong.append(_ridge(x.double(), y.double(), new_x.double()) - new_y)
            true.append(new_y)
    spread = torch.cat(true) - torch.cat(true).mean(0)
    return (1 - torch.cat(wrong).square().sum(0) / spread.square().sum(0)).tolist()


def _ridge(x: Tensor, y: Tensor, new_x: Tensor) -> Tensor:
    """Predictions of a linear regression whose penalty is chosen on every fifth row; the mean where there are few."""
    if len(x) < 20:
        return y.mean(0).expand(len(new_x), -1) if len(x) else torch.zeros(len(new_x), y.shape[1], dtype=y.dtype)
    aside = torch.arange(len(x)) % 5 == 0
    errors = [(_solve(x[~aside], y[~aside], x[aside], p) - y[aside]).square().sum(0) for p in PENALTIES]
    best = torch.stack(errors).argmin(0)
    answers = [_solve(x, y, new_x, penalty) for penalty in PENALTIES]
    return torch.stack([answers[int(k)][:, factor] for factor, k in enumerate(best)], 1)


def _solve(x: Tensor, y: Tensor, new_x: Tensor, penalty: float) -> Tensor:
    centre, middle = x.mean(0), y.mean(0)
    x = x - centre
    scale = penalty * x.square().sum(0).mean().clamp_min(1e-12)
    weights = torch.linalg.solve(x.T @ x + scale * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (y - middle))
    return (new_x - centre) @ weights + middle


def _principal(fitted: Answers, tested: Answers, dim: int) -> tuple[Answers, Answers]:
    """Both in the principal components of what is fitted to, class by class."""
    pairs = []
    for (x, winners, y), (new_x, new_winners, new_y) in _by_class(fitted, tested):
        centre = x.mean(0) if len(x) else torch.zeros(x.shape[1])
        directions = torch.linalg.svd(x - centre, full_matrices=False).Vh[:dim].T if len(x) > dim else None
        axes = torch.eye(x.shape[1])[:, :dim] if directions is None else directions
        pairs.append((((x - centre) @ axes, winners, y), ((new_x - centre) @ axes, new_winners, new_y)))
    one, other = (Answers(*map(torch.cat, zip(*side, strict=True))) for side in zip(*pairs, strict=True))
    return one, other


def _sweep(model: Classifier, device: torch.device | str) -> dict[str, Any]:
    """Digits turned by `TURNS`: the mean likelihood of the class that won upright, and by how much features turn."""
    digits = load_mnist("test").first(SWEPT).images
    upright: tuple[Tensor, Tensor] | None = None
    rows = []
    for turn in sorted(TURNS, key=abs):
        likelihood, features = _follow(model, to_float(transform(digits, rotation=turn).to(device)), upright)
        upright = upright or (likelihood.argmax(1), features)
        number, before = upright
        angle = torch.cosine_similarity(features, before, dim=1).clamp(-1, 1).arccos().rad2deg()
        sure = likelihood.gather(1, number[:, None])
        kept = (likelihood.argmax(1) == number).float()
        rows.append((turn, *(round(float(x.mean()), 4) for x in (sure, angle, kept))))
    turns, sure, angle, kept = map(list, zip(*sorted(rows), strict=True))
    return {"turns": turns, "likelihood": sure, "angle": angle, "same_class": kept}


@torch.inference_mode()
def _follow(model: Classifier, images: Tensor, upright: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Likelihoods of all classes, and the features of the class that won upright."""
    if isinstance(model, CapsNet):
        capsules = model(images).capsules.cpu()
        likelihood = lengths(capsules)
        number = likelihood.argmax(1) if upright is None else upright[0]
        return likelihood, capsules[torch.arange(len(images)), number]
    hidden = model.hidden(images)
    return model.head(hidden).sigmoid().cpu(), hidden.cpu()

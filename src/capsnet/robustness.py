"""How the error grows as the images are turned, scaled, moved, sheared, disturbed and covered."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8, UInt32
from torch import Tensor

from capsnet.data.augment import affine, pose_matrices
from capsnet.data.draws import NUMBERS, below, draw
from capsnet.data.image_set import ImageSet
from capsnet.errors import InputError
from capsnet.evaluation import images_at_once, probabilities, wilson_interval
from capsnet.models import Model

Images = UInt8[Tensor, "batch channels height width"]
Numbers = UInt32[np.ndarray, "batch *numbers"]
Apply = Callable[[Images, float, Numbers], Images]


@dataclass(frozen=True)
class Transformation:
    """What is done to images: the unit of its strength, the strengths measured, and the one that changes nothing.

    `apply(images, strength, numbers)` takes random numbers for each image. They are the same for every strength and
    every model, so that curves are smooth and can be compared.
    """

    unit: str
    strengths: tuple[float, ...]
    apply: Apply
    neutral: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """Errors of one model on images under one transformation; a row of the table."""

    model: str
    transformation: str
    strength: float
    images: int
    errors: int

    @property
    def error(self) -> float:
        """In percent."""
        return 100 * self.errors / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `error`, in percent."""
        low, high = wilson_interval(self.errors, self.images)
        return 100 * low, 100 * high


def rotate(images: Images, degrees: float, numbers: Numbers) -> Images:
    """Turn about the middle, half of the images to the left and half to the right."""
    return _pose(images, rotation=degrees * _signs(numbers[:, 0]))


def scale(images: Images, factor: float, numbers: Numbers) -> Images:
    """Enlarge or shrink about the middle; what no longer fits is cut off."""
    return _pose(images, scale=torch.full((len(images), 2), factor))


def move(images: Images, pixels: float, numbers: Numbers) -> Images:
    """Move by so many pixels up or down, and by as many to the left or right; what no longer fits is cut off."""
    return _pose(images, offset=pixels * _signs(numbers[:, :2]))


def lean(images: Images, shear: float, numbers: Numbers) -> Images:
    """Move each row beside the one above by `shear` pixels, half of the images to the left and half to the right."""
    return _pose(images, shear=shear * _signs(numbers[:, 0]))


def disturb(images: Images, deviation: float, numbers: Numbers) -> Images:
    """Add Gaussian noise with this standard deviation, as a share of the range of a pixel, to every pixel; clip."""
    count = math.prod(images.shape[1:])
    blocks = -(-count // NUMBERS)
    uniform = np.concatenate([draw(int(key), 0, blocks).reshape(1, -1)[:, :count] for key in numbers[:, 0]])
    normal = torch.special.ndtri((torch.from_numpy(uniform.astype(np.float64)) + 0.5) / 2**32)
    noise = 255 * deviation * normal.float().to(images.device).view_as(images)
    return (images + noise).round().clamp(0, 255).byte()


def cover(images: Images, share: float, numbers: Numbers) -> Images:
    """Blacken a rectangle at a random place, whose sides are this share of the image's."""
    rows, columns = (
        _span(side, round(share * side), numbers[:, k]).to(images.device) for k, side in enumerate(images.shape[2:])
    )
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


TRANSFORMATIONS = {
    "rotation": Transformation("degrees", (0.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0), rotate),
    "scale": Transformation("factor", (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5), scale, neutral=1.0),
    "shift": Transformation("pixels", (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0), move),
    "shear": Transformation("pixels a row", (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8), lean),
    "noise": Transformation("standard deviation", (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5), disturb),
    "occlusion": Transformation("share of the side", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), cover),
}


def measure_robustness(
    models: Mapping[str, Model],
    image_set: ImageSet,
    transformations: tuple[str, ...] = tuple(TRANSFORMATIONS),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Measurement]:
    """Test each model, by name, on a set under each transformation at each of its strengths.

    All models see the same images; the seed decides them, and they are made on the CPU, wherever the models run. Each
    model sees the whole set at every strength, which for the 10,000 digits of MNIST takes minutes on a CPU. Raises
    `InputError` if images or classes are not a model's, or for an unknown transformation.
    """
    for name in transformations:
        if name not in TRANSFORMATIONS:
            raise InputError(f"unknown transformation {name!r}; there are: {', '.join(TRANSFORMATIONS)}")
    for model in models.values():
        image_set.require(model.config["in_shape"], model.config["num_classes"])
    rows = []
    for name in transformations:
        for strength in TRANSFORMATIONS[name].strengths:
            errors = _count_errors(models, image_set, TRANSFORMATIONS[name].apply, strength, seed, device)
            rows += [Measurement(model, name, strength, len(image_set), n) for model, n in errors.items()]
    return rows


def _count_errors(
    models: Mapping[str, Model],
    image_set: ImageSet,
    apply: Apply,
    strength: float,
    seed: int,
    device: torch.device | str,
) -> dict[str, int]:
    errors = dict.fromkeys(models, 0)
    size = images_at_once(image_set.image_shape)
    for start in range(0, len(image_set), size):
        stop = min(start + size, len(image_set))
        images = apply(image_set.images_at(slice(start, stop)).cpu(), strength, draw(seed, start, stop))
        labels = image_set.labels[start:stop].cpu()
        for name, model in models.items():
            errors[name] += int((probabilities(model, images, device).argmax(dim=1) != labels).sum())
    return errors


def _pose(images: Images, **changes: Tensor) -> Images:
    count = len(images)
    pose = {"rotation": torch.zeros(count), "shear": torch.zeros(count)}
    pose |= {"scale": torch.ones(count, 2), "offset": torch.zeros(count, 2)}
    return affine(images, pose_matrices(**(pose | changes)))


def _signs(numbers: Numbers) -> Tensor:
    """-1 or 1, equally likely."""
    return torch.from_numpy(2 * below(numbers, 2) - 1).float()


def _span(side: int, length: int, numbers: Numbers) -> Bool[Tensor, "batch side"]:
    """For each image, where along a side a random stretch of `length` lies."""
    starts = torch.from_numpy(below(numbers, side - length + 1))[:, None]
    places = torch.arange(side)
    return (places >= starts) & (places < starts + length)

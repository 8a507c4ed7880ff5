"""How often a model is wrong."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from capsnet.data import ImageSet, PairSet, require_set, to_float
from capsnet.data.augment import shift
from capsnet.devices import pick_device
from capsnet.errors import InputError
from capsnet.functional import class_numbers
from capsnet.models import Detection, Detector, Ensemble, Model

BATCH = 500
VALUES = 64 * 3 * 224 * 224
"""So many pixels, counting each channel, are in memory as floating-point numbers at a time."""


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a test: `error` in percent, the predicted class of every image, and how long it took.

    Where several things are on an image, `(N, K)` classes are predicted, and the image is an error unless all are
    right; so the paper's authors count in their code. `thing_error` counts each thing for itself.
    """

    images: int
    errors: int
    things: int
    """All that is on the images: as many as images, or twice as many digits as pairs."""
    thing_errors: int
    """Things whose class was not predicted."""
    seconds: float
    predictions: Int64[Tensor, "count *present"]
    independent: float | None = None
    """So many images drawn independently would say as much; None for all of them."""

    @property
    def error(self) -> float:
        return 100 * self.errors / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `error`, in percent: what the images, being a sample, leave open."""
        images = self.independent or self.images
        low, high = wilson_interval(self.errors / self.images * images, images)
        return 100 * low, 100 * high

    @property
    def thing_error(self) -> float:
        return 100 * self.thing_errors / self.things


def evaluate(
    model: Model | Ensemble, data: ImageSet | PairSet, device: torch.device | str = "cpu", shifts: int = 0
) -> Evaluation:
    """Test a model on a set. Raises `InputError` if the images or classes are not this model's.

    With `shifts`, each image is seen shifted by up to so many pixels in each direction, `(2 · shifts + 1)²` times in
    all, and the answers are averaged. Leaves the model on `device`.
    """
    require_set(data)
    data.require(model.config["in_shape"], model.config["num_classes"])
    device = pick_device(device)
    model.to(device).eval()
    thing_errors = things = 0
    wrong, predictions, members = [], [], []
    started = time.perf_counter()
    size = images_at_once(data.image_shape)
    for start in range(0, len(data), size):
        batch = data.batch(start, start + size)
        scores = _probabilities(model, batch.images.to(device), shifts)
        labels = batch.labels.cpu()
        missed = missed_things(scores, labels)
        wrong.append(missed.any(dim=1))
        if isinstance(data, PairSet):
            members.append(data.members(start, min(start + size, len(data))))
        thing_errors += int(missed.sum())
        things += missed.numel()
        predictions.append(scores.topk(missed.shape[1]).indices.reshape(labels.shape))
    seconds = time.perf_counter() - started
    errors, independent = torch.cat(wrong).numpy(), None
    if isinstance(data, PairSet):
        independent = independent_pairs(errors, np.concatenate(members), len(data.digits))
    return Evaluation(len(data), int(errors.sum()), things, thing_errors, seconds, torch.cat(predictions), independent)


def independent_pairs(wrong: Bool[np.ndarray, " pairs"], members: Int64[np.ndarray, "pairs 2"], digits: int) -> float:
    """How many pairs of digits that are in no other pair would say as much of the share of wrong ones.

    A digit that is hard to read makes all its pairs hard, and ten million pairs are made of ten thousand digits. The
    variance is that of Aronow, Samii and Assenova, *Cluster-robust variance estimation for dyadic data* (Political
    Analysis 23, 2015): pairs with a digit in common may depend on each other.
    """
    share = float(wrong.mean())
    if share in (0, 1):  # nothing to estimate a variance from
        return float(min(len(wrong), digits // 2))
    residuals = wrong - share
    by_digit = sum(np.bincount(members[:, k], residuals, digits) for k in (0, 1))
    low, high = np.sort(members).T
    by_pair = np.bincount(np.unique(low * digits + high, return_inverse=True)[1], residuals)  # in two of `by_digit`
    variance = float(np.square(by_digit).sum() - np.square(by_pair).sum()) / len(wrong) ** 2
    most = float(len(wrong))
    return max(1.0, min(most, share * (1 - share) / variance)) if variance > 0 else most


def images_at_once(image_shape: Sequence[int]) -> int:
    """How many images to test at a time: 500, or fewer where they are large."""
    return max(1, min(BATCH, VALUES // math.prod(image_shape)))


def missed_things(
    scores: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch *present"]
) -> Bool[Tensor, "batch things"]:
    """For each of the K things on an image, whether its class is not among the K highest scores.

    Raises `InputError` for labels that are none (`functional.class_numbers`).
    """
    present = class_numbers(labels, scores.shape[1], len(scores)).reshape(len(labels), -1)
    highest = scores.topk(present.shape[1]).indices
    return (present[:, :, None] != highest[:, None, :]).all(dim=2)


def wilson_interval(errors: int | float, images: int | float, confidence: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a share, from 0 to 1 (Wilson, *Probable inference*, JASA 22, 1927, uncorrected).

    Unlike the textbook's ± it holds for small shares too, and for none. It says nothing of how much another seed
    would differ.
    """
    if not 0 <= errors <= images or images < 1:
        raise ValueError(f"{errors} of {images} is no share")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = errors / images, 1 + z * z / images
    middle = (share + z * z / (2 * images)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / images + (z / (2 * images)) ** 2)
    # At 0 and 1 the two are equal but for rounding.
    return max(0.0, middle - reach) if errors else 0.0, min(1.0, middle + reach) if errors < images else 1.0


def probabilities(
    model: Model | Ensemble,
    images: UInt8[Tensor, "count channels height width"],
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    shifts: int = 0,
) -> Float[Tensor, "count classes"]:
    """The probability of each class for each image, computed in batches; on the CPU. Leaves the model on `device`.

    Raises `InputError` for images that are not bytes, and if the network overflows.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise InputError(
            f"images must be uint8 of shape (N, C, H, W), not {images.dtype} of shape {tuple(images.shape)}; "
            "a model itself takes floats: model.probabilities"
        )
    device = pick_device(device)
    model.to(device).eval()
    size = batch_size or images_at_once(images.shape[1:])
    return torch.cat([_probabilities(model, part.to(device), shifts) for part in images.split(size)])


@torch.inference_mode()
def detect(
    model: Detector, images: UInt8[Tensor, "count channels height width"], device: torch.device | str = "cpu"
) -> Detection:
    """What a detector says of each image, computed in batches; on the CPU. Leaves the model on `device`."""
    device = pick_device(device)
    model.to(device).eval()
    found = [model.detect(to_float(part.to(device))) for part in images.split(BATCH)]
    return Detection(*(torch.cat([_answers(each) for each in parts]) for parts in zip(*found, strict=True)))


def _probabilities(
    model: Model | Ensemble, images: UInt8[Tensor, "batch channels height width"], shifts: int
) -> Float[Tensor, "batch classes"]:
    reach = range(-shifts, shifts + 1)
    with torch.inference_mode():
        answers = [
            model.probabilities(to_float(_shifted(images, down, right))).float() for down in reach for right in reach
        ]
        return _answers(torch.stack(answers).mean(dim=0))


def _answers(answers: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """On the CPU. Raises `InputError` if the network has overflowed."""
    answers = answers.float().cpu()
    if not bool(answers.isfinite().all()):
        raise InputError("the weights of this model give no finite answer: they are too large, or damaged")
    return answers


def _shifted(
    images: UInt8[Tensor, "batch channels height width"], down: int, right: int
) -> UInt8[Tensor, "batch channels height width"]:
    if not (down or right):
        return images
    offsets = torch.tensor([[down, right]], device=images.device).expand(len(images), 2)
    return shift(images, offsets, max(abs(down), abs(right)))

"""How often a model is wrong."""

import math
import statistics
import time
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from capsnet.data.image_set import ImageSet, to_float
from capsnet.devices import pick_device
from capsnet.models import Model


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a test: `error` in percent, the predicted class of every image, and how long it took."""

    images: int
    errors: int
    seconds: float
    predictions: Tensor

    @property
    def error(self) -> float:
        return 100 * self.errors / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `error`, in percent: what the images, being a sample, leave open."""
        low, high = wilson_interval(self.errors, self.images)
        return 100 * low, 100 * high


def evaluate(model: Model, image_set: ImageSet, device: torch.device | str = "cpu") -> Evaluation:
    """Test a model on a set. Raises `InputError` if the images or classes are not this model's."""
    image_set.require(model.config["in_shape"], model.config["num_classes"])
    started = time.perf_counter()
    predictions = probabilities(model, image_set.images, device).argmax(dim=1)
    errors = int((predictions != image_set.labels).sum())
    return Evaluation(len(image_set), errors, time.perf_counter() - started, predictions)


def wilson_interval(errors: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
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
    model: Model,
    images: UInt8[Tensor, "count channels height width"],
    device: torch.device | str = "cpu",
    batch_size: int = 500,
) -> Float[Tensor, "count classes"]:
    """The probability of each class for each image, computed in batches; on the CPU. Leaves the model on `device`."""
    device = pick_device(device)
    model.to(device).eval()
    with torch.inference_mode():
        parts = [model.probabilities(to_float(batch.to(device))).float().cpu() for batch in images.split(batch_size)]
    return torch.cat(parts)

"""How often a model is wrong."""

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


def evaluate(model: Model, image_set: ImageSet, device: torch.device | str = "cpu") -> Evaluation:
    """Test a model on a set. Raises `InputError` if the images or classes are not this model's."""
    image_set.require(model.config["in_shape"], model.config["num_classes"])
    started = time.perf_counter()
    predictions = probabilities(model, image_set.images, device).argmax(dim=1)
    errors = int((predictions != image_set.labels).sum())
    return Evaluation(len(image_set), errors, time.perf_counter() - started, predictions)


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

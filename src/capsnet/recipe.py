"""How to train."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from capsnet.checks import number, whole
from capsnet.errors import InputError

Decay = Literal["exponential", "cosine", "linear"]

RANGES: dict[str, tuple[int | float, int | float]] = {
    **{"epochs": (1, 1_000_000), "batch_size": (1, 1_000_000), "seed": (0, 2**63 - 1)},
    **dict.fromkeys(("learning_rate", "final_learning_rate", "weight_decay"), (0, math.inf)),
    **{"warmup": (0, 1), "ema_decay": (0, 1), "scale": (0, 1), "stop_at_error": (0, 100)},
    **{"max_shift": (0, 10_000), "crop": (0, 10_000), "rotation": (0, 360), "shear": (0, 100), "elastic": (0, 1000)},
}
"""From and to; of some shares, and of the error to stop at, the end itself is refused too."""


@dataclass(frozen=True)
class Recipe:
    """How to train: with data, model and seed, all that decides which weights come out."""

    epochs: int = 10
    """Times that every training image is seen."""
    batch_size: int = 128
    """Images in a step."""
    learning_rate: float = 0.001
    """Adam's rate at its highest."""
    final_learning_rate: float = 0.0003
    """The rate at the end: it falls over the whole run."""
    decay: Decay = "exponential"
    """How the rate falls."""
    warmup: float = 0.0
    """Share of the run in which the rate first rises from zero; with cosine decay this is the one-cycle schedule."""
    weight_decay: float = 0.0
    """Each step takes this share of the rate from every weight (decoupled, as in AdamW); biases keep theirs."""
    ema_decay: float = 0.0
    """Keep an exponential moving average of the weights as the result, with this decay (0.999, say); 0 for none."""
    max_shift: int = 2
    """Shift training images by up to this many pixels in each direction; pairs are shifted by their set."""
    rotation: float = 0.0
    """Turn training images by up to this many degrees either way."""
    scale: float = 0.0
    """Make training images larger or smaller by up to this share, in each axis for itself."""
    shear: float = 0.0
    """Shear training images: each row moves up to this many pixels from the one above it."""
    elastic: float = 0.0
    """Bend training images: each pixel is taken from elsewhere by a smooth random field, so many pixels in each axis
    (its standard deviation)."""
    crop: int = 0
    """Train on random squares of this many pixels a side, and test on the central one; 0 for whole images."""
    stop_at_error: float = 0.0
    """Stop after the first epoch with a held-out error of at most this many percent; 0 for never."""
    seed: int = 0
    """Decides initial weights, order and augmentation."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name in RANGES:
                check: Any = whole if field.type in (int, "int") else number
                check(field.name.replace("_", " "), getattr(self, field.name), *RANGES[field.name])
        if not 0 < self.final_learning_rate <= self.learning_rate:
            raise InputError("the learning rate must be above 0 and fall: learning_rate ≥ final_learning_rate > 0")
        if self.decay not in get_args(Decay):
            raise InputError(f"unknown decay {self.decay!r}; there are: {', '.join(get_args(Decay))}")
        for name in ("warmup", "scale", "stop_at_error", "ema_decay"):
            low, high = RANGES[name]
            if getattr(self, name) == high:
                raise InputError(f"{name.replace('_', ' ')} must be at least {low:g} and below {high:g}, not {high:g}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0: up in a line, then down to the final rate at the last step."""
        rising = round(self.warmup * self.epochs * steps_per_epoch)
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        last = self.epochs * steps_per_epoch - 1
        done = min((step - rising) / max(last - rising, 1), 1.0)
        highest, final = self.learning_rate, self.final_learning_rate
        if self.decay == "exponential":
            return highest * (final / highest) ** done
        fallen = done if self.decay == "linear" else (1 - math.cos(math.pi * done)) / 2
        return highest + (final - highest) * fallen


def is_recipe(noted: object, recipe: Recipe) -> bool:
    """Whether a recipe that was written down as JSON is this one; settings that are newer had their defaults then."""
    try:
        return isinstance(noted, dict) and Recipe(**noted) == recipe
    except (TypeError, InputError):
        return False


PAPER = Recipe(epochs=50, final_learning_rate=0.0001)
"""The paper's: shifts of up to 2 pixels, Adam, an exponentially falling rate, and nothing else.

How long, in which batches and how far the rate falls the paper does not say; these are ours.
"""

BEST = Recipe(
    epochs=50,
    batch_size=64,
    learning_rate=0.004,
    final_learning_rate=0.00001,
    decay="cosine",
    warmup=0.1,
    weight_decay=0.01,
    ema_decay=0.999,
    rotation=10.0,
    scale=0.1,
    shear=0.1,
)
"""Put together by hand; batches and rate then chosen on held-out training images, in short runs: results/recipes.md."""

RECIPES = {"everyday": Recipe(), "paper": PAPER, "best": BEST}

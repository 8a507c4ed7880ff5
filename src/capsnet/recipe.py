"""How to train."""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from capsnet.errors import InputError

Decay = Literal["exponential", "cosine", "linear"]


def _check_number(name: str, value: object, whole: bool) -> None:
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        raise InputError(f"{_words(name)} must be a {'whole' if whole else 'finite'} number, not {value!r}")


def _words(name: str) -> str:
    return name.replace("_", " ")


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
            value = getattr(self, field.name)
            if field.name != "decay":
                _check_number(field.name, value, whole=field.type in (int, "int"))
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(f"epochs and batch size must be at least 1, not {self.epochs} and {self.batch_size}")
        if not 0 < self.final_learning_rate <= self.learning_rate:
            raise InputError("the learning rate must be above 0 and fall: learning_rate ≥ final_learning_rate > 0")
        if self.decay not in get_args(Decay):
            raise InputError(f"unknown decay {self.decay!r}; there are: {', '.join(get_args(Decay))}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warm-up is a share of the run, at least 0 and below 1, not {self.warmup}")
        for name in ("weight_decay", "max_shift", "crop", "rotation", "shear", "elastic"):
            if getattr(self, name) < 0:
                raise InputError(f"{_words(name)} must not be negative, but it is {getattr(self, name)}")
        if not 0 <= self.scale < 1:
            raise InputError(f"scale must be at least 0 and below 1, not {self.scale}")
        if not 0 <= self.stop_at_error < 100:
            raise InputError(
                f"stop at error must be a percentage of at least 0 and below 100, not {self.stop_at_error}"
            )
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be 0 to 2**63 - 1, not {self.seed}")
        if not 0 <= self.ema_decay < 1:
            raise InputError("EMA decay must be at least 0 and below 1")

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

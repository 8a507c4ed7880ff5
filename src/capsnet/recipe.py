"""How to train."""

from dataclasses import dataclass, fields
from math import isfinite

from capsnet.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How to train: with data, model and seed, all that decides which weights come out."""

    epochs: int = 10
    """Times that every training image is seen."""
    batch_size: int = 128
    """Images in a step."""
    learning_rate: float = 0.001
    """Adam's rate at the start."""
    final_learning_rate: float = 0.0003
    """The rate at the end: it falls exponentially over the whole run."""
    max_shift: int = 2
    """Training images are shifted by up to this many pixels in each direction, at random."""
    ema_decay: float = 0.0
    """Keep an exponential moving average of the weights as the result, with this decay (0.999, say); 0 for none."""
    seed: int = 0
    """Decides initial weights, order and shifts."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type in (int, "int")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not isfinite(value):
                kind = "whole" if whole else "finite"
                raise InputError(f"{field.name.replace('_', ' ')} must be a {kind} number, not {value!r}")
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(f"epochs and batch size must be at least 1, not {self.epochs} and {self.batch_size}")
        if not 0 < self.final_learning_rate <= self.learning_rate:
            raise InputError("the learning rate must be above 0 and fall: learning_rate ≥ final_learning_rate > 0")
        if self.max_shift < 0:
            raise InputError(f"max shift must not be negative, but it is {self.max_shift}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be 0 to 2**63 - 1, not {self.seed}")
        if not 0 <= self.ema_decay < 1:
            raise InputError("EMA decay must be at least 0 and below 1")

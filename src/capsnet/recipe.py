"""How to train."""

from dataclasses import dataclass

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
    final_learning_rate: float = 0.0001
    """The rate at the end: it falls exponentially over the whole run."""
    max_shift: int = 2
    """Training images are shifted by up to this many pixels in each direction, at random."""
    ema_decay: float = 0.0
    """Keep an exponential moving average of the weights with this decay (0.999, say) as the result; 0 for none."""
    seed: int = 0
    """Decides initial weights, order and shifts."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError("epochs and batch size must be at least 1")
        if not 0 < self.final_learning_rate <= self.learning_rate:
            raise InputError("the learning rate must be above 0 and fall: learning_rate ≥ final_learning_rate > 0")
        if self.max_shift < 0 or self.seed < 0:
            raise InputError("max shift and seed must not be negative")
        if not 0 <= self.ema_decay < 1:
            raise InputError("EMA decay must be at least 0 and below 1")

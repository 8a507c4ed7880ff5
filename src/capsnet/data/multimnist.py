"""MultiMNIST: pairs of overlaid digits, made when they are asked for, any number of them (paper, section 6)."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from capsnet.checks import whole
from capsnet.data.augment import shift
from capsnet.data.draws import below, draw
from capsnet.data.image_set import ImageSet, check_fit
from capsnet.data.mnist import load_mnist
from capsnet.errors import InputError

TRAIN_PAIRS = 60_000
"""Pairs in a nominal epoch of training: each digit is once the first."""
TEST_PAIRS = 100_000
"""Pairs in the test set: the beginning of the 10,000,000 of the paper."""

MAX_SHIFT = 1000


@dataclass(frozen=True)
class Pairs:
    """A batch of pairs: both digits overlaid, their classes, and what each looks like alone.

    The classes of a pair are never equal. `images` are the two `digits` added and clipped at 255.
    """

    images: UInt8[Tensor, "batch channels height width"]
    labels: Int64[Tensor, "batch 2"]
    digits: UInt8[Tensor, "batch 2 channels height width"]


@dataclass(frozen=True)
class PairSet:
    """`count` pairs of overlaid images of different classes, each shifted by up to `max_shift` pixels either way.

    A sequence: `batch(start, stop)` gives the same pairs however it is cut, on every device, and a longer set of the
    same seed begins with a shorter one. In every `len(digits)` pairs from the start on, each digit is the first of a
    pair once; the second is any digit of another class. A thousand rounds are the paper's protocol.

    Raises `InputError` if there is nothing to pair.
    """

    digits: ImageSet
    count: int
    seed: int = 0
    max_shift: int = 4

    def __post_init__(self) -> None:
        whole("the number of pairs", self.count, 1, 2**62)
        whole("max shift", self.max_shift, 0, MAX_SHIFT)
        whole("seed", self.seed, 0, 2**64 - 1)
        if self.num_classes < 3:
            raise InputError("of two classes every pair shows both, so there is nothing to tell apart")
        if len(self.digits.labels.unique()) < 2:
            raise InputError("pairs are of different classes, but all images of this set are of one")

    def __len__(self) -> int:
        return self.count

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        channels, height, width = self.digits.image_shape
        return channels, height + 2 * self.max_shift, width + 2 * self.max_shift

    @property
    def num_classes(self) -> int:
        return self.digits.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.digits.class_names

    def require(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Raises `InputError` unless a model for such images and so many classes fits this set."""
        check_fit(image_shape, num_classes, self.image_shape, self.num_classes)

    def batch(self, start: int, stop: int) -> Pairs:
        """The pairs `start` to `stop` (or to the end, if that comes first), on the device of the digits."""
        if not 0 <= start < self.count or stop <= start:
            raise ValueError(f"there are no pairs {start} to {stop} in a set of {self.count}")
        stop = min(stop, self.count)
        numbers = draw(self.seed, start, stop)
        chosen = self._move(self.members(start, stop))
        offsets = self._move(below(numbers[:, 1:5], 2 * self.max_shift + 1) - self.max_shift)
        images = torch.nn.functional.pad(self.digits.images[chosen.flatten()], [self.max_shift] * 4)
        digits = shift(images, offsets.view(-1, 2), self.max_shift).unflatten(0, (-1, 2))
        return Pairs(overlay(digits), self.digits.labels[chosen], digits)

    def members(self, start: int, stop: int) -> Int64[np.ndarray, "batch 2"]:
        """Which two digits the pairs `start` to `stop` are made of."""
        first = self._firsts(start, stop)
        return np.stack([first, self._others(first, draw(self.seed, start, stop)[:, 0])], axis=1)

    def to(self, device: torch.device | str) -> "PairSet":
        """The same pairs, made on `device`."""
        return replace(self, digits=self.digits.to(device))

    def reseeded(self, seed: int) -> "PairSet":
        """Other pairs of the same digits, for another epoch."""
        return replace(self, seed=seed)

    def first(self, count: int) -> "PairSet":
        """The first pairs only, for a quick look."""
        return replace(self, count=min(count, self.count))

    def hold_out(self, count: int, seed: int = 0) -> tuple["PairSet", "PairSet"]:
        """Split the digits into (the rest, `count` drawn at random by `seed`); each part makes pairs of its own.

        Of the digits held out there are `count` pairs. For choosing without the test set.
        """
        rest, held_out = self.digits.hold_out(count, seed)
        return replace(self, digits=rest), replace(self, digits=held_out, count=count)

    def _firsts(self, start: int, stop: int) -> Int64[np.ndarray, " batch"]:
        """Positions of the first digits: in each round all of them, in an order of its own."""
        rounds, places = np.divmod(np.arange(start, stop), len(self.digits))
        orders = {turn: _order(self.seed, turn, len(self.digits)) for turn in range(rounds[0], rounds[-1] + 1)}
        return np.concatenate([order[places[rounds == turn]] for turn, order in orders.items()])

    def _others(self, first: Int64[np.ndarray, " batch"], numbers: np.ndarray) -> Int64[np.ndarray, " batch"]:
        """For each first digit one of another class, all equally likely."""
        labels, sorted_by_class, starts, sizes = self._classes
        own = labels[first]
        place = below(numbers, len(labels) - sizes[own])  # in a list sorted by class that leaps over its own
        return sorted_by_class[place + np.where(place >= starts[own], sizes[own], 0)]

    @cached_property
    def _classes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Labels; positions sorted by class; for each class where it starts among those, and how large it is."""
        labels = self.digits.labels.cpu().numpy()
        sizes = np.bincount(labels, minlength=self.num_classes)
        return labels, np.argsort(labels, kind="stable"), np.cumsum(sizes) - sizes, sizes

    def _move(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.digits.images.device)


def overlay(digits: UInt8[Tensor, "batch 2 channels height width"]) -> UInt8[Tensor, "batch channels height width"]:
    """Both digits of each pair added, and clipped at 255."""
    bottom, top = digits.unbind(1)
    return bottom + torch.minimum(top, 255 - bottom)


def load_multimnist(split: str) -> PairSet:
    """Training digits on training digits, 60,000 pairs an epoch, or test digits on test digits, 100,000 pairs.

    `dataclasses.replace(test_set, count=10_000_000)` is the paper's full test set and begins with the same pairs.
    """
    return PairSet(load_mnist(split), TRAIN_PAIRS if split == "train" else TEST_PAIRS)


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> Int64[np.ndarray, " count"]:
    numbers = draw(seed, turn * count, (turn + 1) * count, stream=1)
    return np.argsort(numbers[:, 0], kind="stable")

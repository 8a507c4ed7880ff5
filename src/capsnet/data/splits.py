"""Which pictures of a user's set are to train on and which to test on."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Int64

from capsnet.errors import InputError

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""What the splits are called in people's folders, columns and arrays."""

TEST_SHARE = 0.2
"""Of each class, where nothing says which pictures are to test on."""

ALL = "all"
"""Of a set without splits of its own every picture, and of others the split to test on: for a run of another set."""

DRAWN = f" ({TEST_SHARE:.0%} of each class)".replace("%", " %")
"""What is told of pictures to test on that were drawn."""

MAX_CLASSES_TOLD, MAX_NAME_TOLD = 12, 40
"""Of so many classes name and numbers are told, and so many letters of a name."""

SEED = 0


def split_named(name: str) -> str | None:
    """ "train", "val" or "test", if that is what `name` means."""
    return next((split for split, names in NAMES.items() if name.strip().casefold() in names), None)


def shuffled(keys: Iterable[str]) -> Int64[np.ndarray, " count"]:
    """All positions, in an order that looks random and depends on nothing but each picture's own key.

    So pictures that are added or removed leave the order of the others as it was, and the first few pictures of a set
    are of any class.
    """
    ranks = bytearray()
    for key in keys:  # of which there may be millions
        ranks += hashlib.sha256(f"{SEED}:{key}".encode(errors="surrogateescape")).digest()[:8]
    return np.argsort(np.frombuffer(ranks, ">u8"), kind="stable")


def draw_test(
    keys: Sequence[str], labels: Int64[np.ndarray, " count"], class_names: Sequence[str], place: str
) -> dict[str, Int64[np.ndarray, " some"]]:
    """Positions to train on and to test on: of each class `TEST_SHARE`, at least one picture, is to test on.

    The first ones in the order of `shuffled`: as a class grows or shrinks, those at the border change sides.

    Raises `InputError` if a class has one picture only.
    """
    order = shuffled(keys)
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], np.arange(len(class_names) + 1))
    tested = np.zeros(len(keys), bool)
    for name, (start, end) in zip(class_names, pairwise(starts), strict=True):
        own = by_class[start:end]
        if len(own) == 1:
            raise InputError(f"the class {name!r} of {place} has one picture; it takes one to train and one to test on")
        tested[own[: max(1, round(TEST_SHARE * len(own)))]] = len(own) > 0
    return {"train": order[~tested[order]], "test": order[tested[order]]}


def with_test(splits: Iterable[str]) -> dict[str, str]:
    """Under which name each split that is there is used: without test pictures, those for validation are tested on."""
    there = set(splits)
    renamed = {"val": "test"} if "test" not in there else {}
    return {split: renamed.get(split, split) for split in NAMES if split in there}


def to_test_on(splits: Iterable[str]) -> str | None:
    """Which of a set's own splits is to test on, if there is one: `test`, or else `val`."""
    there = set(splits)
    return next((split for split in ("test", "val") if split in there), None)


def check_classes(
    place: str,
    class_names: Sequence[str],
    labels: Mapping[str, Int64[np.ndarray, " count"]],
    complete: bool = True,
    fewest: int = 2,
) -> None:
    """Raises `InputError` if there are too few classes, if labels are none of the classes, or if a class is missing.

    Unless `complete`, a split need not have pictures of every class.
    """
    if not class_names:
        raise InputError(f"there are no pictures in {place}")
    if len(class_names) < fewest:
        raise InputError(f"{place} has one class only, {class_names[0]!r}; there must be at least 2 to tell apart")
    for split, own in labels.items():
        if not len(own):
            raise InputError(f"{place} has no pictures in {split}")
        if own.min() < 0 or own.max() >= len(class_names):
            wrong = int(own.min() if own.min() < 0 else own.max())
            raise InputError(f"{place} has the label {wrong} in {split}; labels are 0 to {len(class_names) - 1}")
        missing = np.flatnonzero(np.bincount(own, minlength=len(class_names)) == 0)
        if complete and len(missing):
            others = [other for other in labels if (labels[other] == missing[0]).any()]
            raise InputError(
                f"the class {class_names[missing[0]]!r} of {place} has no pictures in {split}"
                + (f", but has in {others[0]}; each must show the same classes" if others else "")
            )


def classes_told(class_names: Sequence[str], labels: Mapping[str, Int64[np.ndarray, " count"]]) -> str:
    """Names of the first few classes, and how many pictures each has in each split: `train + test: cats 8 + 2, …`."""
    last = len(class_names)  # what a damaged cache has beyond is refused when a set is made of it
    counts = [np.bincount(own[(own >= 0) & (own < last)], minlength=last) for own in labels.values()]
    told = [
        f"{shortened(name)} {' + '.join(f'{own[number]:,}' for own in counts)}"
        for number, name in enumerate(class_names[:MAX_CLASSES_TOLD])
    ]
    more = len(class_names) - len(told)
    return f"{' + '.join(labels)}: {', '.join(told)}{f' and {more:,} classes more' if more else ''}"


def shortened(text: str) -> str:
    """Short enough for a line that tells of it."""
    return text if len(text) <= MAX_NAME_TOLD else f"{text[: MAX_NAME_TOLD - 1]}…"


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes as people sort them: 2 before 10."""

    def parts(name: str) -> tuple[list[tuple[str, int, str]], str]:
        # Numbers by their length, then by their digits: Python makes none of more than 4,300.
        found = re.findall(r"(\D*)0*(\d*)", name)
        return [(text.casefold(), len(digits), digits) for text, digits in found], name

    return sorted(names, key=parts)

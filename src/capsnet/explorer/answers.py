"""What the models say: an image in, data out. No page in here."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from capsnet import pretrained, runs
from capsnet.data import ImageSet, PairSet
from capsnet.errors import InputError
from capsnet.evaluation import probabilities
from capsnet.explorer.face_answers import Detectors
from capsnet.insight.agreement import Agreement, agree
from capsnet.insight.equivariance import capsules_of, transform
from capsnet.insight.overlap import Overlap, separate
from capsnet.insight.perturbations import decode
from capsnet.models import CapsNet, CapsuleDetector, CNNDetector, Model
from capsnet.runs import Run

ITEMS = 10
"""So many test images are offered at a time."""
Image = UInt8[Tensor, "channels height width"]


@dataclass(frozen=True)
class Subject:
    """A CapsNet with a decoder, and test images to pick from, where there are any."""

    run: Run
    model: CapsNet
    test_set: ImageSet | PairSet | None
    about: str
    """How large the model is, and how often it was wrong in its test."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.model.config["in_shape"]

    @property
    def names(self) -> tuple[str, ...]:
        return self.run.class_names


@dataclass(frozen=True)
class Explorer:
    """What the pages show: one thing on an image, two things, and a CNN to compare with where there is one."""

    single: Subject
    pair: Subject
    cnn: Model | None
    about_cnn: str
    faces: Detectors | None = None


def open_explorer(folder: Path | None) -> Explorer:
    """The small models inside the package; a run of the user's takes the place of the one that it is like.

    Raises `InputError` if the run cannot be read, or has no decoder to look through.
    """
    single, pair = (_subject(pretrained.folder(name)) for name in ("mnist", "multimnist"))
    detector = None if folder is None else runs.load(folder)
    if isinstance(detector, CNNDetector):
        raise InputError(f"the model in {folder} is no CapsNet; the explorer shows capsules")
    if folder is not None and not isinstance(detector, CapsuleDetector):
        own = _subject(folder)
        single, pair = (single, own) if isinstance(own.test_set, PairSet) else (own, pair)
    beside = pretrained.folder("mnist-cnn")
    cnn = runs.load(beside)
    fits = single.run.data == "mnist" and single.shape == cnn.config["in_shape"]
    return Explorer(single, pair, cnn if fits else None, _about(beside, cnn), _detectors(detector, folder))


def _detectors(own: Model | None, folder: Path | None) -> Detectors:
    """The user's detector, or that inside the package; beside it the CNN inside the package, if it sees the same."""
    places = [pretrained.folder(name) for name in ("faces", "faces-cnn")]
    if folder is not None and isinstance(own, CapsuleDetector):
        places[0] = folder
    capsule, cnn = (runs.load(place) for place in places)
    assert isinstance(capsule, CapsuleDetector)
    assert isinstance(cnn, CNNDetector)
    if capsule.config["in_shape"] != cnn.config["in_shape"]:
        return Detectors(capsule, None, (_about(places[0], capsule),))
    return Detectors(capsule, cnn, (_about(places[0], capsule), _about(places[1], cnn)))


def _subject(folder: Path) -> Subject:
    run = runs.open_run(folder)
    if not isinstance(run.model, CapsNet):
        raise InputError(f"the model in {folder} is no CapsNet; the explorer shows capsules")
    if run.model.decoder is None:
        raise InputError(f"{folder} was trained without a decoder (--no-decoder), so there is nothing to look at")
    try:
        test_set = runs.open_split(folder, run.data) if run.data else None
        if test_set:
            test_set.require(run.model.config["in_shape"], run.model.config["num_classes"])
    except InputError:  # its images are elsewhere; one can still draw and upload
        test_set = None
    return Subject(run, run.model, test_set, _about(folder, run.model))


def _about(folder: Path, model: Model) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    error = runs.read_report(folder).get("test_error")
    tested = "" if error is None else f", wrong on {error:.2g} % of its test images"
    return f"{type(model).__name__}, {count:,} parameters{tested}"


def to_pick_from(subject: Subject, turn: int) -> list[tuple[int, str]]:
    """Numbers and names of some test images; with another `turn`, of others. Of single things, one of each class."""
    if subject.test_set is None:
        return []
    if isinstance(subject.test_set, PairSet):
        start = ITEMS * turn % (len(subject.test_set) - ITEMS)
        labels = subject.test_set.batch(start, start + ITEMS).labels.tolist()
        return [(start + k, " and ".join(subject.names[each] for each in pair)) for k, pair in enumerate(labels)]
    places = [torch.nonzero(subject.test_set.labels == k)[:, 0].tolist() for k in range(min(len(subject.names), ITEMS))]
    return [(numbers[turn % len(numbers)], subject.names[k]) for k, numbers in enumerate(places) if numbers]


def pick(subject: Subject, number: int) -> Image:
    """The test image of this number. Raises `InputError` if there is none."""
    if subject.test_set is None or not 0 <= number < len(subject.test_set):
        raise InputError(f"there is no test image {number}")
    return subject.test_set.batch(number, number + 1).images[0]


def class_number(subject: Subject, name: object) -> int:
    """Raises `InputError` if no class has this name."""
    if name not in subject.names:
        raise InputError(f"there is no class {str(name)[:20]!r}; there are: {', '.join(subject.names)}")
    return subject.names.index(str(name))


@dataclass(frozen=True)
class Look:
    """One image, what its capsules say, and what the winner draws."""

    agreement: Agreement
    winner: int
    reconstruction: Float[Tensor, "channels height width"]


def look(subject: Subject, image: Image) -> Look:
    agreement = agree(subject.model, image, subject.names)
    winner = int(agreement.lengths.argmax())
    return Look(agreement, winner, draw(subject, winner, agreement.capsules[winner].tolist()))


@torch.inference_mode()
def draw(subject: Subject, number: object, capsule: object) -> Float[Tensor, "channels height width"]:
    """What a capsule of class `number` with these components looks like.

    Raises `InputError` unless there is such a class, and they are as many numbers as a capsule has dimensions.
    """
    dim = subject.model.config["capsule_dim"]
    if not isinstance(number, int) or not 0 <= number < len(subject.names):
        raise InputError(f"classes are numbered 0 to {len(subject.names) - 1}, and there is no {str(number)[:20]}")
    if not isinstance(capsule, list) or len(capsule) != dim or not all(map(_is_component, capsule)):
        raise InputError(f"a capsule of this model is {dim} numbers from -100 to 100")
    return decode(subject.model, torch.tensor([capsule], dtype=torch.float32), number)[0]


def _is_component(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= 100


def tell_apart(subject: Subject, image: Image, forced: tuple[int | None, int | None] = (None, None)) -> Overlap:
    """Two things on one image. A class that is not forced is that of the longest capsule that is still free."""
    order = separate(subject.model, image, subject.names).lengths.argsort(descending=True, stable=True).tolist()
    free = iter(k for k in order if k not in forced)
    classes = torch.tensor([next(free) if k is None else k for k in forced])
    return separate(subject.model, image, subject.names, classes)


class Move(NamedTuple):
    """A way to move an image: how the page calls it, from where to where, what changes nothing, and in what steps."""

    label: str
    low: float
    high: float
    still: float
    step: float

    def check(self, amount: object) -> float:
        if not isinstance(amount, int | float) or not self.low <= amount <= self.high:
            raise InputError(f"{self.label}: from {self.low} to {self.high}, not {str(amount)[:20]}")
        return float(amount)


MOVES = (
    Move("Turn to the left (degrees)", -60, 60, 0, 1),
    Move("Scale", 0.5, 1.5, 1, 0.02),
    Move("Shift to the right (pixels)", -10, 10, 0, 0.5),
    Move("Shift down (pixels)", -10, 10, 0, 0.5),
)


@dataclass(frozen=True)
class Turn:
    """An image turned, scaled and shifted; `number` is the class that won before, `angle` how far its capsule turned.

    `angle` is in degrees. `cnn` is what the CNN says, where there is one.
    """

    image: Image
    number: int
    lengths: Float[Tensor, " classes"]
    angle: float
    reconstruction: Float[Tensor, "channels height width"]
    cnn: Float[Tensor, " classes"] | None


def turn(explorer: Explorer, image: Image, *amounts: object) -> Turn:
    """Move an image by amounts of each of `MOVES`. Raises `InputError` if there are others, or one is too large."""
    if len(amounts) != len(MOVES):
        raise InputError(f"there are {len(MOVES)} ways to move an image, not {len(amounts)}")
    rotation, scale, right, down = (move.check(amount) for move, amount in zip(MOVES, amounts, strict=True))
    subject = explorer.single
    moved = transform(image[None], rotation=rotation, scale=scale, down=down, right=right)
    before, after = capsules_of(subject.model, torch.cat([image[None], moved]))
    number = int(before.norm(dim=1).argmax())
    cosine = torch.cosine_similarity(before[number], after[number], dim=0).clamp(-1, 1)
    return Turn(
        moved[0],
        number,
        after.norm(dim=1),
        float(cosine.arccos().rad2deg()),
        draw(subject, number, after[number].tolist()),
        None if explorer.cnn is None else probabilities(explorer.cnn, moved)[0],
    )

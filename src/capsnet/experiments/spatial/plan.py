"""What is trained on what: the models compared, the tasks, and which part of the test needs which."""

import math
from dataclasses import dataclass, replace
from typing import Any

from capsnet.data import ImageSet, PosedSet, open_dataset
from capsnet.data.faces import KINDS, SIZE, SPLITS, make_faces, mixed
from capsnet.data.mnist import load_mnist
from capsnet.errors import InputError
from capsnet.recipe import Recipe

CAPSULES: dict[str, Any] = {"conv_channels": 32, "primary_types": 8, "decoder_hidden": (128, 256)}
FACES_DENSE, DIGITS_DENSE = 247, 602
"""The sizes of the CNN's dense layer at which it has as many parameters as the CapsNet with its decoder, to 1 %."""
IMAGES = SPLITS["train"]
FEWER = (625, 1250, 2500, 5000)
NON_FACES = KINDS[1:]
SEEDS = 3

PARTS = {
    "a": "non-faces of a kind that was not in training",
    "b": "faces at orientations, sizes and positions outside the training range",
    "c": "images needed to reach a given accuracy",
    "d": "orientation and size, read from capsule and CNN",
    "e": "what a linear read-out finds of a digit's transformation",
    "f": "adversarial digits",
}


@dataclass(frozen=True)
class Variant:
    """A model that is compared; `faces` and `digits` are its name in `MODELS` and its config for each."""

    name: str
    about: str
    faces: tuple[str, dict[str, Any]]
    digits: tuple[str, dict[str, Any]] | None
    """None where the digits have nothing to say about it."""

    @property
    def is_capsnet(self) -> bool:
        return self.faces[0] == "detector"


def _variants() -> list[Variant]:
    faces, digits = {"in_shape": (1, SIZE, SIZE), "num_classes": 2}, {"in_shape": (1, 28, 28), "num_classes": 10}
    variants = []
    for iterations, decoder in ((3, True), (3, False), (1, True), (1, False)):
        name = f"capsnet-r{iterations}{'-rec' if decoder else ''}"
        about = f"CapsNet r={iterations}, {'reconstruction' if decoder else 'no reconstruction'}"
        config = {**CAPSULES, "iterations": iterations, "decoder": decoder}
        variants.append(Variant(name, about, ("detector", faces | config), ("capsnet", digits | config)))
    cnn = faces | {"dense": FACES_DENSE}
    variants.append(Variant("cnn", "CNN", ("cnn-detector", cnn), ("small-cnn", digits | {"dense": DIGITS_DENSE})))
    whole = variants[0].faces[1] | {"objective": "cross-entropy"}
    return [
        *variants,
        Variant("capsnet-entropy", "CapsNet r=3, reconstruction, cross-entropy", ("detector", whole), None),
        Variant("cnn-margin", "CNN, margin loss", ("cnn-detector", cnn | {"objective": "margin"}), None),
        Variant("cnn-rec", "CNN, reconstruction", ("cnn-detector", cnn | {"decoder_hidden": (128, 256)}), None),
    ]


VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _variants()}
MAIN = tuple(name for name, variant in VARIANTS.items() if variant.digits)
"""Those that the issue is between; the others show what a difference is due to."""

RECIPES = {
    # Tuned alike on validation images (scripts/tune_spatial.py). Which is quicker depends on the machine.
    True: Recipe(epochs=4, batch_size=64, learning_rate=0.002, final_learning_rate=0.0001, decay="cosine", max_shift=0),
    False: Recipe(
        epochs=4, batch_size=64, learning_rate=0.002, final_learning_rate=0.0001, decay="cosine", max_shift=0
    ),
}
"""For capsules (True) and CNNs on faces."""
DIGIT_EPOCHS = 1

TASKS = (
    "all",
    *(f"without-{kind}" for kind in NON_FACES),
    *(f"images-{count}" for count in FEWER),
    "painted",
    "digits",
)
"""What a model is trained on: faces and all kinds of non-faces, or all but one, or fewer images, or painted ones, or
MNIST."""


def tasks_of(parts: tuple[str, ...]) -> list[str]:
    """The tasks that these parts need; all, if there are none. Raises `InputError` for an unknown part."""
    for part in parts:
        if part not in PARTS:
            raise InputError(f"unknown part {part!r} of spatial; there are: {', '.join(PARTS)}")
    needed = {
        **{"a": "without", "b": ("all", "painted"), "c": ("all", "images"), "d": "all", "e": "digits", "f": "digits"},
    }
    return [task for task in TASKS if any(task.startswith(needed[part]) for part in parts or PARTS)]


@dataclass(frozen=True)
class Run:
    """One model trained on one task from one seed."""

    variant: Variant
    task: str
    seed: int
    epochs: int | None = None
    """Instead of the task's own."""

    @property
    def name(self) -> str:
        epochs = f"-{self.epochs}-epochs" if self.epochs else ""
        return f"{self.variant.name}-{self.task}{epochs}-seed-{self.seed}"

    @property
    def model(self) -> tuple[str, dict[str, Any]]:
        kind = self.variant.digits if self.task == "digits" else self.variant.faces
        assert kind is not None
        return kind

    @property
    def recipe(self) -> Recipe:
        """Of fewer images each is seen more often, by the root of how many fewer there are."""
        recipe = replace(RECIPES[self.variant.is_capsnet], seed=self.seed)
        if self.task == "digits":
            recipe = replace(recipe, epochs=DIGIT_EPOCHS, max_shift=2)
        if self.task.startswith("images-"):
            recipe = replace(recipe, epochs=round(recipe.epochs * math.sqrt(IMAGES / int(self.task[7:]))))
        return replace(recipe, epochs=self.epochs) if self.epochs else recipe

    def definition(self) -> dict[str, Any]:
        """All that decides the run's outcome except recipe and seed; as JSON has it."""
        name, config = self.model
        return {
            **{"variant": self.variant.name, "task": self.task, "model": name},
            "config": {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
        }


def runs_of(
    parts: tuple[str, ...] = (), variants: tuple[str, ...] = (), seeds: int = SEEDS, epochs: int | None = None
) -> list[Run]:
    """All runs that these parts and variants need, the first seed of all before the second of any."""
    for name in variants:
        if name not in VARIANTS:
            raise InputError(f"unknown model {name!r} in spatial; there are: {', '.join(VARIANTS)}")
    return [
        Run(variant, task, seed, epochs)
        for seed in range(seeds)
        for task in tasks_of(parts)
        for variant in VARIANTS.values()
        if (not variants or variant.name in variants) and _wanted(variant, task)
    ]


def _wanted(variant: Variant, task: str) -> bool:
    """Ablations are trained where the ability itself is tested, not where images are counted or digits transformed."""
    return variant.name in MAIN or task == "all" or task.startswith("without-")


def training_set(task: str) -> ImageSet | PosedSet:
    """What is trained on. Every other image is a face, and the faces are the same in all tasks."""
    if task == "digits":
        return load_mnist("train")
    if task == "all":
        return open_dataset("faces")
    if task == "painted":
        return make_faces(IMAGES, painted=True)
    if task.startswith("images-"):
        return make_faces(int(task[7:]))
    left = (kind for kind in NON_FACES if kind != task.removeprefix("without-"))
    return make_faces(IMAGES, kinds=mixed(*left))

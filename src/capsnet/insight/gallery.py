"""All figures that apply to a model and its test images, by name."""

from collections.abc import Callable, Iterator
from functools import partial

from matplotlib.figure import Figure

from capsnet.data import ImageSet, PairSet
from capsnet.errors import InputError
from capsnet.evaluation import evaluate
from capsnet.insight.agreement import agree, draw_agreement
from capsnet.insight.equivariance import draw_equivariance, sweep
from capsnet.insight.overlap import Overlap, draw_overlap, separate_with_wrong
from capsnet.insight.perturbations import draw_perturbations, perturb
from capsnet.insight.reconstructions import choose_examples, draw_reconstructions, reconstruct
from capsnet.insight.robustness import draw_robustness
from capsnet.models import CapsNet, Model
from capsnet.robustness import measure_robustness

ROBUSTNESS_IMAGES = 500
"""So many test images are turned, scaled, ... where a model stands beside, 44 times each."""
PAIRS = 6
"""So many pairs are told apart in the figure of overlaps."""

Draw = Callable[[bool], Figure]
"""Draws one figure; on a dark ground if told so."""


def figures_of(
    model: CapsNet, test_set: ImageSet | PairSet, number: int | None = None, beside: Model | None = None
) -> Iterator[tuple[str, Draw]]:
    """A name and a function that draws, for each figure that applies.

    One image is looked at closely: that at position `number`, by default the first that is recognised. `beside` is
    another model for the same images. Raises `InputError` if model, images and number do not fit.
    """
    for each in (model, beside):
        if each is not None:
            test_set.require(each.config["in_shape"], each.config["num_classes"])
    if number is not None and not 0 <= number < len(test_set):
        raise InputError(f"there is no test image {number}; they are numbered 0 to {len(test_set) - 1}")
    if isinstance(test_set, PairSet):
        yield from _of_pairs(model, test_set, number or 0)
    else:
        yield from _of_images(model, test_set, number, beside)


def _of_images(
    model: CapsNet, test_set: ImageSet, number: int | None, beside: Model | None
) -> Iterator[tuple[str, Draw]]:
    names = test_set.class_names
    predictions = evaluate(model, test_set).predictions
    if number is None:
        number = int((predictions == test_set.labels).int().argmax())
    image = test_set.batch(number, number + 1).images[0]
    if model.decoder is not None:
        chosen = choose_examples(test_set.labels, predictions, test_set.num_classes)
        yield "reconstructions", partial(draw_reconstructions, reconstruct(model, test_set, chosen))
        yield "perturbations", partial(draw_perturbations, perturb(model, image, names))
    yield "agreement", partial(draw_agreement, agree(model, image, names))
    yield "equivariance", partial(draw_equivariance, sweep(model, image, names, beside))
    if beside is not None:
        models = {"CapsNet": model, "another CapsNet" if isinstance(beside, CapsNet) else "CNN": beside}
        rows = measure_robustness(models, test_set.first(ROBUSTNESS_IMAGES))
        yield "robustness", partial(draw_robustness, rows)


def _of_pairs(model: CapsNet, test_set: PairSet, number: int) -> Iterator[tuple[str, Draw]]:
    names = test_set.class_names
    if model.decoder is not None:
        yield "overlap", partial(draw_overlap, overlaps(model, test_set, number))
    yield "agreement", partial(draw_agreement, agree(model, test_set.batch(number, number + 1).images[0], names))


def overlaps(model: CapsNet, test_set: PairSet, number: int = 0) -> list[Overlap]:
    """The first pairs from `number` on, told apart, with classes that are not there forced."""
    images = test_set.batch(number, number + PAIRS).images
    return [separate_with_wrong(model, image, test_set.class_names) for image in images]

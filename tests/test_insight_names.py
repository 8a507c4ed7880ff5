"""Names of classes in figures, short and long: nothing overlaps, nothing is cut off, and nothing is complained of."""

import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import capsnet
from capsnet.insight import agreement, datasets, equivariance, overlap, perturbations, reconstructions, style

NAMES = {
    "digits": [str(number) for number in range(10)],
    "words": [
        "basophil",
        "eosinophil",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "erythroblast",
        "platelet",
        "x",
        "y",
        "z",
    ],
    "sentences": [
        f"{number}: WWWWW, a name\nthat somebody took great care to find {'w' * 200}" for number in range(10)
    ],
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return capsnet.CapsNet((1, 28, 28), 10, conv_channels=4, primary_types=2, decoder_hidden=(4, 4)).eval()


def boxes(figure):
    """Where each text lies that is shown, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.findobj(Text)}
    drawn = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for label in ([axis.label, *axis.get_ticklabels()] if axes.axison else [])
        if label is axis.label or min(axis.get_view_interval()) <= at(label, axis) <= max(axis.get_view_interval())
    }
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text not in hidden - drawn]
    return {text: text.get_window_extent(canvas.get_renderer()) for text in shown}


def at(label, axis):
    return label.get_position()[0 if axis.axis_name == "x" else 1]


def draws(model, names):
    digits = capsnet.open_dataset("mnist", "test").first(40)
    digits = capsnet.ImageSet(digits.images, digits.labels, tuple(names))
    image = digits.images[0]
    pair = [overlap.separate_with_wrong(model, each, digits.class_names) for each in digits.images[:2]]
    chosen = torch.arange(12)
    seen = reconstructions.reconstruct(model, digits, chosen)
    classes = seen.classes.clone()
    classes[:6, 0] = classes[:6, 1]  # as if they had been recognised
    seen = replace(seen, classes=classes)
    yield reconstructions.draw_reconstructions(seen)
    yield perturbations.draw_perturbations(perturbations.perturb(model, image, digits.class_names))
    yield agreement.draw_agreement(agreement.agree(model, image, digits.class_names))
    yield equivariance.draw_equivariance(equivariance.sweep(model, image, digits.class_names))
    yield overlap.draw_overlap(pair)
    yield datasets.draw_datasets({"mine": digits})


@pytest.mark.parametrize("kind", NAMES)
def test_texts_do_not_overlap_and_are_not_cut_off(model, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, figure in enumerate(draws(model, NAMES[kind])):
            found = boxes(figure)
            width, height = figure.bbox.width, figure.bbox.height
            for text, box in found.items():
                place = (number, text.get_text(), box)
                assert -1 < box.x0 < box.x1 < width + 1, place
                assert -1 < box.y0 < box.y1 < height + 1, place
            for (one, first), (other, second) in itertools.combinations(found.items(), 2):
                wide = min(first.x1, second.x1) - max(first.x0, second.x0)
                tall = min(first.y1, second.y1) - max(first.y0, second.y0)
                assert wide < 1 or tall < 1, (number, one.get_text(), other.get_text())


def test_a_text_is_cut_where_it_no_longer_fits():
    assert style.fit_text("cat", 100, 9) == "cat"
    cut = style.fit_text("lymphocyte " * 3, 60, 9)
    assert cut.startswith("lymph")
    assert cut.endswith("…")
    assert 50 < style.text_width(cut, 9) <= 60
    assert style.fit_text("two\nlines", 100, 9) == "two lines"
    assert style.fit_lines("label", "7", 60, 9) == "label 7"
    assert style.fit_lines("label", "lymphocyte", 60, 9) == "label\nlymphocyte"

import numpy as np
import pytest
import torch
from torch import nn

import capsnet
from capsnet import robustness
from capsnet.data.draws import draw
from capsnet.insight.robustness import draw_robustness, robustness_table
from capsnet.robustness import TRANSFORMATIONS, Measurement, measure_robustness


@pytest.fixture(scope="module")
def digits():
    return capsnet.open_dataset("mnist", "test").select(slice(60))


class NearestDigit(capsnet.BaselineCNN):
    """Knows every image of a set by heart, and takes what it sees for the one that is closest."""

    def __init__(self, image_set, sharpness=1.0):
        nn.Module.__init__(self)  # none of the layers, only the interface
        self.image_set = image_set
        self.sharpness = sharpness
        self.config = {"in_shape": image_set.image_shape, "num_classes": image_set.num_classes}

    def probabilities(self, images):
        known = self.image_set.images.flatten(1).float() / 255
        nearest = torch.cdist(images.flatten(1), known * self.sharpness).argmin(dim=1)
        return nn.functional.one_hot(self.image_set.labels[nearest], 10).float()


@pytest.fixture(scope="module")
def rows(digits):
    models = {"nearest": NearestDigit(digits), "dark": NearestDigit(digits, sharpness=0.5)}
    return measure_robustness(models, digits)


def sample(digits, name, strength, seed=0):
    return TRANSFORMATIONS[name].apply(digits.images, float(strength), draw(seed, 0, len(digits)))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_neutral_strength_changes_nothing_and_any_other_does(digits, name):
    transformation = TRANSFORMATIONS[name]
    assert transformation.neutral in transformation.strengths
    for strength in transformation.strengths:
        assert sample(digits, name, strength).equal(digits.images) == (strength == transformation.neutral)


def test_rotation_goes_either_way_by_the_angle(digits):
    turned = sample(digits, "rotation", 90)
    left, right = torch.rot90(digits.images, 1, (2, 3)), torch.rot90(digits.images, -1, (2, 3))
    lefts = (turned == left).flatten(1).all(dim=1)
    rights = (turned == right).flatten(1).all(dim=1)
    assert (lefts ^ rights).all()
    assert 15 < lefts.sum() < 45


def test_shifts_go_in_all_four_directions(digits):
    moved = sample(digits, "shift", 3)
    found = set()
    for image, original in zip(moved[:, 0], digits.images[:, 0], strict=True):
        for down in (-3, 3):
            for right in (-3, 3):
                padded = nn.functional.pad(original, (3, 3, 3, 3))
                if image.equal(padded[3 - down : 31 - down, 3 - right : 31 - right]):
                    found.add((down, right))
    assert len(found) == 4


def test_scale_changes_the_ink_by_its_square(digits):
    ratio = sample(digits, "scale", 0.5).float().sum() / digits.images.float().sum()
    assert ratio.item() == pytest.approx(0.25, rel=0.03)


def test_noise_has_its_deviation_and_is_another_in_each_image():
    grey = capsnet.ImageSet(torch.full((50, 1, 28, 28), 127, dtype=torch.uint8), torch.zeros(50).long(), ("a",))
    noise = sample(grey, "noise", 0.1).float() - 127
    assert noise.std().item() == pytest.approx(25.5, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.5)
    assert np.abs(np.corrcoef(noise.flatten(1).numpy()) - np.eye(50)).max() < 0.2


def test_occlusion_blackens_a_square_anywhere():
    white = capsnet.ImageSet(torch.full((2000, 3, 20, 20), 255, dtype=torch.uint8), torch.zeros(2000).long(), ("a",))
    covered = sample(white, "occlusion", 0.3) == 0
    assert (covered.flatten(1).sum(dim=1) == 3 * 6 * 6).all()
    assert (covered.any(dim=3).sum(dim=2) == 6).all()
    assert covered.any(dim=0).all()  # every corner is reached


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_images_depend_on_seed_and_position_only(digits, name, monkeypatch):
    strength = TRANSFORMATIONS[name].strengths[0] or TRANSFORMATIONS[name].strengths[-1]
    whole = sample(digits, name, strength)
    part = TRANSFORMATIONS[name].apply(digits.images[7:20], strength, draw(0, 7, 20))
    assert part.equal(whole[7:20])
    if name != "scale":  # which has nothing at random
        assert not sample(digits, name, strength, seed=1).equal(whole)


def test_the_table_has_a_row_for_each_model_and_strength(rows, digits):
    strengths = sum(len(t.strengths) for t in TRANSFORMATIONS.values())
    assert len(rows) == 2 * strengths
    assert {row.images for row in rows} == {len(digits)}
    nearest = [row for row in rows if row.model == "nearest"]
    assert all(row.errors == 0 for row in nearest if row.strength == TRANSFORMATIONS[row.transformation].neutral)
    for name, worst in (("rotation", 90), ("scale", 0.5), ("shift", 8), ("shear", 0.8), ("occlusion", 0.6)):
        (row,) = (row for row in nearest if (row.transformation, row.strength) == (name, worst))
        assert row.errors > 15, row


def test_each_count_is_that_of_an_evaluation(rows, digits, monkeypatch):
    turned = capsnet.ImageSet(sample(digits, "rotation", 30), digits.labels, digits.class_names)
    predicted = NearestDigit(digits).probabilities(turned.images.float() / 255).argmax(dim=1)
    wanted = Measurement("nearest", "rotation", 30.0, 60, int((predicted != digits.labels).sum()))
    assert wanted in rows
    assert wanted.errors > 0
    monkeypatch.setattr(robustness, "images_at_once", lambda shape: 7)
    again = measure_robustness({"nearest": NearestDigit(digits)}, digits, ("rotation", "noise"))
    assert again == [row for row in rows if row.model == "nearest" and row.transformation in ("rotation", "noise")]


def test_a_real_model_can_be_measured(digits):
    torch.manual_seed(0)
    model = capsnet.CapsNet((1, 28, 28), 10, conv_channels=8, primary_types=2, decoder=False)
    rows = measure_robustness({"capsnet": model}, digits, ("shear",))
    clean = capsnet.evaluate(model, digits)
    assert (rows[0].error, rows[0].interval) == (clean.error, clean.interval)


def test_what_cannot_be_measured_is_refused(digits):
    model = capsnet.CapsNet((1, 20, 20), 10, conv_channels=8, primary_types=2, decoder=False)
    with pytest.raises(capsnet.InputError, match=r"takes images of .*\(1, 20, 20\)"):
        measure_robustness({"small": model}, digits)
    with pytest.raises(capsnet.InputError, match=r"unknown transformation 'blur'; there are: rotation, scale, shift"):
        measure_robustness({}, digits, ("blur",))


def test_the_markdown_table_says_it_all(rows):
    table = robustness_table(rows).splitlines()
    assert table[0] == "| transformation | strength | nearest | dark |"
    assert len(table) == 2 + len(rows) // 2
    row = next(row for row in rows if (row.model, row.transformation, row.strength) == ("nearest", "shear", 0.45))
    low, high = row.interval
    (line,) = (line for line in table if line.startswith("| shear (pixels a row) | 0.45 |"))
    assert line.split(" | ")[2] == f"{row.error:.2f} % ({low:.2f}–{high:.2f})"
    assert all(line.count("|") == 5 for line in table)


def test_the_figure_has_a_panel_for_each_transformation_and_a_line_for_each_model(rows):
    for dark in (False, True):
        panels = [axes for axes in draw_robustness(rows, dark).axes if axes.axison]
        assert [panel.get_title(loc="left").lower() for panel in panels] == list(TRANSFORMATIONS)
        for panel in panels:
            assert [line.get_label() for line in panel.lines] == ["nearest", "dark"]
            assert len({line.get_linestyle() for line in panel.lines}) == 2  # told apart without colours
        shown = panels[0].lines[0].get_xydata()
        wanted = [
            [row.strength, row.error] for row in rows if (row.model, row.transformation) == ("nearest", "rotation")
        ]
        assert np.allclose(shown, wanted)
    few = draw_robustness([row for row in rows if row.transformation in ("noise", "shift", "scale", "shear")])
    assert sum(axes.axison for axes in few.axes) == 4

"""Figures: what they show is computed here once more, slowly; how they look is read from their pixels."""

import io
import math
import xml.dom.minidom

import matplotlib
import numpy as np
import pytest
import reference
import torch
from matplotlib.colors import to_rgb as colour_to_rgb
from matplotlib.figure import Figure
from PIL import Image

import capsnet
from capsnet.data import PairSet
from capsnet.health import vital_signs
from capsnet.insight import agreement, equivariance, gallery, health, overlap, perturbations, reconstructions, style

NAMES = ("a", "b", "c")


def tiny(seed=0, **sizes):
    torch.manual_seed(seed)
    defaults = {"conv_channels": 6, "primary_types": 2, "primary_dim": 4, "capsule_dim": 5, "decoder_hidden": (8, 12)}
    return capsnet.CapsNet((1, 20, 22), 3, **{**defaults, **sizes}).eval()


def pictures(count, seed=0):
    return torch.randint(0, 256, (count, 1, 20, 22), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def image_set(count=30):
    return capsnet.ImageSet(pictures(count), torch.arange(count) % 3, NAMES)


def decoded_by_hand(model, vector, number):
    """The decoder's input is the vector in the place of its class, and zeros (paper, section 4.1)."""
    flat = torch.zeros(3 * len(vector))
    flat[number * len(vector) : (number + 1) * len(vector)] = vector
    with torch.no_grad():
        return model.decoder.stages(flat).view(1, 20, 22)


def answers(model, image):
    with torch.no_grad():
        capsules = model(image[None].float() / 255).capsules[0]
    return capsules, capsules.square().sum(1).sqrt()


def test_reconstructions_are_of_the_predicted_and_the_true_class():
    model, data = tiny(), image_set()
    seen = reconstructions.reconstruct(model, data, torch.tensor([4, 11, 0]))
    for row, index in enumerate((4, 11, 0)):
        capsules, long = answers(model, data.images[index])
        classes = [int(long.argmax()), int(data.labels[index])]
        assert seen.classes[row].tolist() == classes
        for which, number in enumerate(classes):
            assert seen.lengths[row, which] == pytest.approx(float(long[number]), abs=1e-6)
            by_hand = decoded_by_hand(model, capsules[number], number)
            torch.testing.assert_close(seen.reconstructions[row, which], by_hand)


def test_examples_are_a_success_of_each_class_then_failures():
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    predictions = torch.tensor([1, 1, 2, 0, 0, 2, 1])
    assert reconstructions.choose_examples(labels, predictions, 3).tolist() == [3, 1, 2, 0, 4, 6]


def test_perturbations_move_one_dimension_at_a_time():
    model, image = tiny(), pictures(1)[0]
    capsules, long = answers(model, image)
    for number in (None, 2):
        seen = perturbations.perturb(model, image, NAMES, number)
        chosen = int(long.argmax()) if number is None else number
        assert (seen.number, seen.length) == (chosen, pytest.approx(float(long[chosen]), abs=1e-6))
        assert seen.steps.tolist() == pytest.approx([x / 100 for x in range(-25, 26, 5)])
        for dim in range(5):
            for step, amount in enumerate(seen.steps.tolist()):
                moved = capsules[chosen].clone()
                moved[dim] += amount
                torch.testing.assert_close(seen.decoded[dim, step], decoded_by_hand(model, moved, chosen))


def test_overlap_decodes_each_class_alone_also_a_forced_one():
    model, image = tiny(), pictures(1)[0]
    capsules, long = answers(model, image)
    order = long.argsort(descending=True).tolist()
    assert overlap.separate(model, image, NAMES).classes.tolist() == order[:2]
    forced = overlap.separate(model, image, NAMES, torch.tensor([order[2], order[0]]))
    for which, number in enumerate((order[2], order[0])):
        torch.testing.assert_close(forced.reconstructions[which], decoded_by_hand(model, capsules[number], number))
    torch.testing.assert_close(forced.lengths, long)


def test_the_wrong_classes_are_the_one_that_came_closest_and_the_shortest():
    model, image = capsnet.CapsNet((1, 20, 22), 6, conv_channels=4, primary_types=2).eval(), pictures(1)[0]
    order = answers(model, image)[1].argsort(descending=True).tolist()
    wrong = overlap.separate_with_wrong(model, image, tuple("abcdef"))
    assert wrong.classes.tolist() == [*order[:3], order[5]]
    assert overlap.separate_with_wrong(tiny(), image, NAMES).classes.shape == (3,)  # no more than there are


def test_two_things_have_two_colours_over_the_input_and_are_white_where_both_are():
    image = torch.zeros(1, 2, 3, dtype=torch.uint8)
    image[0, 1, 2] = 255  # explained by neither
    drawn = torch.zeros(2, 1, 2, 3)
    drawn[0, 0, 0, :2], drawn[1, 0, :, 0] = 1, 1  # the upper row, and the left column
    mixed = overlap.blend(overlap.Overlap(image, torch.ones(2), torch.tensor([0, 1]), drawn, ("a", "b")))
    assert mixed[0, 1].tolist() == pytest.approx(style.PAIR[0])
    assert mixed[1, 0].tolist() == pytest.approx(style.PAIR[1])
    assert mixed[0, 0].min() == 1
    assert mixed[1, 1].max() == 0
    assert mixed[1, 2].tolist() == pytest.approx([overlap.FAINT] * 3)


@pytest.mark.parametrize("leaky", [False, True])
def test_agreement_is_procedure_1(leaky):
    model, image = tiny(leaky=leaky), pictures(1)[0]
    with torch.no_grad():
        model.classes.weight.mul_(5)  # so that couplings differ clearly
        primary = model.primary(model.features(image[None].float() / 255))
        grid = model.primary.conv(model.features(image[None].float() / 255)).shape[2:]
    capsules, history = reference.route(primary.numpy(), model.classes.weight.detach().numpy(), 3, leaky)
    seen = agreement.agree(model, image, NAMES)
    assert seen.couplings.shape == (3, *grid, 2, 3)
    np.testing.assert_allclose(seen.couplings.flatten(1, 3), history[:, 0], atol=1e-5)
    np.testing.assert_allclose(seen.capsules, capsules[0], atol=1e-5)
    activity = primary[0].norm(dim=1)
    entropy = np.zeros(3)
    for t in range(3):
        by_type, by_position = np.zeros((2, 3)), np.zeros((*grid, 3))
        for i, weight in enumerate(activity.tolist()):
            row, column, kind = i // (grid[1] * 2), i // 2 % grid[1], i % 2
            by_type[kind] += weight * history[t, 0, i]
            by_position[row, column] += weight * history[t, 0, i]
            shares = [*history[t, 0, i], 1 - history[t, 0, i].sum()]
            entropy[t] -= weight * sum(c * math.log2(c) for c in shares if c > 1e-9) / float(activity.sum())
        np.testing.assert_allclose(seen.by_type[t], by_type / activity.view(-1, 2).sum(0)[:, None], atol=1e-5)
        np.testing.assert_allclose(
            seen.by_position[t], by_position / activity.view(*grid, 2).sum(2)[..., None], atol=1e-5
        )
    np.testing.assert_allclose(seen.entropy, entropy, atol=1e-4)
    assert seen.entropy[0] == pytest.approx(math.log2(4 if leaky else 3), abs=1e-5)
    assert entropy[2] < entropy[1] < entropy[0]


def test_agreement_knows_what_each_grid_position_looks_at():
    """The pixels that a primary capsule depends on are those of its field, and no others."""
    model, image = tiny(), pictures(1)[0]
    seen = agreement.agree(model, image, NAMES)
    rows, columns = seen.couplings.shape[1:3]
    for row, column in ((0, 0), (rows - 1, columns - 1), (0, columns - 1)):
        pixels = (image[None].float() / 255).requires_grad_()
        primary = model.primary(model.features(pixels)).unflatten(1, (rows, columns, 2))
        primary[0, row, column].sum().backward()
        touched = torch.nonzero(pixels.grad[0, 0])
        half = (seen.reach - 1) / 2
        for axis, place in ((0, row), (1, column)):
            centre = float(seen.centres[axis][place])
            assert touched[:, axis].min() == centre - half
            assert touched[:, axis].max() == centre + half


def test_a_sweep_follows_the_capsule_that_wins_on_the_image_as_it_is():
    model, image, other = tiny(), pictures(1)[0], capsnet.BaselineCNN((1, 20, 22), 3, width=0.02).eval()
    capsules, long = answers(model, image)
    number = int(long.argmax())
    for each in equivariance.sweep(model, image, NAMES, other):
        still = int(torch.nonzero(each.amounts == each.still)[0])
        assert (each.images[still] == image).all()
        torch.testing.assert_close(each.capsules[still], capsules[number])
        assert each.angles[still] == pytest.approx(0, abs=0.05)
        for k in (0, len(each.amounts) - 1):
            moved, lengths = answers(model, each.images[k])
            assert each.lengths[k] == pytest.approx(float(lengths[number]), abs=1e-5)
            assert each.winners[k] == int(lengths.argmax())
            cosine = float(moved[number] @ capsules[number] / lengths[number] / long[number])
            assert each.angles[k] == pytest.approx(math.degrees(math.acos(cosine)), abs=0.05)
            with torch.no_grad():
                said = other.probabilities(each.images[k][None].float() / 255)[0, number]
            assert each.other[k] == pytest.approx(float(said), abs=1e-5)


def test_transformations_are_what_they_are_called():
    image = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    image[0, 0, 10, 14] = 200  # to the right of the middle
    assert equivariance.transform(image, rotation=90)[0, 0, 6, 10] == 200  # counter-clockwise: above it
    assert equivariance.transform(image, right=3)[0, 0, 10, 17] == 200
    assert equivariance.transform(image, down=2)[0, 0, 12, 14] == 200
    assert equivariance.transform(image, scale=2)[0, 0, 10, 18] == 200


def test_vital_signs_by_hand():
    model, images = tiny(), pictures(7)
    with torch.no_grad():
        model.primary.conv.weight[4:] = 0  # type 2 says nothing
        signs = vital_signs(model, images)
        features = torch.relu(model.conv(images.float() / 255))
        primary = model.primary(features)
        _, history = reference.route(primary.numpy(), model.classes.weight.numpy(), 3)
        unrouted, _ = reference.route(primary.numpy(), model.classes.weight.numpy(), 1)
        long = torch.stack([answers(model, image)[1] for image in images])
    active = primary.norm(dim=2).numpy()
    entropy = -(history[-1] * np.log(history[-1])).sum(-1) / math.log(3)
    assert signs["dead_primary"] == 0.5
    assert signs["dead_classes"] == float((long.max(0).values < 0.05).float().mean())
    assert signs["coupling_entropy"] == pytest.approx((entropy * active).sum() / active.sum(), abs=1e-5)
    assert signs["conv_norm"] == pytest.approx(float(features.pow(2).mean()) ** 0.5, rel=1e-5)
    assert signs["primary_norm"] == pytest.approx(active.mean(), rel=1e-5)
    assert signs["class_norm"] == pytest.approx(float(long.max(1).values.mean()), rel=1e-5)
    assert signs["primary_length_90"] == pytest.approx(np.quantile(active, 0.9, method="nearest"), rel=1e-5)
    assert signs["primary_length_10"] == 0
    assert signs["primary_length_std"] == pytest.approx(active.std(0).mean(), rel=1e-4)
    assert signs["logit_std"] == pytest.approx(np.log(history[-1]).var(-1).mean() ** 0.5, rel=1e-3)
    before = np.linalg.norm(unrouted, axis=2)
    assert signs["routing_gain"] == pytest.approx(
        float(long.max(1).values.mean()) / before[range(7), long.argmax(1)].mean()
    )
    assert signs["routing_changes"] == (before.argmax(1) != long.argmax(1).numpy()).mean()


def test_routing_gain_is_that_of_the_right_classes():
    model, images = tiny(), pictures(5)
    labels = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 1], [1, 0]])
    signs = vital_signs(model, images, labels)
    with torch.no_grad():
        voters = model.voters(model.primary(model.features(images.float() / 255)))
        routed, unrouted = (
            c.norm(dim=2).gather(1, labels) for c in (model.classes(voters), model.classes.after_one_iteration(voters))
        )
    assert signs["routing_gain"] == pytest.approx(float(routed.mean() / unrouted.mean()), rel=1e-5)


def test_a_temperature_sharpens_couplings_and_a_single_iteration_has_nothing_to_decide():
    images = pictures(5)
    plain, hot, once = (
        vital_signs(tiny(temperature=t, iterations=r), images) for t, r in ((1.0, 3), (20.0, 3), (20.0, 1))
    )
    assert hot["logit_std"] > 5 * plain["logit_std"] > 0
    assert hot["coupling_entropy"] < plain["coupling_entropy"]
    assert (once["logit_std"], once["routing_gain"], once["routing_changes"]) == (0, 1, 0)


def test_a_dead_network_is_seen_to_be_dead():
    model = tiny()
    with torch.no_grad():
        model.primary.conv.weight.zero_()
    signs = vital_signs(model, pictures(3))
    assert (signs["dead_primary"], signs["dead_classes"], signs["class_norm"]) == (1, 1, 0)
    assert all(math.isfinite(value) for value in signs.values())


def test_the_log_of_a_run_has_the_vital_signs_of_each_epoch(tmp_path):
    model = tiny()
    train = image_set()
    rows = capsnet.fit(model, train, capsnet.Recipe(epochs=2, batch_size=10), out=tmp_path / "run", progress=False)
    history = health.read_history(tmp_path / "run")
    assert history.epochs == [1, 2]
    final = vital_signs(model, train.images, train.labels)
    for name, value in final.items():
        assert history.curves[name] == pytest.approx([row[name] for row in rows])
        assert history.curves[name][-1] == pytest.approx(value, abs=1e-5)
    counted = [0.0005 * row["reconstruction_loss"] for row in rows]
    assert history.curves["reconstruction_loss"] == pytest.approx(counted)
    assert "held_out_error" not in history.curves


@pytest.fixture(scope="module")
def figures():
    """All that there is to draw: of a model for single images, and of one for pairs."""
    single = dict(gallery.figures_of(tiny(), image_set(), beside=tiny(1)))
    digits = capsnet.ImageSet(pictures(12)[:, :, :12, :14], torch.arange(12) % 3, NAMES)
    pairs = dict(gallery.figures_of(tiny(), PairSet(digits, 8)))
    curves = {
        "loss_mean": [1.0, 0.5],
        "dead_primary": [0.0, 0.5],
        "primary_length_90": [0.9, 0.7],
        "logit_std": [0, 1.5],
    }
    history = health.History([1.0, 2.0], curves)
    assert list(single) == ["reconstructions", "perturbations", "agreement", "equivariance", "robustness"]
    assert list(pairs) == ["overlap", "agreement"]
    return {**single, **pairs, "health": lambda dark: health.draw_health(history, dark)}


def luminance(colour):
    return np.dot(colour_to_rgb(colour), (0.299, 0.587, 0.114))


def test_ticks_of_losses_are_numbers():
    """Not formulas, which are not drawn as such: names of classes may look like some."""
    figure = health.draw_health(health.History([1.0, 2.0], {"loss_mean": [0.7, 0.017]}))
    style.as_bytes(figure, "png")
    ticks = {tick.get_text() for which in ("major", "minor") for tick in figure.axes[0].get_yticklabels(which=which)}
    assert {"0.5", "0.1", "0.02"} <= ticks
    assert not any("$" in tick for tick in ticks)


def test_figures_are_light_or_dark_in_png_and_svg(figures):
    assert len(figures) == 7
    for draw in figures.values():
        for dark, paper in ((False, style.LIGHT.paper), (True, style.DARK.paper)):
            figure = draw(dark)
            png = Image.open(io.BytesIO(style.as_bytes(figure, "png"))).convert("RGB")
            assert png.getpixel((1, 1)) == tuple(round(255 * x) for x in colour_to_rgb(paper))
            assert png.width > 400
            values = np.asarray(png.convert("L"))
            assert (np.abs(values - 255 * luminance(paper)) > 100).mean() > 0.01  # there is something on it
        svg = style.as_bytes(figure, "svg")
        assert xml.dom.minidom.parseString(svg).documentElement.tagName == "svg"


def test_the_same_data_gives_the_same_file(figures):
    for kind in ("png", "svg"):
        assert style.as_bytes(figures["health"](False), kind) == style.as_bytes(figures["health"](False), kind)


def test_drawing_leaves_the_settings_of_matplotlib_alone(figures):
    before = dict(matplotlib.rcParams)
    figures["health"](True)
    assert dict(matplotlib.rcParams) == before


def test_colours_can_be_told_apart_in_grey():
    for colours in (style.LIGHT, style.DARK):
        for one in (colours.ink, colours.first, colours.second, colours.right, colours.wrong):
            assert abs(luminance(one) - luminance(colours.paper)) > 0.3
        assert abs(luminance(colours.first) - luminance(colours.second)) > 0.15
    assert abs(luminance(style.PAIR[0]) - luminance(style.PAIR[1])) > 0.2
    shades = [luminance(colour[:3]) for colour in matplotlib.colormaps[agreement.VOTES](np.linspace(0, 1, 50))]
    assert (np.diff(shades) > 0).all()


def test_what_does_not_apply_is_not_drawn():
    bare = tiny(decoder=False)
    assert list(dict(gallery.figures_of(bare, image_set()))) == ["agreement", "equivariance"]
    with pytest.raises(capsnet.InputError, match="no test image 30"):
        list(gallery.figures_of(bare, image_set(), 30))


def test_images_of_other_channels_are_shown():
    images = torch.rand(2, 5, 2, 4, 6)
    seen = style.mosaic(images, gap=3)
    assert seen.shape == (2 * 4 + 3, 5 * 6 + 4 * 3, 4)
    assert (seen[4:7, :, 3] == 0).all()  # the gap is transparent
    for row in range(2):
        for column in range(5):
            tile = seen[row * 7 : row * 7 + 4, column * 9 : column * 9 + 6]
            torch.testing.assert_close(tile[..., 1], images[row, column].mean(0))
    colour = torch.rand(3, 4, 6)
    assert (style.to_rgb(colour).movedim(-1, 0) == colour).all()


def test_names_of_classes_are_no_formulas():
    with style.style(dark=False):
        figure = Figure()
        figure.suptitle(r"$\mathds{R}$ and $5")
    assert style.as_bytes(figure, "png")

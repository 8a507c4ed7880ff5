"""The explorer without a browser: what it answers and what it refuses."""

import html

import pytest
import torch
from PIL import Image
from serving import PALE, as_url, digit, png

import capsnet
from capsnet import cli, pretrained, runs
from capsnet.data.pictures import Framing
from capsnet.explorer import answers, markup, parts, pictures
from capsnet.insight.overlap import separate

BLACK = Framing("black", 20 / 28, (0.5, 0.5))


@pytest.fixture(scope="module")
def explorer():
    return answers.open_explorer(None)


@pytest.mark.parametrize("name", ["mnist", "mnist-cnn"])
def test_the_packed_models_are_what_their_reports_say(name):
    folder = pretrained.folder(name)
    report = runs.read_json(folder / runs.REPORT)
    digits = capsnet.open_dataset("mnist", "test").select(slice(0, 10_000, 5))
    assert report["test_images"] == 10_000
    assert report["test_error"] < 1
    assert capsnet.evaluate(capsnet.load(folder), digits).error == pytest.approx(report["test_error"], abs=0.4)
    assert (folder / runs.WEIGHTS).stat().st_size < 3_000_000


def test_the_packed_model_for_pairs_tells_digits_apart():
    pairs = capsnet.open_dataset("multimnist", "test").batch(0, 1000)
    model = capsnet.load(pretrained.folder("multimnist"))
    with torch.inference_mode():
        lengths = model(pairs.images.float() / 255).lengths
    found = lengths.topk(2).indices
    right = (pairs.labels[:, :, None] == found[:, None, :]).any(2).float().mean()
    assert right > 0.85
    assert (pretrained.folder("multimnist") / runs.WEIGHTS).stat().st_size < 3_000_000


def test_a_look_is_what_the_model_says(explorer):
    subject, image = explorer.single, digit(4)
    seen = answers.look(subject, image)
    with torch.inference_mode():
        out = subject.model(image[None].float() / 255)
        drawn = subject.model.reconstruct(out.capsules)[0]
    assert seen.winner == int(out.lengths.argmax()) == 4
    torch.testing.assert_close(seen.agreement.lengths, out.lengths[0])
    torch.testing.assert_close(seen.reconstruction, drawn)


def test_a_drawing_by_touch_is_framed_as_mnist_is(explorer):
    """A digit drawn small and in a corner of the pad reaches the network in the middle, and as large as usual."""
    subject = explorer.single
    for number in (4, 1, 2, 7):  # of the first test digits: 4, 2, 1, 9
        image = digit(number)
        small = Image.new("L", (280, 280))
        small.paste(Image.fromarray(image[0].numpy()).resize((110, 110), Image.Resampling.BICUBIC), (150, 20))
        framed = pictures.read_bytes(png(small), subject.shape, subject.run.framing)
        ink = torch.nonzero(framed[0] > 127)
        assert int((ink.max(0).values - ink.min(0).values).max()) in range(17, 21)
        assert answers.look(subject, framed).winner == answers.look(subject, image).winner


def test_moving_a_capsule_draws_something_else(explorer):
    subject = explorer.single
    capsule = [0.1 * (-1) ** k for k in range(16)]
    once = answers.draw(subject, 3, capsule)
    moved = answers.draw(subject, 3, [capsule[0] + 0.4, *capsule[1:]])
    flat = torch.zeros(10, 16)
    flat[3] = torch.tensor(capsule)
    with torch.inference_mode():
        torch.testing.assert_close(once[0], subject.model.decoder.stages(flat.flatten()).view(28, 28))
    assert (once - moved).abs().max() > 0.01


@pytest.mark.parametrize(
    ("number", "capsule"),
    [
        (3, [0.0] * 15),
        (3, [float("nan")] * 16),
        (3, [1e9] * 16),
        (3, ["x"] * 16),
        (3, None),
        (11, [0.0] * 16),
        ("3", []),
    ],
)
def test_a_capsule_that_is_none_is_refused(explorer, number, capsule):
    with pytest.raises(capsnet.InputError):
        answers.draw(explorer.single, number, capsule)


def test_two_things_are_told_apart_and_classes_forced(explorer):
    subject = explorer.pair
    image = subject.test_set.batch(0, 1).images[0]
    order = separate(subject.model, image, subject.names).lengths.argsort(descending=True).tolist()
    assert answers.tell_apart(subject, image).classes.tolist() == order[:2]
    assert answers.tell_apart(subject, image, (order[9], None)).classes.tolist() == [order[9], order[0]]
    assert answers.tell_apart(subject, image, (None, order[0])).classes.tolist() == [order[1], order[0]]
    assert answers.tell_apart(subject, image, (3, 3)).classes.tolist() == [3, 3]


def test_a_turn_follows_the_class_and_the_cnn_answers_beside(explorer):
    image = digit(0)
    still = answers.turn(explorer, image, 0, 1, 0, 0)
    assert (still.image == image).all()
    assert still.angle < 0.1
    turned = answers.turn(explorer, image, 30.0, 0.9, 2, -1)
    assert turned.number == still.number == 7
    assert turned.angle > 1
    with torch.inference_mode():
        before, after = explorer.single.model(torch.stack([image, turned.image]).float() / 255).capsules[:, 7]
        cnn = explorer.cnn.probabilities(turned.image[None].float() / 255)[0]
    torch.testing.assert_close(turned.cnn, cnn)
    assert turned.lengths[7] == pytest.approx(float(after.norm()), abs=1e-5)
    cosine = float(before @ after / before.norm() / after.norm())
    assert turned.angle == pytest.approx(torch.tensor(cosine).arccos().rad2deg().item(), abs=0.1)
    for wrong in ((90, 1, 0, 0), (0, 1, 0), (0, 9, 0, 0), (0, 1, float("nan"), 0), (0, 1, 0, "x")):
        with pytest.raises(capsnet.InputError):
            answers.turn(explorer, image, *wrong)


def test_images_to_pick_from_are_one_of_each_class_and_then_others(explorer):
    first, second = (answers.to_pick_from(explorer.single, turn) for turn in (0, 1))
    assert [name for _, name in first] == [str(k) for k in range(10)]
    for number, name in (*first, *second):
        assert int(explorer.single.test_set.labels[number]) == int(name)
    assert not {number for number, _ in first} & {number for number, _ in second}
    number, name = answers.to_pick_from(explorer.pair, 3)[4]
    labels = explorer.pair.test_set.batch(number, number + 1).labels[0].tolist()
    assert name == f"{labels[0]} and {labels[1]}"
    answers.to_pick_from(explorer.pair, 10**9)  # comes round again
    with pytest.raises(capsnet.InputError, match="no test image"):
        answers.pick(explorer.single, 10_000)


def test_a_run_of_the_users_takes_the_place_of_the_one_that_it_is_like(tmp_path):
    model = capsnet.CapsNet((3, 24, 20), 4, conv_channels=4, primary_types=2, decoder_hidden=(8,))
    capsnet.save(model, tmp_path / "run", classes=["cat", "dog", "<b>", "owl"])
    own = answers.open_explorer(tmp_path / "run")
    assert own.single.shape == (3, 24, 20)
    assert (own.single.test_set, own.cnn) == (None, None)
    seen = answers.look(own.single, torch.zeros(3, 24, 20, dtype=torch.uint8))
    assert "&lt;b&gt;" in markup.bars(own.single.names, {"length": seen.agreement.lengths}, [2])
    assert "<b>" not in markup.votes(seen.agreement)
    capsnet.save(model, tmp_path / "pairs", command={"data": "multimnist"})
    assert answers.open_explorer(tmp_path / "pairs").single.test_set is None  # its shape is not that of pairs


def test_runs_without_capsules_to_draw_are_refused(tmp_path, capsys):
    sizes = {"conv_channels": 4, "primary_types": 2}
    capsnet.save(capsnet.CapsNet((1, 28, 28), 10, decoder=False, **sizes), tmp_path / "bare")
    capsnet.save(capsnet.BaselineCNN((1, 28, 28), 10, width=0.02), tmp_path / "cnn")
    for folder, told in (("bare", "without a decoder"), ("cnn", "no CapsNet"), ("none", "no run folder")):
        assert cli.main(["explore", str(tmp_path / folder), "--no-browser"]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        *((None, "no picture yet"), ("", "no picture yet"), (7, "no picture yet")),
        *(("http://example.org/x.png", "data URL"), ("garbage", "data URL"), ("data:text/plain,hello", "data URL")),
        ("data:image/png;base64,%%%", "not in base64"),
        (as_url(b""), "not a picture that can be read"),
        (as_url(b"garbage"), "not a picture that can be read"),
        (as_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a picture that can be read"),
        (as_url(b"0" * 10_500_000), r"10\.5 MB; the limit is 10 MB"),
        (as_url(png(Image.new("L", (6000, 6000)))), "6000×6000 pixels; the limit is 25,000,000"),
        (as_url(png(PALE)[:-40]), "damaged"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_no_picture_is_refused(picture, told):
    with pytest.raises(capsnet.InputError, match=told):
        pictures.read_url(picture, (1, 28, 28), BLACK)


def test_pictures_travel_unchanged():
    assert (pictures.read_url(pictures.to_url(digit(0)), (1, 28, 28), BLACK) == digit(0)).all()
    colour = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    assert (pictures.read_url(pictures.to_url(colour / 255), (3, 20, 30), Framing()) == colour).all()
    assert pictures.to_url(torch.rand(2, 5, 5)).startswith("data:image/png")


def test_what_the_parts_of_a_page_send_is_not_trusted():
    assert parts.picked({"number": 5}) == 5
    assert parts.picked(None) == parts.picked({"number": "x"}) == parts.turn_of([]) == 0
    assert parts.moved({"number": 1, "capsule": [0.5, 0], "offsets": [0.25, -1]}) == (1, [0.75, -1])
    for wrong in (
        None,
        {},
        {"number": 1, "capsule": [1], "offsets": [1, 2]},
        {"number": 1, "capsule": 1, "offsets": 2},
    ):
        with pytest.raises(capsnet.InputError, match="no capsule"):
            parts.moved(wrong)
    with pytest.raises(capsnet.InputError, match=r"11\.0 MB"):
        parts.opened({"size": 11_000_000})


@pytest.mark.parametrize("name", ["${alert(1)}", "`", "a\\xi", "{{value}}", '" onclick="alert(1)', "<b>", "œuvre, 7"])
def test_names_cannot_leave_a_template(name):
    safe = markup.in_template(name)
    assert html.unescape(safe) == name
    assert not set(safe) & set("$`\\{}\"'<>")


def test_a_run_that_does_not_say_its_data_shows_nobody_elses(tmp_path):
    capsnet.save(capsnet.CapsNet((1, 28, 28), 10, conv_channels=2, primary_types=1, decoder_hidden=(2, 2)), tmp_path)
    assert answers.open_explorer(tmp_path).single.test_set is None

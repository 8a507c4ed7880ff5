"""Large colour images, many classes and deeper networks, as a user types and looks at them."""

import pytest
import torch
from terminal import typed

import capsnet
from capsnet import data, runs
from capsnet.explorer import answers, markup
from capsnet.insight import gallery, health
from capsnet.insight.agreement import agree

FIGURES = {"agreement", "equivariance", "health", "perturbations", "reconstructions"}


def noise(shape, classes):
    def load(split):
        images = torch.randint(0, 256, (32, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        names = tuple(f"kind {k}" for k in range(classes))
        return capsnet.ImageSet(images, torch.arange(32) % classes, names)

    return load


@pytest.fixture(autouse=True)
def sets(monkeypatch):
    monkeypatch.setitem(data.DATASETS, "signs", noise((3, 72, 84), 43))
    monkeypatch.setitem(data.DATASETS, "narrow", noise((3, 12, 200), 4))


def test_large_colour_images_are_trained_on_drawn_and_explored(tmp_path, capsys):
    run = tmp_path / "run"
    flags = ("--width", 0.05, "--batch-size", 16, "--epochs", 2, "--held-out", 8, "--data", "signs", "--out", run)
    status, _, err = typed(capsys, "train", *flags)
    assert status == 0, err
    model = capsnet.load(run)
    assert (model.config["stem"], model.grid) == (1, (10, 13))
    status, _, err = typed(capsys, "figures", run)
    assert status == 0, err
    assert {path.stem for path in (run / "figures").glob("*.png")} >= FIGURES
    subject = answers._subject(run)
    seen = answers.look(subject, answers.pick(subject, 0))
    assert "kind" in markup.votes(seen.agreement)
    status, _, err = typed(capsys, "evaluate", run)
    assert status == 0, err


def test_the_stem_can_be_chosen(tmp_path, capsys):
    run = tmp_path / "run"
    flags = ("--width", 0.05, "--batch-size", 32, "--epochs", 1, "--data", "signs", "--stem", 2, "--out", run)
    status, _, err = typed(capsys, "train", *flags)
    assert status == 0, err
    assert capsnet.load(run).config["stem"] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "narrow"], "images of 12×200 pixels leave no grid of primary capsules; with 9×9 kernels"),
        (["--data", "signs", "--stem", 3], "behind a stem that makes them 9×11"),
        (["--data", "signs", "--stem", -1], "0 to 8 times, not -1"),
    ],
)
def test_sizes_that_are_impossible_are_told_in_one_line(tmp_path, capsys, arguments, told):
    status, out, err = typed(capsys, "train", *arguments, "--out", tmp_path / "run")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("hidden", [((3, 4, 2),), ((3, 4, 2), (6, 5))])
def test_a_run_with_hidden_capsules_has_vital_signs_and_is_drawn(tmp_path, hidden):
    load = noise((1, 44, 48), 3)
    sizes = {"conv_channels": 8, "primary_types": 2, "decoder_hidden": (8, 12)}
    model = capsnet.CapsNet((1, 44, 48), 3, hidden_capsules=hidden, **sizes)
    capsnet.fit(model, load("train"), capsnet.Recipe(epochs=2, batch_size=16), out=tmp_path / "run", progress=False)
    row = runs.read_metrics(tmp_path / "run")[-1]
    assert 0 <= row["dead_hidden"] <= 1
    assert 0 < row["hidden_norm"] < 1
    drawn = {name: draw(False) for name, draw in gallery.figures_of(model, load("test"), number=3)}
    drawn["health"] = health.draw_health(health.read_history(tmp_path / "run"))
    assert set(drawn) == FIGURES
    labels = [text.get_text() for axis in drawn["health"].axes for text in axis.texts + axis.legend().get_texts()]
    assert {"hidden capsules", "hidden capsule types"} <= set(labels)


def test_votes_lie_where_the_capsules_look():
    """Only a spot of the image changes, and only capsules that see it change."""
    torch.manual_seed(0)
    sizes = {"conv_channels": 8, "primary_types": 2, "decoder": False, "stem": 0}
    model = capsnet.CapsNet((1, 30, 34), 2, hidden_capsules=((3, 4, 3, 2),), **sizes).eval()
    image = torch.zeros(1, 30, 34, dtype=torch.uint8)
    plain = agree(model, image, ("a", "b"))
    for down, right in ((0, 0), (15, 17), (29, 33), (4, 20)):
        spot = image.clone()
        spot[0, down, right] = 255
        changed = (agree(model, spot, ("a", "b")).activity != plain.activity).any(-1)
        near = [
            (centres - at).abs() <= (plain.reach - 1) / 2
            for centres, at in zip(plain.centres, (down, right), strict=True)
        ]
        assert changed.equal(near[0][:, None] & near[1][None])

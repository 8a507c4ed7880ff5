"""What stands before the capsules of large images."""

import pytest
import torch
from torch import nn

import capsnet
from capsnet.stem import Stem, stem_depth


def tiny(in_shape, num_classes=3, **sizes):
    sizes = {"conv_channels": 16, "primary_types": 2, "decoder_hidden": (8, 12), **sizes}
    return capsnet.CapsNet(in_shape, num_classes, **sizes)


class Backbone(nn.Module):
    """A network of somebody else's: strided, with statistics of batches, and an integer among its buffers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("size", "depth"),
    [
        *(((28, 28), 0), ((40, 40), 0), ((41, 41), 1), ((48, 48), 1), ((64, 64), 1), ((80, 80), 1), ((81, 81), 2)),
        *(((96, 96), 2), ((128, 128), 2), ((224, 224), 3), ((256, 256), 3), ((512, 512), 4)),
        *(((28, 80), 0), ((40, 400), 0), ((60, 120), 1), ((17, 17), 0), ((1, 1), 0)),
    ],
)
def test_images_are_halved_until_they_are_as_small_as_the_papers(size, depth):
    assert stem_depth(*size) == depth


@pytest.mark.parametrize(("depth", "channels"), [(0, 3), (1, 64), (3, 64), (5, 64)])
def test_a_stem_halves_and_says_what_it_gives(depth, channels):
    stem = Stem(3, 64, depth)
    side = 100
    for _ in range(depth):
        side = -(-side // 2)
    assert stem.channels == channels
    assert stem(torch.rand(2, 3, 100, 101)).shape[:3] == (2, channels, side)


@pytest.mark.parametrize("side", [28, 40])
def test_small_images_have_no_stem_and_nothing_new(side):
    model = tiny((1, side, side))
    assert [name.split(".")[0] for name, _ in model.named_children()] == [
        "stem",
        "conv",
        "primary",
        "hidden",
        "classes",
        "decoder",
    ]
    assert not list(model.stem.parameters()) + list(model.hidden.parameters())
    assert set(model.config) == {
        *("in_shape", "num_classes", "iterations", "conv_channels", "primary_types", "primary_dim", "capsule_dim"),
        *("kernel_size", "decoder", "decoder_hidden", "leaky"),
    }


def test_an_image_is_seen_alike_alone_and_among_others_in_training_and_in_use():
    model = tiny((3, 70, 60))
    images = torch.rand(4, 3, 70, 60)
    among = model.train()(images).capsules[2:3]
    torch.testing.assert_close(model.eval()(images[2:3]).capsules, among, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", [None, 0, 1])
def test_a_model_with_a_stem_can_be_rebuilt_saved_and_loaded(stem, tmp_path):
    model = tiny((3, 72, 80), stem=stem, hidden_capsules=((3, 4, 2), (5, 4)))
    assert model.config["stem"] == (1 if stem is None else stem)
    capsnet.save(model, tmp_path / "run")
    loaded = capsnet.load(tmp_path / "run")
    assert loaded.config == model.config
    images = torch.rand(2, 3, 72, 80)
    assert loaded(images).capsules.equal(model.eval()(images).capsules)


def test_a_stem_of_ones_own_is_trained_saved_and_needed_for_loading(tmp_path):
    model = tiny((3, 44, 44), stem=Backbone(), decoder=False)
    assert model.config["stem"].endswith("test_stem.Backbone")
    before = model.stem.body[0].weight.detach().clone()
    images = torch.randint(0, 256, (8, 3, 44, 44), dtype=torch.uint8)
    recipe = capsnet.Recipe(epochs=1, batch_size=4)
    capsnet.fit(model, capsnet.ImageSet(images, torch.arange(8) % 3, ("a", "b", "c")), recipe, out=tmp_path / "run")
    assert not model.stem.body[0].weight.equal(before)
    with pytest.raises(capsnet.InputError, match=r"a stem of its own, .*Backbone; .*capsnet\.load\(.*stem="):
        capsnet.load(tmp_path / "run")
    stem = Backbone()
    loaded = capsnet.load(tmp_path / "run", stem=stem)
    assert loaded.stem is stem
    assert stem.body[1].num_batches_tracked.dtype == torch.int64
    pixels = images.float() / 255
    assert loaded(pixels).capsules.equal(model(pixels).capsules)
    with pytest.raises(capsnet.InputError, match="not this model's"):
        capsnet.load(tmp_path / "run", stem=nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1)))


def test_trying_a_stem_leaves_it_as_it_was():
    stem = Backbone()
    stem.body[1].eval()  # frozen by its owner
    tiny((3, 44, 44), stem=stem)
    assert (stem.training, stem.body[1].training, int(stem.body[1].num_batches_tracked)) == (True, False, 0)


@pytest.mark.parametrize(
    ("stem", "told"),
    [
        (nn.Conv2d(1, 4, 3), "a Conv2d, cannot take images of (3, 44, 44)"),
        (nn.Flatten(), "this Flatten gives (1, 5808)"),
        (
            nn.Conv2d(3, 4, 3, 4),
            "behind a stem that makes them 11×11; with 9×9 kernels the smallest size is 17×17, and",
        ),
        (9, "0 to 8 times, not 9"),
        (-1, "not -1"),
        (True, "not True"),
        ("mine.Net", "a stem of its own, mine.Net"),
        (2, "the largest kernel_size for these is 6"),
    ],
)
def test_a_stem_that_does_not_fit_is_told_in_one_line(stem, told):
    with pytest.raises(capsnet.InputError) as caught:
        tiny((3, 44, 44), stem=stem)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)

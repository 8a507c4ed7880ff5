import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import capsnet
from capsnet.layers import DenseCapsules, PrimaryCapsules
from capsnet.models import MODELS, build_model, model_name


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def small(in_shape=(1, 20, 20), num_classes=3, **sizes):
    return capsnet.CapsNet(
        in_shape, num_classes, **{"conv_channels": 8, "primary_types": 2, "decoder_hidden": (16, 32), **sizes}
    )


def test_parameter_counts_are_the_papers():
    model = capsnet.CapsNet((1, 28, 28), 10)
    assert count(model) == 8_215_568
    assert count(model.conv) == 20_992
    assert count(model.primary) == 5_308_672
    assert count(model.classes) == 1_474_560
    assert count(model.decoder) == 1_411_344
    assert count(capsnet.CapsNet((1, 28, 28), 10, decoder=False)) == 6_804_224
    assert count(capsnet.BaselineCNN((1, 28, 28), 10)) == 35_445_522


def test_shapes_are_the_papers():
    model = capsnet.CapsNet((1, 28, 28), 10)
    images = torch.rand(2, 1, 28, 28)
    features = model.conv(images)
    assert features.shape == (2, 256, 20, 20)
    assert model.primary(features).shape == (2, 1152, 8)
    out = model(images)
    assert out.capsules.shape == (2, 10, 16)
    assert out.lengths.shape == (2, 10)
    assert model.reconstruct(out.capsules).shape == (2, 1, 28, 28)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(17, 26), st.integers(17, 26), st.integers(1, 5), st.booleans(), st.integers(1, 3))
def test_any_image_that_leaves_a_grid(channels, height, width, classes, leaky, iterations):
    model = small((channels, height, width), classes, leaky=leaky, iterations=iterations)
    images = torch.rand(2, channels, height, width)
    loss = model.loss(images, torch.zeros(2, dtype=torch.long))
    loss.total.backward()
    assert loss.scores.shape == (2, classes)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(1, 16, 28), (3, 28, 16), (1, 1, 1)])
def test_too_small_an_image_names_the_smallest_size(shape):
    with pytest.raises(capsnet.InputError, match="smallest size is 17×17"):
        capsnet.CapsNet(shape, 10)


def test_smallest_image_works():
    assert small((1, 17, 17))(torch.rand(1, 1, 17, 17)).lengths.shape == (1, 3)


def test_primary_capsules_are_ordered_by_grid_position_then_type():
    layer = PrimaryCapsules(4, types=3, dim=2, kernel_size=3)
    features = torch.randn(2, 4, 9, 7)
    s = layer.conv(features)  # (B, types · dim, 4, 3)
    capsules = layer(features)
    row, column, kind = 2, 1, 1
    expected = capsnet.functional.squash(s[:, 2 * kind : 2 * kind + 2, row, column])
    torch.testing.assert_close(capsules[:, (row * 3 + column) * 3 + kind], expected)


def test_only_the_chosen_capsule_is_decoded():
    model = small()
    capsules = torch.randn(2, 3, 16)
    others = capsules.clone()
    others[:, [0, 2]] = 7
    classes = torch.tensor([1, 1])
    torch.testing.assert_close(model.reconstruct(capsules, classes), model.reconstruct(others, classes))
    longest = capsnet.functional.lengths(capsules).argmax(dim=1)
    torch.testing.assert_close(model.reconstruct(capsules), model.reconstruct(capsules, longest))


def test_the_loss_is_margin_plus_a_small_share_of_the_summed_squares():
    model = small()
    images, labels = torch.rand(4, 1, 20, 20), torch.tensor([0, 1, 2, 0])
    out = model(images)
    margin = capsnet.functional.margin_loss(out.lengths, labels)
    squares = (model.reconstruct(out.capsules, labels) - images).square().sum() / 4
    torch.testing.assert_close(model.loss(images, labels).total, margin + 0.0005 * squares)


def test_without_decoder_there_is_no_reconstruction():
    with pytest.raises(capsnet.InputError, match="without a decoder"):
        small(decoder=False).reconstruct(torch.rand(1, 3, 16))


@pytest.mark.parametrize("model", [small(leaky=True), capsnet.BaselineCNN((1, 8, 8), 4)])
def test_a_model_can_be_rebuilt_from_its_config(model):
    twin = build_model(model_name(model), model.config)
    assert type(twin) is type(model)
    assert twin.config == model.config
    twin.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("name", "config"),
    [("resnet", {}), ("capsnet", {"in_shape": [1, 28, 28]}), ("cnn", {"in_shape": 3, "num_classes": 2})],
)
def test_a_config_that_does_not_fit_is_refused(name, config):
    with pytest.raises(capsnet.InputError):
        build_model(name, config)
    assert set(MODELS) == {"capsnet", "cnn"}


def test_first_outputs_are_neither_silent_nor_saturated():
    # Training starts at once only if squash is neither silent nor saturated on real digits.
    torch.manual_seed(0)
    images = capsnet.open_dataset("mnist", "test").images[:50].float() / 255
    with torch.no_grad():
        model = capsnet.CapsNet((1, 28, 28), 10)
        lower = capsnet.functional.lengths(model.primary(torch.relu(model.conv(images))))
        upper = model(images).lengths
    assert lower.mean() > 0.1
    assert 0.05 < upper.mean() < 0.9


def test_dense_capsules_refuse_sizes_below_one():
    with pytest.raises(ValueError, match="at least 1"):
        DenseCapsules(4, 2, 0, 2)

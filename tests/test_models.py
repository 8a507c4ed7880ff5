import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import capsnet
from capsnet.layers import DenseCapsules, PrimaryCapsules
from capsnet.models import MODELS, PAPER_SIZES, Ensemble, build_model, model_name, sizes


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


def test_parameter_counts_for_two_digits_are_the_papers():
    assert count(capsnet.CapsNet(**PAPER_SIZES["multimnist"])) == 11_361_808  # "11.36M"
    assert count(capsnet.PoolingCNN((1, 36, 36), 10)) == 24_563_978  # "24.56M"


def test_the_cnn_for_affnist_has_about_as_many_parameters_as_capsnet():
    ours, cnn = capsnet.CapsNet(**PAPER_SIZES["affnist"]), capsnet.PoolingCNN((1, 40, 40), 10, padding=False)
    assert (count(ours), count(cnn)) == (13_475_648, 12_767_498)


# Section 7's words as sums: Conv1 + PrimaryCaps + routing + decoder.
def test_parameter_counts_of_section_7():
    conv = {channels: (81 * channels + 1) * 256 for channels in (2, 3)}
    decoder = {pixels: 161 * 512 + 513 * 1024 + 1025 * pixels for pixels in (3 * 24 * 24, 2 * 32 * 32)}
    cifar = conv[3] + (256 * 81 + 1) * 512 + 4 * 4 * 64 * 8 * 10 * 16 + decoder[3 * 24 * 24]
    norb = conv[2] + (256 * 81 + 1) * 256 + 8 * 8 * 32 * 8 * 5 * 16
    norb += decoder[2 * 32 * 32] - 5 * 16 * 512  # half as many class capsules to decode
    svhn = (3 * 81 + 1) * 64 + (64 * 81 + 1) * 96 + 8 * 8 * 16 * 6 * 10 * 8
    svhn += 81 * 512 + 513 * 1024 + 1025 * 3 * 32 * 32
    for name, expected in (("cifar10", cifar), ("smallnorb", norb), ("svhn", svhn)):
        model = capsnet.CapsNet(**PAPER_SIZES[name])
        assert count(model) == expected
        assert model.classes.leaky == (name == "cifar10")


@pytest.mark.parametrize("name", MODELS)
def test_the_papers_networks_have_width_one(name):
    config = {"in_shape": (1, 28, 28), "num_classes": 2 if name.endswith("detector") else 10}
    usual, narrow = (build_model(name, {**config, **sizes(name, width)}) for width in (1.0, 0.25))
    assert usual.config == build_model(name, config).config
    assert count(narrow) < count(usual) / 8
    for width in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(capsnet.InputError, match="the width of a network"):
            build_model(name, {**config, **sizes(name, width)})


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


def test_the_reconstruction_of_a_large_image_counts_as_much_as_that_of_a_digit():
    model = small((3, 72, 80))
    images, labels = torch.rand(2, 3, 72, 80), torch.tensor([0, 1])
    out = model(images)
    margin = capsnet.functional.margin_loss(out.lengths, labels)
    mean = (model.reconstruct(out.capsules, labels) - images).square().mean()
    torch.testing.assert_close(model.loss(images, labels).total, margin + 0.0005 * 784 * mean)


def test_two_digits_are_decoded_alone_each_against_its_own():
    model = small()
    images, digits = torch.rand(4, 1, 20, 20), torch.rand(4, 2, 1, 20, 20)
    labels = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2]])
    capsules, lengths = model(images)
    expected = torch.zeros(())
    for n in range(4):  # equation 4 and the paper's section 6, one image and one class at a time
        for k in range(3):
            present = float(k in labels[n])
            short, long = max(0, 0.9 - lengths[n, k].item()), max(0, lengths[n, k].item() - 0.1)
            expected += (present * short**2 + 0.5 * (1 - present) * long**2) / 4
        for position in range(2):
            alone = torch.zeros_like(capsules[n : n + 1])
            alone[0, labels[n, position]] = capsules[n, labels[n, position]]
            decoded = model.decoder.stages(alone.flatten(1)).reshape(1, 20, 20)
            expected += 0.0005 * (decoded - digits[n, position]).square().sum() / 4
    loss = model.loss(images, labels, digits)
    torch.testing.assert_close(loss.total, expected)
    swapped = model.loss(images, labels.flip(1), digits.flip(1))
    torch.testing.assert_close(swapped.total, loss.total)
    with pytest.raises(ValueError, match="a target for each"):
        model.loss(images, labels)


def test_reconstruct_decodes_several_classes_of_an_image():
    model = small()
    capsules = torch.randn(3, 3, 16)
    classes = torch.tensor([[0, 2], [1, 0], [2, 1]])
    both = model.reconstruct(capsules, classes)
    assert both.shape == (3, 2, 1, 20, 20)
    for position in range(2):
        torch.testing.assert_close(both[:, position], model.reconstruct(capsules, classes[:, position]))


def test_the_pooling_cnn_has_a_sigmoid_for_each_class():
    model = capsnet.PoolingCNN((1, 20, 20), 3, padding=False)
    images, labels = torch.rand(4, 1, 20, 20), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2]])
    p = model.probabilities(images)
    rows = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 1]])
    expected = -torch.where(rows == 1, p, 1 - p).log().sum() / 4
    torch.testing.assert_close(model.loss(images, labels).total, expected)
    with pytest.raises(capsnet.InputError, match="smallest size is 20×20"):
        capsnet.PoolingCNN((1, 28, 19), 3, padding=False)


def test_softmax_shares_the_probability_between_two_digits():
    model = capsnet.BaselineCNN((1, 8, 8), 4).eval()
    images = torch.rand(2, 1, 8, 8)
    p = model.probabilities(images).log()
    one, two = torch.tensor([1, 3]), torch.tensor([[1, 2], [3, 0]])
    torch.testing.assert_close(model.loss(images, one).total, -(p[0, 1] + p[1, 3]) / 2)
    torch.testing.assert_close(model.loss(images, two).total, -(p[0, 1] + p[0, 2] + p[1, 3] + p[1, 0]) / 4)


def test_an_ensemble_gives_the_mean_answer():
    members = [small(), small(iterations=1)]
    images = torch.rand(2, 1, 20, 20)
    expected = (members[0].probabilities(images) + members[1].probabilities(images)) / 2
    torch.testing.assert_close(Ensemble(members).probabilities(images), expected)
    with pytest.raises(capsnet.InputError, match="at least one member"):
        Ensemble([])


def test_without_decoder_there_is_no_reconstruction():
    with pytest.raises(capsnet.InputError, match="without a decoder"):
        small(decoder=False).reconstruct(torch.rand(1, 3, 16))


@pytest.mark.parametrize(
    "model",
    [
        small(leaky=True),
        small((3, 70, 72), hidden_capsules=((3, 4, 2), (5, 4))),
        capsnet.BaselineCNN((1, 8, 8), 4),
        capsnet.PoolingCNN((1, 20, 20), 4, padding=False),
    ],
)
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
    assert set(MODELS) == {"capsnet", "cnn", "pooling-cnn", "small-cnn", "detector", "cnn-detector"}


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


def test_hidden_layers_are_stacked_by_position_then_type():
    model = small((1, 24, 22), hidden_capsules=((3, 4, 2), (5, 6, 1, 2), (7, 4), (6, 5)), leaky=True, iterations=2)
    primary = model.primary(model.features(torch.rand(2, 1, 24, 22)))
    first, second, third, fourth = model.hidden
    assert (model.grid, model.voter_grid, model.voter_types) == ((4, 3), (1, 1), 6)
    by_hand = second(first(primary.reshape(2, 4, 3, 2, 8)))
    assert by_hand.shape == (2, 2, 1, 5, 6)
    by_hand = fourth(third(by_hand.reshape(2, 10, 6)))
    torch.testing.assert_close(model.voters(primary), by_hand)
    assert model.classes.weight.shape == (3, 6, 5, 16)
    assert all((layer.iterations, layer.leaky) == (2, True) for layer in model.hidden)
    loss = model.loss(torch.rand(2, 1, 24, 22), torch.tensor([0, 2]))
    loss.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("hidden", "told"),
    [
        (((3, 4, 3),), "need a grid of 3×3, but it is 2×2"),
        (((3, 4), (3, 4, 1)), "leaves no grid for the convolutional"),
        (((3,),), "a hidden layer is"),
        (((3, 4, 1, 1, 1),), "a hidden layer is"),
        (((3, 0),), "a size in hidden_capsules must be 1 to 1,000,000, not 0"),
    ],
)
def test_hidden_layers_that_do_not_fit_are_told(hidden, told):
    with pytest.raises(capsnet.InputError, match=told):
        build_model("capsnet", {**small().config, "hidden_capsules": [list(sizes) for sizes in hidden]})


@pytest.mark.parametrize("hidden", [((16, 8, 3),), ((32, 8),), ((16, 8, 3), (16, 8, 2), (32, 8))])
def test_first_outputs_of_deeper_networks_are_neither_silent_nor_saturated(hidden):
    torch.manual_seed(0)
    images = capsnet.open_dataset("mnist", "test").images[:30].float() / 255
    model = capsnet.CapsNet((1, 28, 28), 10, conv_channels=32, primary_types=8, decoder=False, hidden_capsules=hidden)
    with torch.no_grad():
        voters = capsnet.functional.lengths(model.voters(model.primary(model.features(images))))
        assert 0.1 < voters.mean() < 0.9
        assert 0.05 < model(images).lengths.mean() < 0.9


def test_dense_capsules_refuse_sizes_below_one():
    with pytest.raises(ValueError, match="at least 1"):
        DenseCapsules(4, 2, 0, 2)

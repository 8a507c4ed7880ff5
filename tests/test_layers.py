"""Convolutional capsules against the reference loops, and decoders of every size."""

import pytest
import reference
import torch
from process import run_python
from torch import nn

import capsnet
from capsnet import routing
from capsnet.layers import ConvCapsules, Decoder


def conv_capsules(*sizes, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return ConvCapsules(*sizes, **options).to(dtype)


def capsules(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "iterations", "leaky"),
    [(3, 1, 3, False), (2, 2, 2, True), (1, 1, 3, False), (3, 2, 1, True)],
)
def test_each_position_is_procedure_1_on_its_neighbourhood(kernel_size, stride, iterations, leaky):
    layer = conv_capsules(3, 4, 5, 6, kernel_size, stride, iterations, leaky=leaky)
    u = capsules(2, 5, 6, 3, 4)
    expected = reference.conv_route(u.numpy(), layer.weight.detach().numpy(), kernel_size, stride, iterations, leaky)
    torch.testing.assert_close(layer(u), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.float()(u.float()), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stored", [True, False])
def test_gradients_of_convolutional_capsules(stored, monkeypatch):
    monkeypatch.setattr(routing, "_better_stored", lambda *_: stored)
    layer = conv_capsules(2, 2, 3, 2, 2)
    u = capsules(1, 3, 3, 2, 2).requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()

    def function(u, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (u,))

    assert torch.autograd.gradcheck(function, (u, weight), fast_mode=True)


def test_a_neighbourhood_as_large_as_the_grid_is_a_dense_layer():
    layer = conv_capsules(3, 4, 5, 6, 4)
    dense = capsnet.layers.DenseCapsules(48, 4, 5, 6).double()
    dense.load_state_dict(layer.state_dict())
    u = capsules(2, 4, 4, 3, 4)
    torch.testing.assert_close(layer(u)[:, 0, 0], dense(u.flatten(1, 3)))


def test_convolutional_capsules_take_what_primary_capsules_give():
    primary = capsnet.layers.PrimaryCapsules(4, types=3, dim=2, kernel_size=3)
    u = primary(torch.randn(2, 4, 11, 9)).unflatten(1, (5, 4, 3))
    assert conv_capsules(3, 2, 5, 6, 3, dtype=torch.float32)(u).shape == (2, 3, 2, 5, 6)


def test_convolutional_capsules_are_exported_with_a_free_batch():
    layer = conv_capsules(3, 4, 5, 6, 3, dtype=torch.float32).eval()
    u = capsules(3, 5, 6, 3, 4, dtype=torch.float32)
    exported = torch.export.export(layer, (u[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(exported.module()(u), layer(u), rtol=1e-4, atol=1e-5)


def test_a_deep_network_is_compiled():
    """In a process of its own: the shape checks of the test run are nothing that a compiler can look through."""
    program = """
        import torch, capsnet

        sizes = {"conv_channels": 8, "primary_types": 2, "decoder": False, "stem": 1}
        model = capsnet.CapsNet((1, 44, 44), 3, hidden_capsules=((3, 4, 2), (5, 4)), **sizes).eval()
        images = torch.rand(4, 1, 44, 44)
        compiled = torch.compile(model.probabilities, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), model.probabilities(images))
        print("compiled")
    """
    assert run_python(program).strip() == "compiled"


@pytest.mark.parametrize("sizes", [(0, 4, 5, 6, 3), (3, 4, 5, 6, 0), (3, 4, 5, 6, 3, 0), (3, 4, 5, 6, 3, 1, 0)])
def test_convolutional_capsules_refuse_sizes_below_one(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        ConvCapsules(*sizes)


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 28, 28), (3, 40, 100)])
def test_up_to_64_by_64_pixels_the_decoder_is_the_papers(shape):
    kinds = [type(stage) for stage in Decoder(10, 16, shape).stages]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear, nn.Sigmoid]


@pytest.mark.parametrize("shape", [(1, 65, 64), (3, 96, 96), (2, 31, 257), (3, 224, 224)])
@pytest.mark.parametrize("hidden", [(16, 32), ()])
def test_larger_images_are_decoded_by_convolutions(shape, hidden):
    torch.manual_seed(0)
    decoder = Decoder(5, 4, shape, hidden)
    images = decoder(torch.rand(2, 5, 4), torch.tensor([4, 0]))
    assert images.shape == (2, *shape)
    assert 0 <= images.min() < images.max() <= 1
    images.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_the_decoder_of_large_images_is_of_reasonable_size_and_starts_awake():
    torch.manual_seed(0)
    decoder = Decoder(200, 16, (3, 224, 224))
    assert sum(parameter.numel() for parameter in decoder.parameters()) < 6e6  # a dense one: 157 million
    with torch.no_grad():
        images = decoder(torch.eye(200)[..., None].expand(-1, -1, 16)[:8] / 4, torch.arange(8))
    assert images.std() > 0.01  # says something about where things are from the start


def test_only_the_chosen_capsule_of_a_large_image_is_decoded():
    decoder = Decoder(3, 4, (1, 70, 70), (8,))
    v = torch.randn(2, 3, 4)
    other = v.clone()
    other[:, 1:] = 7
    classes = torch.tensor([0, 0])
    torch.testing.assert_close(decoder(v, classes), decoder(other, classes))

"""Max-pooling in the layout of the quick convolutions against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capsnet import kernels
from capsnet.models import PoolingCNN, SmallCNN
from capsnet.pooling import max_pool2d


def pixel_first(*shape: int) -> Tensor:
    batch, channels, height, width = shape
    return torch.randn(height, width, channels, batch).permute(3, 2, 0, 1)


@given(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(2, 9), st.integers(2, 9)), st.booleans())
@settings(deadline=None)
def test_equals_pytorch(shape, ordinary):
    x = torch.randn(shape) if ordinary else pixel_first(*shape)
    exact = x.double().requires_grad_()
    y, reference = max_pool2d(x.requires_grad_()), F.max_pool2d(exact, 2)
    grad = torch.randn(reference.shape)
    y.backward(grad)
    reference.backward(grad.double())
    torch.testing.assert_close(y.double(), reference, rtol=0, atol=0)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=0, atol=0)


@pytest.mark.skipif(not kernels.available(), reason="no compiled kernels here")
def test_pixel_first_stays_pixel_first():
    x = pixel_first(3, 4, 7, 6).requires_grad_()
    y = max_pool2d(x)
    assert y.shape == (3, 4, 3, 3)
    assert y.permute(2, 3, 1, 0).is_contiguous()
    y.sum().backward()
    assert x.grad.permute(2, 3, 1, 0).is_contiguous()


def test_no_images_and_images_too_small():
    assert max_pool2d(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 2, 2)
    with pytest.raises(RuntimeError, match="too small"):
        max_pool2d(pixel_first(2, 3, 1, 4))


@pytest.mark.parametrize("model", [PoolingCNN((1, 24, 24), 3, width=0.02), SmallCNN((1, 24, 24), 3, channels=(4, 4))])
def test_pooling_before_relu_is_relu_before_pooling(model):
    """What the paper's words say: each convolution, its ReLU, then max-pooling; in float64."""
    images, labels = torch.rand(5, 1, 24, 24).double(), torch.tensor([0, 1, 2, 0, 1])
    model = model.double()
    stages = list(model.features)
    for at, layer in enumerate(stages):
        if isinstance(layer, torch.nn.Conv2d):
            stages[at + 1 : at + 3] = [torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    gradients = []
    for features in model.features, torch.nn.Sequential(*stages):
        model.features = features
        model.zero_grad()
        model.loss(images, labels).total.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    torch.testing.assert_close(*gradients)

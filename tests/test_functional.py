import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from capsnet.functional import _multi_hot, lengths, margin_loss, reconstruction_loss, reconstruction_weight, squash

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def test_squash_by_hand():
    # ‖(3, 4)‖ = 5, so the result is 25/26 of the unit vector (0.6, 0.8).
    expected = torch.tensor([25 / 26 * 0.6, 25 / 26 * 0.8], dtype=torch.float64)
    torch.testing.assert_close(squash(torch.tensor([3.0, 4.0], dtype=torch.float64)), expected, rtol=1e-15, atol=0)


@given(arrays(np.float64, (3, 5), elements=st.floats(-1e3, 1e3)))
def test_squash_agrees_with_the_reference(s):
    expected = np.stack([reference.squash(row) for row in s])
    np.testing.assert_allclose(squash(torch.from_numpy(s)).numpy(), expected, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(squash(torch.from_numpy(s).float()).numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e-3, 1.0, 1e3, 1e10, 1e20])
def test_float32_squash_agrees_with_float64_at_every_scale(scale):
    s = (torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale).float()
    exact = squash(s.double())
    smallest_normal = torch.finfo(torch.float32).tiny  # below it, float32 itself has fewer digits
    torch.testing.assert_close(squash(s).double(), exact, rtol=1e-6, atol=smallest_normal)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("function", [squash, lengths])
def test_values_and_gradients_are_finite(function, scale, dtype):
    s = (torch.randn(4, 8, generator=torch.Generator().manual_seed(1)) * scale).to(dtype).requires_grad_()
    out = function(s)
    assert out.dtype == dtype
    assert out.isfinite().all()
    (gradient,) = torch.autograd.grad(out.sum(), s)
    assert gradient.isfinite().all()
    if scale == 0:
        assert (out == 0).all()
        assert (gradient == 0).all()


def test_squash_gradient_in_closed_form_far_from_one():
    # Far beyond length one squash is s/‖s‖, whose slope across s is 1/‖s‖ and along s is nothing.
    s = torch.tensor([1e10, 0.0], requires_grad=True)
    jacobian = torch.stack([torch.autograd.grad(squash(s)[k], s)[0] for k in range(2)])
    torch.testing.assert_close(jacobian, torch.tensor([[0.0, 0.0], [0.0, 1e-10]]), rtol=1e-6, atol=1e-25)


@pytest.mark.parametrize("scale", [1e-2, 0.9, 1.1, 30.0])
def test_gradcheck(scale):
    s = (torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double() * scale).requires_grad_()
    assert torch.autograd.gradcheck(squash, s)
    assert torch.autograd.gradgradcheck(squash, s)
    assert torch.autograd.gradcheck(lengths, s)


def test_squash_along_another_dimension():
    s = torch.randn(2, 8, 5)
    torch.testing.assert_close(squash(s, dim=1), squash(s.transpose(1, 2)).transpose(1, 2))


def test_lengths_by_hand():
    assert lengths(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e20, 0.0]])).tolist() == [5.0, 0.0, pytest.approx(1e20)]


def test_margin_loss_by_hand():
    # Class 0 present and 0.5 long: 0.4². Class 1 absent and 0.6 long: ½ · 0.5². Class 2 absent, short enough: 0.
    loss = margin_loss(torch.tensor([[0.5, 0.6, 0.05]]), torch.tensor([0]))
    assert loss.item() == pytest.approx(0.16 + 0.125)


def test_margin_loss_with_two_classes_present():
    values = torch.rand(6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = torch.tensor([[1, 1, 0, 0, 0]] * 6)
    expected = reference.margin_loss(values.numpy(), targets.numpy())
    assert margin_loss(values, targets).item() == pytest.approx(expected, rel=1e-12)


def test_margin_loss_takes_class_numbers_or_multi_hot_rows():
    values = torch.rand(4, 3)
    numbers = torch.tensor([2, 0, 1, 1])
    multi_hot = torch.nn.functional.one_hot(numbers, 3)
    assert margin_loss(values, numbers) == margin_loss(values, multi_hot) == margin_loss(values, multi_hot.float())


def test_margin_loss_refuses_targets_that_do_not_fit():
    with pytest.raises(ValueError, match=r"class numbers of shape \(4,\)"):
        _multi_hot(torch.tensor([[0, 1, 0, 0]]), torch.rand(4, 3))  # past the test run's own shape checks


def test_reconstruction_loss_sums_over_pixels_and_averages_over_images():
    images = torch.zeros(2, 1, 2, 2)
    reconstruction = torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2) * 0.5
    assert reconstruction_loss(reconstruction, images).item() == pytest.approx((4 * 0.25 + 0) / 2)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 36, 36), (1, 40, 40), (3, 24, 24), (2, 32, 32), (3, 32, 32)])
def test_the_papers_images_are_weighted_as_in_the_paper(shape):
    assert reconstruction_weight(*shape) == 0.0005


@pytest.mark.parametrize("shape", [(1, 41, 40), (3, 64, 64), (3, 224, 224), (2, 30, 300)])
def test_a_wrong_large_image_costs_as_much_as_a_wrong_digit(shape):
    digit = 0.0005 * reconstruction_loss(torch.full((2, 1, 28, 28), 0.5), torch.zeros(2, 1, 28, 28))
    large = reconstruction_weight(*shape) * reconstruction_loss(torch.full((2, *shape), 0.5), torch.zeros(2, *shape))
    assert large.item() == pytest.approx(digit.item(), rel=1e-5)


def test_backward_may_be_vectorized():
    s = torch.randn(3, 4, 16, requires_grad=True)
    v, grads = squash(s, 1), torch.randn(5, 3, 4, 16)
    (found,) = torch.autograd.grad(v, s, grads, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(v, s, grad, retain_graph=True)[0] for grad in grads]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-5, atol=1e-6)


def test_a_number_alone_is_a_vector_of_one():
    assert squash(torch.tensor(3.0)) == pytest.approx(0.9)

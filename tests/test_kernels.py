"""The compiled kernels against float64, and that they are there where they can be."""

import shutil

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capsnet import kernels
from capsnet.convolution import conv2d
from capsnet.routing import _Routing

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="no compiled kernels here")


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2"), reason="they want AVX2 or more")
@pytest.mark.skipif(not shutil.which("gcc"), reason="there is no compiler")
def test_are_compiled_where_they_can_be():
    assert kernels.available()


def route(inputs, weight, iterations, leaky, detach_early=False):
    """Through the kernel, which `capsnet.routing.route` takes for larger batches only."""
    return _Routing.apply(inputs, weight, iterations, leaky, detach_early)


def layer(batch, lower, higher, in_dim, out_dim, seed):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, lower, in_dim, generator=g) / in_dim**0.5
    return inputs, torch.randn(higher, lower, in_dim, out_dim, generator=g) * higher / (lower * out_dim) ** 0.5


def assert_near(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(
        st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.sampled_from([1, 3, 8, 9]), st.integers(1, 34)
    ),
    iterations=st.integers(1, 4),
    leaky=st.booleans(),
    detach_early=st.booleans(),
    seed=st.integers(0, 100),
)
def test_routing_is_that_of_float64(shape, iterations, leaky, detach_early, seed):
    inputs, weight = layer(*shape, seed)
    arguments = [x.requires_grad_() for x in (inputs, weight)]
    out = route(*arguments, iterations, leaky, detach_early)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    precise = [x.detach().double().requires_grad_() for x in arguments]
    expected = route(*precise, iterations, leaky, detach_early)  # double precision never takes the kernel
    assert_near(out, expected, 2e-5)
    for actual, right in zip(
        torch.autograd.grad(out, arguments, upstream),
        torch.autograd.grad(expected, precise, upstream.double()),
        strict=True,
    ):
        assert_near(actual, right, 2e-5)


@needs_kernels
@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("sizes", [(10, 8, 16), (7, 5, 11)])
def test_routing_is_the_procedure_of_the_paper(sizes, leaky):
    inputs, weight = layer(20, 30, *sizes, seed=0)
    expected, _ = reference.route(inputs.double().numpy(), weight.double().numpy(), 3, leaky)
    assert_near(route(inputs, weight, 3, leaky), torch.from_numpy(expected), 2e-6)


@needs_kernels
def test_routing_repeats_bit_for_bit():
    inputs, weight = (x.requires_grad_() for x in layer(50, 200, 10, 8, 16, seed=0))
    runs = []
    for _ in range(5):
        out = route(inputs, weight, 3, False)
        runs.append((out, *torch.autograd.grad(out.sum(), (inputs, weight))))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@needs_kernels
def test_routing_takes_any_layout_and_only_what_is_asked():
    inputs, weight = layer(20, 30, 4, 8, 16, seed=0)
    strided = inputs.mT.contiguous().mT, weight.mT.contiguous().mT
    assert torch.equal(route(*strided, 3, False), route(inputs, weight, 3, False))
    both = torch.autograd.grad(
        route(inputs.requires_grad_(), weight.requires_grad_(), 3, False).sum(), (inputs, weight)
    )
    one = torch.autograd.grad(route(inputs, weight.detach(), 3, False).sum(), inputs)[0]
    other = torch.autograd.grad(route(inputs.detach(), weight, 3, False).sum(), weight)[0]
    assert torch.equal(one, both[0])
    assert torch.equal(other, both[1])


@needs_kernels
def test_huge_and_silent_inputs_stay_finite():
    inputs, weight = layer(20, 30, 4, 8, 16, seed=0)
    for scale in (0.0, 1e-20, 1e6, 1e12):
        x, w = (scale * inputs).requires_grad_(), weight.clone().requires_grad_()
        out = route(x, w, 3, False)
        assert all(y.isfinite().all() for y in (out, *torch.autograd.grad(out.sum(), (x, w))))


@needs_kernels
def test_nan_stays_nan():
    inputs, weight = layer(20, 30, 4, 8, 16, seed=0)
    inputs[3, 5, 2] = torch.nan
    out = route(inputs, weight, 3, False)
    assert out[3].isnan().all()
    assert out[:3].isfinite().all()
    images = torch.rand(16, 1, 9, 9)
    images[3, 0, 4, 4] = torch.nan
    features = conv2d(images, torch.randn(8, 1, 5, 5), relu=True)
    assert features[3].isnan().all()
    assert features[:3].isfinite().all()

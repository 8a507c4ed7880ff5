"""The compiled kernels against float64, and that they are there where they can be."""

import shutil

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capsnet import kernels
from capsnet.convolution import conv2d
from capsnet.functional import _squash, squash
from capsnet.routing import _Routing

pytestmark = pytest.mark.usefixtures("two_threads")
needs_kernels = pytest.mark.skipif(not kernels.available(), reason="no compiled kernels here")


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2"), reason="they want AVX2 or more")
@pytest.mark.skipif(not shutil.which("gcc"), reason="there is no compiler")
def test_are_compiled_where_they_can_be():
    assert kernels.available()


def route(inputs, weight, iterations, leaky, detach_early=False):
    """Through the kernel, which `capsnet.routing.route` takes for larger batches only."""
    return _Routing.apply(inputs, weight, iterations, leaky, detach_early, 1.0)


def layer(batch, lower, higher, in_dim, out_dim, seed):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, lower, in_dim, generator=g) / in_dim**0.5
    return inputs, torch.randn(higher, lower, in_dim, out_dim, generator=g) * higher / (lower * out_dim) ** 0.5


def assert_near(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual.double() - expected).abs().max() <= tolerance * expected.abs().max()


@needs_kernels
@settings(max_examples=60, deadline=None, derandomize=True)
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


@st.composite
def vectors_apart(draw):
    """Vectors whose numbers do not lie side by side, and the dimension along which they do lie."""
    outer, dim, inner = draw(st.integers(1, 40)), draw(st.integers(1, 20)), draw(st.integers(8, 150))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    s = torch.randn(outer, dim, inner, generator=g) * 10.0 ** draw(st.integers(-15, 15))
    s[torch.rand(outer, 1, inner, generator=g).expand_as(s) < 0.1] = 0
    order = draw(st.permutations(range(3)))
    return s.permute(order), order.index(1), torch.randn(s.shape, generator=g).permute(order)


@needs_kernels
@given(vectors_apart())
@settings(deadline=None)
def test_squash_agrees_with_float64(drawn):
    s, dim, grad = drawn
    outcomes = []
    for function, x in ((squash, s.clone()), (_squash, s.double())):
        assert x.stride() == s.stride()
        v = function(x.requires_grad_(), dim)
        outcomes.append((v, *torch.autograd.grad(v, x, grad.to(x.dtype))))
    assert "_Squash" in type(outcomes[0][0].grad_fn).__name__
    # Vector by vector. Along a long one the gradient is a small difference of large terms, as large as across it.
    length = s.double().norm(dim=dim, keepdim=True)
    terms = grad.double().norm(dim=dim, keepdim=True) * length / (1 + length**2)
    for actual, expected, least in zip(*outcomes, (0, terms), strict=True):
        scale = torch.maximum(expected.norm(dim=dim, keepdim=True), torch.as_tensor(least)).clamp_min(1e-30)
        assert ((actual.double() - expected).abs() / scale).max() <= 2e-6


@needs_kernels
def test_squash_takes_gradients_that_lie_otherwise_and_is_differentiated_twice():
    s = torch.randn(3, 16, 9, 2, generator=torch.Generator().manual_seed(0)).permute(0, 2, 3, 1).requires_grad_()
    same = s.detach().double().requires_grad_()
    outcomes = []
    for function, x in ((squash, s), (_squash, same)):
        v = function(x, 1)
        (first,) = torch.autograd.grad(v.sum(), x, retain_graph=True)  # of ones that are stored once
        (graph,) = torch.autograd.grad(v.square().sum(), x, create_graph=True)
        outcomes.append((first, graph, *torch.autograd.grad(graph.square().sum(), x)))
    for actual, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e20, 1e37])
def test_squash_and_its_gradient_are_finite(scale):
    s = (torch.randn(5, 8, 16, generator=torch.Generator().manual_seed(1)) * scale).requires_grad_()
    v = squash(s, 1)
    (gradient,) = torch.autograd.grad(v.sum(), s)
    assert v.isfinite().all()
    assert gradient.isfinite().all()
    assert (v.abs() <= 1).all()
    if scale == 0:
        assert not v.any()
        assert not gradient.any()


@needs_kernels
def test_squash_of_numbers_that_are_none_is_none():
    s = torch.zeros(2, 4, 16)
    s[0, 1, 3] = torch.nan
    v = squash(s, 1)
    assert v[0, :, 3].isnan().all()
    assert v.isnan().sum() == 4

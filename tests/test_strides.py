"""However the numbers of a tensor lie in memory, each kernel computes the same: against float64, forward and back.

C is given an address and looks at no strides. So every argument and every incoming gradient comes here in all orders
of its dimensions, and with gaps, offsets, repetitions and overlaps.
"""

import math
from functools import partial
from itertools import permutations

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from capsnet import convolution, kernels
from capsnet.convolution import Conv2d, Kept, conv2d, direct_conv2d
from capsnet.functional import squash
from capsnet.layers import ConvCapsules, PrimaryCapsules
from capsnet.optimizer import AdamW
from capsnet.pooling import max_pool2d
from capsnet.routing import _Routing
from capsnet.spectral import spectral_conv2d

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no compiled kernels here")

SAME = "dense", "gaps"  # forms that keep the numbers
FORMS = *SAME, "expanded", "overlapping"


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def orders(dimensions: int) -> list[tuple[int, ...]]:
    """All, the slowest dimension first."""
    return list(permutations(range(dimensions)))


def lay(x: Tensor, order: tuple[int, ...], form: str = "dense") -> Tensor:
    """The numbers of ``x``, stored in another order, perhaps with gaps and behind others.

    If repeated or overlapping, other numbers of that shape.
    """
    step = 2 if form == "gaps" else 1
    sizes = [step * x.shape[d] for d in order]
    strides = [0] * x.dim()
    for place, d in enumerate(order):
        strides[d] = step * math.prod(sizes[place + 1 :])
    if form == "expanded":
        strides[order[0]] = strides[order[-1]] = 0
    if form == "overlapping":
        strides[order[0]] = strides[order[-1]]
    offset = 0 if form == "dense" else 7
    scale = x.square().mean().sqrt()
    laid = (scale * torch.randn(offset + math.prod(sizes), dtype=x.dtype)).as_strided(x.shape, strides, offset)
    return laid.copy_(x) if form in SAME else laid


def assert_near(actual: Tensor, exact: Tensor, tolerance: float = 1e-5) -> None:
    """Or, where all of a few values are small because their terms cancel, near in units of the terms, which is 1."""
    assert actual.shape == exact.shape
    assert (actual.double() - exact).abs().max() <= tolerance * exact.abs().max().clamp_min(1)


def outcome(function, arguments: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result, and the gradients for all arguments."""
    leaves = [x.detach().requires_grad_() for x in arguments]
    y = function(*leaves)
    return [y, *torch.autograd.grad(y, leaves, grad)]


def exactly(function, arguments: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The same in float64, of tensors that are contiguous."""
    return outcome(function, [x.detach().double().contiguous() for x in arguments], grad.double().contiguous())


def assert_any_order(function, exact, arguments: list[Tensor], result: torch.Size) -> None:
    """Each argument and the gradient in turn comes in all orders, and in all forms that have the same numbers."""
    given_ = [*arguments, torch.randn(result)]
    expected = exactly(exact, given_[:-1], given_[-1])
    for number, x in enumerate(given_):
        for order in orders(x.dim()):
            for form in SAME:
                *laid, grad = [*given_[:number], lay(x, order, form), *given_[number + 1 :]]
                for actual, right in zip(outcome(function, laid, grad), expected, strict=True):
                    assert_near(actual, right)


# ------------------------------------------------------------------------------------------------------- convolutions

# Images, weight, stride, padding, tile: without overhang and with it, along one axis and along both.
CONVOLUTIONS = [
    ((2, 3, 8, 8), (4, 3, 3, 3), 1, 0, 3),
    ((2, 3, 8, 9), (4, 3, 3, 3), 1, 0, 3),
    ((3, 2, 9, 8), (5, 2, 3, 3), 1, 1, 4),
    ((2, 3, 13, 14), (4, 3, 5, 4), 2, 1, 3),
    ((1, 2, 11, 11), (3, 2, 5, 5), 2, 2, 3),
    ((2, 1, 8, 10), (1, 1, 3, 3), 1, 1, 5),
]


def exact_conv2d(stride: int, padding: int, through: Tensor | None = None):
    """`F.conv2d`, and of the results those that are let ``through``."""
    return lambda x, w, b: F.conv2d(x, w, b, stride, padding) * (1.0 if through is None else through)


@pytest.mark.parametrize("problem", CONVOLUTIONS)
def test_spectral_convolution(problem):
    x, w, stride, padding, tile = problem
    arguments = [torch.randn(size) for size in (x, w, w[:1])]
    exact = exact_conv2d(stride, padding)
    shape = exact(*arguments).shape
    assert_any_order(lambda *a: spectral_conv2d(*a, stride, padding, tile), exact, arguments, shape)


def direct(x: Tensor, stride: int, padding: int, relu: bool):
    """As the direct way is taken: the images have no gradient, and the kernel computes those of weight and bias."""
    return lambda w, b: direct_conv2d(x, w, b, stride, padding, relu)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("problem", CONVOLUTIONS)
def test_direct_convolution(problem, relu):
    x, w, stride, padding, _ = problem
    x, w, b = (torch.randn(size) for size in (x, w, w[:1]))
    through = (F.conv2d(x, w, b, stride, padding) > 0) if relu else torch.ones(())
    exact = partial(exact_conv2d(stride, padding, through), x.double())
    shape = exact(w.double(), b.double()).shape
    expected = exactly(exact, [w, b], torch.ones(shape))
    for order in orders(4):
        results = outcome(direct(lay(x, order), stride, padding, relu), [w, b], torch.ones(shape))
        for actual, right in zip(results, expected, strict=True):
            assert_near(actual, right)
    assert_any_order(direct(x, stride, padding, relu), exact, [w, b], shape)


@st.composite
def laid(draw, shape, scale=1.0):
    """Numbers that lie in any order and form."""
    x = torch.empty(tuple(shape)).normal_(std=scale)
    return lay(x, draw(st.sampled_from(orders(x.dim()))), draw(st.sampled_from(FORMS)))


@st.composite
def convolutions(draw):
    """Images, weight, bias and gradient, each laid out by itself; stride, padding, tile."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    kernel, stride, padding = draw(st.integers(2, 5)), draw(st.integers(1, 2)), draw(st.integers(0, 2))
    sides = [draw(st.integers(kernel + 2, 14)) for _ in range(2)]
    images, channels, out = (draw(st.integers(1, 5)) for _ in range(3))
    shapes = (images, channels, *sides), (out, channels, kernel, kernel), (out,)
    shape = F.conv2d(*(torch.empty(size) for size in shapes), stride, padding).shape
    tensors = [draw(laid(size)) for size in (*shapes[:2], shape)]
    return [*tensors[:2], draw(laid(shapes[2]))], tensors[2], stride, padding, draw(st.integers(3, 6))


@given(convolutions())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_convolutions_of_anything(drawn):
    arguments, grad, stride, padding, tile = drawn
    expected = exactly(exact_conv2d(stride, padding), arguments, grad)
    leaves = [x.detach().requires_grad_() for x in arguments]
    y = spectral_conv2d(*leaves, stride, padding, tile)
    assert_near(y, expected[0])
    for some in (grad, *(lay(grad, order) for order in orders(4))):
        for actual, right in zip(torch.autograd.grad(y, leaves, some, retain_graph=True), expected[1:], strict=True):
            assert_near(actual, right)
    x, *others = arguments
    for relu in False, True:
        y = direct_conv2d(*arguments, stride, padding, relu)
        exact = partial(exact_conv2d(stride, padding, (y > 0) if relu else None), x.double().contiguous())
        results = outcome(direct(x, stride, padding, relu), others, grad)
        for actual, right in zip(results, exactly(exact, others, grad), strict=True):
            assert_near(actual, right)


@pytest.mark.parametrize("order", orders(4))
def test_rows_first_behind_a_layer(order, monkeypatch):
    """As a module of the user's would have it: what comes back lies in the order that it wanted."""
    monkeypatch.setattr(convolution, "spectral_wins", lambda *_: True)
    monkeypatch.setattr(convolution, "best_tile", lambda *_: (4, 0.0))  # the last ones stand over
    layer, x = Conv2d(3, 4, 5, padding=2), torch.randn(2, 3, 11, 13)
    back = [order.index(d) for d in range(4)]
    target = torch.randn(2, 4, 11, 13).permute(order).contiguous()

    def rows_first(x, w, b, conv):
        return conv(x, w, b).permute(order).contiguous().permute(back)

    arguments = [x, layer.weight, layer.bias]
    ours = outcome(lambda *a: rows_first(*a, lambda *a: conv2d(*a, 1, 2)), arguments, target.permute(back))
    exact = exactly(lambda *a: F.conv2d(*a, 1, 2), arguments, target.permute(back))
    for actual, right in zip(ours, exact, strict=True):
        assert_near(actual, right)


@pytest.mark.parametrize("spectral", [False, True])
def test_gradients_that_are_stored_once(spectral):
    """``sum().backward()`` and ``mean()`` over some of the dimensions: strides of zero."""
    function = (lambda *a: spectral_conv2d(*a, 1, 1, 3)) if spectral else direct_conv2d
    arguments = [torch.randn(size) for size in ((2, 3, 10, 11), (4, 3, 3, 3), (4,))]
    for dims in (0, 1, 2, 3), (2, 3), (0,), (1, 3):
        results = []
        for f, kind in (function, torch.float32), (lambda *a: F.conv2d(*a, 1, int(spectral)), torch.float64):
            leaves = [x.detach().to(kind).requires_grad_(spectral or i > 0) for i, x in enumerate(arguments)]
            results.append(torch.autograd.grad(f(*leaves).mean(dims).sum(), [x for x in leaves if x.requires_grad]))
        for actual, right in zip(*results, strict=True):
            assert_near(actual, right)


@pytest.mark.parametrize("spectral", [False, True])
def test_kept_weights(spectral, monkeypatch):
    monkeypatch.setattr(convolution, "spectral_wins", lambda *_: spectral)
    x, w, b = torch.randn(2, 3, 10, 11), torch.randn(4, 3, 3, 3), torch.randn(4)
    exact = F.conv2d(x.double(), w.double(), b.double(), 1, 1)
    kept = Kept()
    for order in orders(4):
        for form in SAME:
            for _ in range(2):
                assert_near(conv2d(x, lay(w, order, form), b, 1, 1, kept=kept), exact)
                assert_near(conv2d(lay(x, order, form), w, b, 1, 1, kept=kept), exact)


# ------------------------------------------------------------------------------------------------------------ routing


def procedure(u: Tensor, weight: Tensor, iterations: int) -> Tensor:
    """Procedure 1 of the paper, as it is written there."""
    votes = torch.einsum("bid,jide->bije", u, weight)
    logits = torch.zeros(votes.shape[:3], dtype=votes.dtype)
    for left in reversed(range(iterations)):
        s = (logits.softmax(2)[..., None] * votes).sum(1)
        norm = s.norm(dim=2, keepdim=True)
        v = norm / (1 + norm**2) * s
        if left:
            logits = logits + (votes * v[:, None]).sum(3)
    return v


def test_the_procedure_is_the_papers():
    u, weight = torch.randn(3, 5, 2).double(), torch.randn(4, 5, 2, 3).double()
    assert_near(procedure(u, weight, 3), torch.from_numpy(reference.route(u.numpy(), weight.numpy(), 3)[0]), 1e-12)


def routed(u: Tensor, weight: Tensor) -> Tensor:
    return _Routing.apply(u, weight, 3, False, False, 1.0)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])  # the kernel, and the passes in PyTorch
@pytest.mark.parametrize("sizes", [(18, 5, 3, 8, 16), (9, 6, 4, 3, 5), (1, 1, 2, 2, 1)])
def test_routing(kind, sizes):
    batch, lower, higher, in_dim, out_dim = sizes
    arguments = [torch.randn(batch, lower, in_dim).to(kind), torch.randn(higher, lower, in_dim, out_dim).to(kind)]
    call = lambda u, w: routed(u.to(kind), w.to(kind))  # noqa: E731
    given_ = [*arguments, torch.randn(batch, higher, out_dim).to(kind)]
    expected = exactly(lambda u, w: procedure(u, w, 3), given_[:2], given_[2])
    for number, x in enumerate(given_):
        for order in orders(x.dim()):
            for form in SAME:
                *some, grad = [*given_[:number], lay(x, order, form), *given_[number + 1 :]]
                for actual, right in zip(outcome(call, some, grad), expected, strict=True):
                    assert_near(actual, right, 2e-5)


@st.composite
def routings(draw):
    torch.manual_seed(draw(st.integers(0, 1000)))
    batch, lower, higher, in_dim, out_dim = (draw(st.integers(1, most)) for most in (20, 6, 4, 9, 9))
    u, weight = laid((batch, lower, in_dim), in_dim**-0.5), laid((higher, lower, in_dim, out_dim), lower**-0.5)
    return [draw(tensor) for tensor in (u, weight, laid((batch, higher, out_dim)))]


@given(routings())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_routing_of_anything(drawn):
    *arguments, grad = drawn
    expected = exactly(lambda u, w: procedure(u, w, 3), arguments, grad)
    for actual, right in zip(outcome(routed, arguments, grad), expected, strict=True):
        assert_near(actual, right, 2e-5)


# ------------------------------------------------------------------------------------------------- squash and pooling


def exact_squash(dim: int):
    def squash(s):
        norm = s.norm(dim=dim, keepdim=True)
        return norm / (1 + norm**2) * s

    return squash


@pytest.mark.parametrize("shape", [(3, 4, 16), (2, 3, 4, 9), (1, 4, 2, 8), (2, 1, 9, 3)])
def test_squash(shape):
    for dim in range(len(shape)):
        s, grad = torch.randn(shape), torch.randn(shape)
        expected = exactly(exact_squash(dim), [s], grad)
        for order in orders(len(shape)):
            for other in orders(len(shape))[::5]:
                for form in SAME:
                    for some in (lay(s, order), lay(grad, other, form)), (lay(s, order, form), lay(grad, other)):
                        actual = outcome(lambda s: squash(s, dim), [some[0]], some[1])  # noqa: B023
                        for a, right in zip(actual, expected, strict=True):
                            assert_near(a, right)


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_squash_of_anything(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 8, 9]), min_size=1, max_size=4))
    dim = data.draw(st.integers(0, len(shape) - 1))
    s, grad = data.draw(laid(shape)), data.draw(laid(shape))
    for actual, right in zip(
        outcome(lambda s: squash(s, dim), [s], grad), exactly(exact_squash(dim), [s], grad), strict=True
    ):
        assert_near(actual, right)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (3, 1, 5, 7), (1, 2, 3, 2)])
def test_pooling(shape):
    pooled = F.max_pool2d(torch.empty(shape), 2).shape
    assert_any_order(max_pool2d, lambda x: F.max_pool2d(x, 2), [torch.randn(shape)], pooled)


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pooling_of_anything(data):
    """Where numbers are repeated any of the largest may get the gradient, so there only the result is compared."""
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    x = data.draw(laid([data.draw(st.integers(2, 5)) for _ in range(4)]))
    grad = data.draw(laid(F.max_pool2d(x, 2).shape))
    results, expected = outcome(max_pool2d, [x], grad), exactly(lambda x: F.max_pool2d(x, 2), [x], grad)
    assert_near(results[0], expected[0])
    if x.unique().numel() == x.numel():
        assert_near(results[1], expected[1])


# ---------------------------------------------------------------------------------------------- layers and optimizer


@pytest.mark.parametrize("order", orders(4))
def test_layers(order, monkeypatch):
    monkeypatch.setattr(convolution, "spectral_wins", lambda *_: True)
    torch.manual_seed(0)
    primary, windows = PrimaryCapsules(4, 3, 8, 3), ConvCapsules(3, 8, 4, 5, 3)
    x = lay(torch.randn(10, 4, 13, 13), order).requires_grad_()
    results = []
    for kind in torch.float32, torch.float64:
        a = x.detach().to(kind).requires_grad_()
        u = primary.to(kind)(a)
        v = windows.to(kind)(u.unflatten(1, (6, 6, 3)))
        grad = lay(torch.linspace(-1, 1, v.numel(), dtype=kind).view(v.flatten(3).shape), order).view(v.shape)
        results.append([u, v, *torch.autograd.grad(v, [a, *primary.parameters(), *windows.parameters()], grad)])
    for actual, right in zip(*results, strict=True):
        assert_near(actual, right, 5e-5)


@pytest.mark.parametrize("form", SAME)
def test_optimizer(form):
    start, grads = torch.randn(2, 3, 4, 5), torch.randn(3, 2, 3, 4, 5)
    exact = torch.nn.Parameter(start.double())
    reference_ = torch.optim.AdamW([exact], lr=0.01)
    for grad in grads:
        exact.grad = grad.double()
        reference_.step()
    for order in orders(4):
        for other in orders(4)[::5]:
            weight = torch.nn.Parameter(lay(start, order, form))
            optimizer = AdamW([weight], lr=0.01)
            for grad in grads:
                weight.grad = lay(grad, other, form)
                optimizer.step()
            assert_near(weight.detach(), exact.detach(), 1e-6)


# ---------------------------------------------------------------------------------------- what was stored otherwise


def assert_right_when_kept_otherwise(pack, unpack) -> None:
    x, w, b = torch.randn(2, 3, 10, 11), torch.randn(4, 3, 3, 3), torch.randn(4)
    s, u, weight = torch.randn(2, 9, 4, 3).permute(0, 2, 3, 1), torch.randn(18, 5, 8), torch.randn(3, 5, 8, 16) / 4
    conv = exact_conv2d(1, 1)
    for function, exact, arguments in (
        (lambda *a: spectral_conv2d(*a, 1, 1, 3), conv, [x, w, b]),
        (lambda *a: direct_conv2d(x, *a, 1, 1), lambda *a: conv(x.double(), *a), [w, b]),
        (lambda s: squash(s, 1), exact_squash(1), [s]),
        (lambda s: squash(s.contiguous(), 1), exact_squash(1), [s]),
        (routed, lambda u, w: procedure(u, w, 3), [u, weight]),
    ):
        grad = torch.randn(function(*arguments).shape)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            results = outcome(function, arguments, grad)
        for actual, right in zip(results, exactly(exact, arguments, grad), strict=True):
            assert_near(actual, right, 2e-5)


@pytest.mark.parametrize("order", orders(4))
def test_saved_tensors_may_come_back_in_another_order(order):
    """As from hooks that keep numbers and shapes elsewhere, and not strides."""
    assert_right_when_kept_otherwise(
        lambda x: x, lambda x: lay(x, order) if x.dim() == 4 and x.is_floating_point() else x
    )
    some = tuple(d for d in order if d < 3)
    assert_right_when_kept_otherwise(lambda x: x, lambda x: lay(x, some) if x.dim() == 3 else x)


def test_saved_tensors_may_come_back_contiguous():
    """As from `torch.autograd.graph.save_on_cpu`."""
    assert_right_when_kept_otherwise(
        lambda x: torch.empty_like(x, memory_format=torch.contiguous_format).copy_(x), lambda x: x
    )


def test_negative_views():
    """Numbers whose sign is a flag: those of ``z.conj().imag``."""
    x, w, b = torch.randn(16, 1, 12, 12), torch.randn(4, 1, 5, 5), torch.randn(4)
    for some in (torch._neg_view(-x), w, b), (x, torch._neg_view(-w), b), (x, w, torch._neg_view(-b)):
        assert_near(conv2d(*some), F.conv2d(x.double(), w.double(), b.double()))
    s, grad = (torch.randn(2, 3, 9) for _ in range(2))
    expected = exactly(exact_squash(1), [s], grad)
    for given_ in (torch._neg_view(-s), grad), (s, torch._neg_view(-grad)):
        for actual, right in zip(outcome(lambda s: squash(s, 1), [given_[0]], given_[1]), expected, strict=True):
            assert_near(actual, right)


@pytest.mark.parametrize("x", [torch.randn(3, 4).T, torch.randn(3, 4)[:, ::2], torch.randn(3).double()])
def test_c_gets_no_address_of_what_it_would_misread(x):
    with pytest.raises(RuntimeError, match="contiguous float32"):
        kernels.address(x)

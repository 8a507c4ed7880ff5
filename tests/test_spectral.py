"""The quick ways of convolution against float64 ``F.conv2d``."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from process import run_python
from torch import Tensor
from torch.autograd import forward_ad

from capsnet import kernels
from capsnet.convolution import Conv2d, conv2d, direct_conv2d, direct_wins, spectral_wins
from capsnet.optimizer import AdamW
from capsnet.spectral import spectral_conv2d, steps
from capsnet.spectral.steps import steps_for

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="no compiled kernels here"),
    pytest.mark.usefixtures("two_threads"),
]

PRIMARY = torch.Size((32, 256, 20, 20)), torch.Size((256, 256, 9, 9)), 2, 0
BASELINE = torch.Size((32, 256, 28, 28)), torch.Size((256, 256, 5, 5)), 1, 2


def error(value: Tensor, exact: Tensor, terms: Tensor | None = None) -> float:
    """Largest error by largest value. Of a few values all may be small because their terms cancel, which costs every
    algorithm its accuracy; there the measure is the root of the sum of the squared terms."""
    few = terms is not None and exact.numel() < 16
    scale = terms.sqrt().max() if few else exact.abs().max()
    return ((value.double() - exact).abs().max() / scale.clamp_min(1e-30)).item()


def inputs(shape, weight, dtype=torch.float32):
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in (shape, weight, weight[:1])]


def run(function, leaves, grad, *sizes):
    """The result, and the gradients that are wanted."""
    y = function(*leaves, *sizes)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return y, *torch.autograd.grad(y, wanted, grad.to(y.dtype).expand_as(y))


def check(function, leaves, *sizes):
    """Within 2e-6 of float64 forward, and 1e-5 backward."""
    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    squares = [leaf.detach().square().requires_grad_(leaf.requires_grad) for leaf in exact]
    grad = torch.randn(F.conv2d(*exact, *sizes).shape).double()
    results, references = run(function, leaves, grad, *sizes), run(F.conv2d, exact, grad, *sizes)
    terms = run(F.conv2d, squares, grad.square(), *sizes)
    for i, (result, reference, term) in enumerate(zip(results, references, terms, strict=True)):
        assert result.shape == reference.shape
        assert error(result, reference, term) <= (1e-5 if i else 2e-6)


@st.composite
def problems(draw, longest=30, most_channels=20):
    kh, kw = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    height = draw(st.integers(max(1, kh - 2 * padding), longest))
    width = draw(st.integers(max(1, kw - 2 * padding), longest))
    images, channels, out = draw(st.integers(1, 3)), draw(st.integers(1, most_channels)), draw(st.integers(1, 9))
    return (images, channels, height, width), (out, channels, kh, kw), stride, padding


@given(problems(), st.one_of(st.none(), st.integers(3, 12)))
@settings(max_examples=40, deadline=None)
def test_equals_conv2d(problem, tile):
    x, weight, stride, padding = problem
    check(lambda x, w, b, s, p: spectral_conv2d(x, w, b, s, p, tile), inputs(x, weight), stride, padding)


@given(problems(longest=18, most_channels=12), st.integers(3, 6), st.sampled_from([1, 2**10, 2**14]))
@settings(max_examples=15, deadline=None)
def test_equals_conv2d_where_little_fits_the_cache(problem, tile, cache):
    """Tiles and channels then come one after the other, or a few at a time."""
    x, weight, stride, padding = problem
    steps_for.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_CACHE", cache)
        check(lambda x, w, b, s, p: spectral_conv2d(x, w, b, s, p, tile), inputs(x, weight), stride, padding)
    steps_for.cache_clear()


@given(problems())
@settings(max_examples=20, deadline=None)
def test_direct_equals_conv2d(problem):
    x, weight, stride, padding = problem
    check(direct_conv2d, inputs(x, weight), stride, padding)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 3, 0, 1), (0, 2, 3, 1), (1, 3, 0, 2)])
def test_any_strides(order):
    def strided(shape):
        back = [order.index(i) for i in range(4)]
        return torch.randn([2 * shape[i] for i in order])[::2, ::2, ::2, ::2].permute(back).requires_grad_()

    x, w = strided((2, 3, 17, 15)), strided((4, 3, 5, 4))
    check(spectral_conv2d, [x, w, torch.randn(4, requires_grad=True)], 2, 1)
    expanded = torch.randn(1, 3, 1, 15).expand(2, 3, 17, 15)
    check(spectral_conv2d, [expanded, w, torch.randn(4)], 1, 2)


def test_many_channels_stay_accurate():
    check(spectral_conv2d, inputs((4, 256, 20, 20), (32, 256, 9, 9)), 2, 0)
    check(spectral_conv2d, inputs((2, 256, 28, 28), (32, 256, 5, 5)), 1, 2)


def test_result_is_pixel_first():
    for function in (spectral_conv2d, direct_conv2d):
        y = function(*inputs((2, 3, 20, 20), (4, 3, 9, 9)), 2)
        assert y.permute(2, 3, 1, 0).is_contiguous()


@pytest.mark.parametrize("function", [spectral_conv2d, direct_conv2d])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_can_be_differentiated_twice(function, stride, padding):
    def second(function, leaves):
        first = torch.autograd.grad(function(*leaves, stride, padding).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    leaves = inputs((1, 2, 5, 6), (2, 2, 3, 4))
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for result, reference in zip(second(function, leaves), second(F.conv2d, exact), strict=True):
        assert error(result, reference) < 1e-5


@pytest.mark.parametrize("function", [spectral_conv2d, direct_conv2d])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_only_the_gradients_asked_for(function, wanted):
    leaves = [leaf.requires_grad_(i in wanted) for i, leaf in enumerate(inputs((2, 3, 9, 9), (4, 3, 3, 3)))]
    check(function, leaves, 1, 1)


@pytest.mark.parametrize("channels", [1, 128])
def test_relu_in_the_same_pass(channels):
    """Through the direct way, the spectral one and PyTorch's own."""
    leaves = inputs((32, channels, 20, 20), (64, channels, 9, 9))
    leaves[0].requires_grad_(channels > 1)
    function = lambda x, w, b: conv2d(x, w, b, 2, 0, relu=True)  # noqa: E731
    assert any(name in type(function(*leaves).grad_fn).__name__ for name in ("Direct", "Relu"))
    results = run(function, leaves, torch.ones(1))
    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    through = (results[0] > 0).double()  # where a result is nearly zero, rounding decides
    masked = lambda x, w, b: F.conv2d(x, w, b, 2) * through  # noqa: E731
    for result, reference in zip(results, run(masked, exact, torch.ones(1)), strict=True):
        assert error(result, reference) < 1e-5


@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from((3, 8, 130)), st.integers(1, 2), st.booleans())
@settings(max_examples=25, deadline=None)
def test_direct_gradients_of_weight_and_bias(batch, channels, out, stride, relu):
    """By the kernel, which copies what a ReLU lets through: any number of images, more rows than it copies at once."""
    x, weight, bias = inputs((batch, channels, 11, 12), (out, channels, 4, 5))
    x.requires_grad_(False)
    y = direct_conv2d(x, weight, bias, stride, 0, relu)
    through = (y.detach() > 0).double() if relu else torch.ones(())
    masked = lambda *leaves: F.conv2d(*leaves, stride) * through  # noqa: E731
    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in (x, weight, bias)]
    squares = [leaf.detach().square().requires_grad_(leaf.requires_grad) for leaf in exact]
    grad = torch.randn(y.shape)
    results = torch.autograd.grad(y, (weight, bias), grad)
    references, terms = run(masked, exact, grad)[1:], run(masked, squares, grad.square())[1:]
    for result, reference, term in zip(results, references, terms, strict=True):
        assert error(result, reference, term) < 1e-5


@pytest.mark.parametrize("function", [spectral_conv2d, direct_conv2d])
def test_result_may_be_changed_in_place(function):
    leaves, grad = inputs((2, 3, 9, 9), (4, 3, 3, 3)), torch.randn(2, 4, 7, 7)
    in_place = run(lambda *a: F.relu(function(*a), inplace=True), leaves, grad)
    aside = run(lambda *a: F.relu(function(*a)), leaves, grad)
    assert all(map(torch.equal, in_place, aside))


def test_backward_twice_over_one_graph():
    leaves = inputs((2, 3, 9, 9), (4, 3, 3, 3))
    loss = spectral_conv2d(*leaves, 1, 1).square().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, leaves)))


def test_automatic_choice():
    assert spectral_wins(*PRIMARY)
    assert spectral_wins(*BASELINE)
    assert spectral_wins(torch.Size((8, 256, 20, 20)), *PRIMARY[1:])
    assert not spectral_wins(torch.Size((4, 32, 128, 128)), torch.Size((64, 32, 5, 5)), 1, 2)
    assert not spectral_wins(torch.Size((32, 256, 20, 20)), torch.Size((256, 256, 1, 1)), 1, 0)
    assert not spectral_wins(torch.Size((1, 8, 20, 20)), torch.Size((8, 8, 9, 9)), 2, 0)
    assert not spectral_wins(torch.Size((128, 1, 28, 28)), torch.Size((256, 1, 9, 9)), 1, 0)
    assert direct_wins(torch.empty(16, 1, 28, 28), torch.empty(256, 1, 9, 9))
    assert not direct_wins(torch.empty(16, 1, 28, 28, requires_grad=True), torch.empty(256, 1, 9, 9))


def test_without_kernels_pytorch_does_it(big, monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert torch.equal(conv2d(*big, 2), F.conv2d(*big, 2))


@pytest.fixture
def big():
    """Just large enough for the spectral way, and named in the graph when it was taken."""
    x, w = torch.randn(32, 128, 20, 20), torch.randn(128, 128, 9, 9).mul_(0.01)
    assert spectral_wins(x.shape, w.shape, 2, 0)
    return x, w, torch.randn(128)


def way(y: Tensor) -> str:
    return type(y.grad_fn).__name__


def test_takes_the_chosen_way(big):
    x, w, b = big
    w = w.requires_grad_()
    assert "Spectral" in way(conv2d(x, w, b, 2))
    assert "Direct" in way(conv2d(torch.randn(16, 1, 28, 28), torch.randn(8, 1, 9, 9, requires_grad=True)))
    assert "Convolution" in way(conv2d(x.double(), w.double(), b.double(), 2)).replace("Spectral", "")
    assert "Spectral" not in way(conv2d(x.double(), w.double(), b.double(), 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert conv2d(x, w, b, 2).dtype == torch.bfloat16
    meta = conv2d(x.to("meta"), w.to("meta"), b.to("meta"), 2)
    assert meta.shape == (32, 128, 6, 6)
    assert meta.device.type == "meta"


def test_transforms_and_export(big):
    x, w, b = big
    exact = F.conv2d(x, w, b, 2)
    call = lambda x, w: conv2d(x, w, b, 2)  # noqa: E731
    mapped = torch.vmap(lambda image: call(image[None], w)[0])(x)
    assert error(mapped, exact.double()) < 2e-6
    grad = torch.func.grad(lambda w: call(x, w).square().mean())(w)
    leaf = w.clone().requires_grad_()
    assert error(grad, torch.autograd.grad(call(x, leaf).square().mean(), leaf)[0].double()) < 1e-5
    assert torch.func.jvp(lambda w: call(x, w), (w,), (w,))[1].shape == exact.shape

    class Module(torch.nn.Module):
        def forward(self, x):
            return call(x, w)

    exported = torch.export.export(Module(), (x,))
    assert any("conv2d" in str(node.target) for node in exported.graph.nodes)


def test_compile():
    program = """
        import torch
        from capsnet.convolution import conv2d

        x, w, b = torch.randn(32, 128, 20, 20), torch.randn(128, 128, 9, 9), torch.randn(128)
        compiled = torch.compile(lambda x, w: conv2d(x, w, b, 2), backend="eager", fullgraph=True)
        plain = torch.nn.functional.conv2d(x, w, b, 2)
        print(torch.equal(compiled(x, w), plain))
    """
    assert run_python(program).strip() == "True"


def test_layer_is_conv2d(big):
    layer, plain = Conv2d(128, 128, 9, 2), torch.nn.Conv2d(128, 128, 9, 2)
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    layer.load_state_dict(plain.state_dict())
    assert layer.weight.permute(2, 3, 1, 0).is_contiguous()
    assert error(layer(big[0]), plain.double()(big[0].double())) < 2e-6
    layer(big[0]).sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_of_a_weight_does_not_change_the_result(channels):
    x, layer = torch.rand(2, channels, 17, 17), Conv2d(channels, 4, 9)
    assert torch.equal(layer(x), conv2d(x, layer.weight.detach().contiguous(), layer.bias))


@pytest.mark.parametrize("images", [32, 2])  # two ways, of which each wants something else of the weight
def test_kept_weight_follows_changes(big, images):
    x = big[0][:images]
    assert spectral_wins(x.shape, big[1].shape, 2, 0) == (images == 32)
    layer = Conv2d(128, 128, 9, 2).eval()

    def right() -> bool:
        with torch.inference_mode():
            exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), 2)
            return error(layer(x), exact) < 2e-6

    assert right()
    kept = layer._kept.kept
    assert kept is not None
    assert right()
    assert layer._kept.kept is kept
    with torch.no_grad():
        layer.weight.mul_(2)
    assert right()
    assert layer._kept.kept is not kept
    for optimizer in (AdamW(layer.parameters(), 0.1), torch.optim.AdamW(layer.parameters(), 0.1, fused=True)):
        layer(x).sum().backward()
        assert layer._kept.kept is None
        assert right()
        optimizer.step()
        assert right() == isinstance(optimizer, AdamW)  # PyTorch's fused step leaves no trace
        layer(x[:1])  # but nobody trains without having called the layer with gradients, after which all is well
        assert right()
    for _ in range(2):
        layer.weight.data = torch.randn(128, 128, 9, 9)
    assert right()
    layer.train()
    assert layer._kept.kept is None
    layer.weight.data.mul_(3)
    layer.eval()
    assert right()
    layer.weight = torch.nn.Parameter(torch.randn(128, 128, 9, 9))
    assert right()
    with torch.inference_mode():
        layer.weight = torch.nn.Parameter(torch.randn(128, 128, 9, 9))
        assert right()
        layer.weight.mul_(2)
        assert right()


def test_kept_weight_does_not_travel(big):
    layer = Conv2d(128, 128, 9, 2).eval()
    with torch.no_grad():
        layer(big[0])
    assert copy.deepcopy(layer)._kept.kept is None
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    assert buffer.tell() < 1.1 * 4 * sum(p.numel() for p in layer.parameters())


def test_a_kernel_with_many_taps():
    """More than a run of the products has columns otherwise; and more rows than a panel has."""
    x, *others = inputs((16, 3, 30, 30), (4, 3, 27, 27))
    check(direct_conv2d, [x.detach(), *others], 1, 0)
    check(lambda *leaves: spectral_conv2d(*leaves, 3), inputs((1, 1, 302, 5), (1, 1, 300, 3)), 1, 0)


@pytest.mark.parametrize("function", [spectral_conv2d, direct_conv2d])
def test_backward_may_be_vectorized(function):
    x, w, b = inputs((16, 2, 9, 9), (3, 2, 4, 4))
    y = function(x.detach(), w, b)
    grads = torch.randn(5, *y.shape)
    found = torch.autograd.grad(y, (w, b), grads, is_grads_batched=True, retain_graph=True)
    for number, grad in enumerate(grads):
        for one, alone in zip(found, torch.autograd.grad(y, (w, b), grad, retain_graph=True), strict=True):
            assert error(one[number], alone.double()) < 1e-5


def test_forward_mode():
    x, w, _ = (leaf.detach() for leaf in inputs((16, 1, 28, 28), (8, 1, 9, 9)))
    with forward_ad.dual_level():
        y = conv2d(forward_ad.make_dual(x, torch.ones_like(x)), w)
        tangent = forward_ad.unpack_dual(y).tangent
        torch.testing.assert_close(tangent, F.conv2d(torch.ones_like(x), w), rtol=1e-4, atol=1e-4)


def test_what_is_saved_can_be_kept_elsewhere():
    """As checkpointing and offloading do, which ask what is saved; and a second time backward finds it as it was."""
    seen = []
    x, w, b = inputs((2, 3, 12, 12), (4, 3, 5, 5))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t.clone(), lambda t: t):
        y = spectral_conv2d(x, w, b)
    assert len(seen) == 3
    first, second = (torch.autograd.grad(y.sum(), (x, w, b), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))

"""Routing against the reference loops, its gradients, its transforms and its memory."""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from process import run_python
from torch.utils._python_dispatch import TorchDispatchMode

from capsnet import kernels, routing, routing_passes
from capsnet.functional import squash
from capsnet.routing import couplings, route


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["chunks", "votes"])
def path(request, monkeypatch):
    """Both ways through `route` in PyTorch: chunk by chunk (a few input capsules each), and the plain procedure."""
    monkeypatch.setattr(kernels, "library", lambda: None)
    monkeypatch.setattr(routing_passes, "CHUNK_CPU", 100 if request.param == "chunks" else 2**20)
    return request.param


@pytest.fixture(params=["kernel", "no kernel"])
def with_and_without_kernel(request, monkeypatch):
    if request.param == "no kernel":
        monkeypatch.setattr(kernels, "library", lambda: None)
    elif not kernels.available():
        pytest.skip("no compiled kernels here")
    return request.param == "kernel"


def layer(batch=3, lower=7, higher=5, in_dim=4, out_dim=6, dtype=torch.float64, seed=0, requires_grad=False):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, lower, in_dim, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(higher, lower, in_dim, out_dim, generator=g, dtype=torch.float64).to(dtype)
    return inputs.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)


def gradients(function, inputs, weight, seed=1):
    out = function(inputs, weight)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad(out, (inputs, weight), upstream.to(out.dtype))


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("leaky", [False, True])
def test_is_procedure_1(path, iterations, leaky):
    inputs, weight = layer()
    outputs, coefficients = reference.route(inputs.numpy(), weight.numpy(), iterations, leaky)
    close(route(inputs, weight, iterations, leaky=leaky), torch.from_numpy(outputs))
    close(couplings(inputs, weight, iterations, leaky=leaky), torch.from_numpy(coefficients))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 5),) * 5),
    iterations=st.integers(1, 4),
    leaky=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    chunk=st.sampled_from([1, 50, 2**20]),
)
def test_every_shape_is_procedure_1(shape, iterations, leaky, scale, chunk):
    inputs, weight = layer(*shape)
    expected, coefficients = reference.route(scale * inputs.numpy(), weight.numpy(), iterations, leaky)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing_passes, "CHUNK_CPU", chunk)
        close(route(scale * inputs, weight, iterations, leaky=leaky), torch.from_numpy(expected), 1e-9)
        close(couplings(scale * inputs, weight, iterations, leaky=leaky), torch.from_numpy(coefficients), 1e-9)


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("leaky", [False, True])
def test_gradients_flow_through_every_iteration(path, iterations, leaky):
    arguments = layer(2, 5, 3, 2, 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u, w: route(u, w, iterations, leaky=leaky), arguments, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("leaky", [False, True])
def test_detach_early_takes_the_last_couplings_as_constants(path, iterations, leaky):
    inputs, weight = layer(requires_grad=True)
    c = couplings(inputs, weight, iterations, leaky=leaky)[-1]

    def last_iteration(inputs, weight):
        return squash(torch.einsum("bij,bid,jide->bje", c, inputs, weight))

    actual = gradients(lambda u, w: route(u, w, iterations, leaky=leaky, detach_early=True), inputs, weight)
    close(actual, gradients(last_iteration, inputs, weight))


def test_only_the_gradient_asked_for(path):
    inputs, weight = layer(requires_grad=True)
    for_inputs, for_weight = gradients(route, inputs, weight)
    upstream = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    close(torch.autograd.grad(route(inputs, weight.detach()), inputs, upstream)[0], for_inputs)
    close(torch.autograd.grad(route(inputs.detach(), weight), weight, upstream)[0], for_weight)


def test_can_be_differentiated_twice(path):
    arguments = layer(2, 3, 2, 2, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(route, arguments)
    frozen = arguments[1].detach()
    assert torch.autograd.gradgradcheck(lambda u: route(u, frozen), arguments[:1])


@pytest.mark.parametrize("leaky", [False, True])
def test_all_paths_agree_in_float32(with_and_without_kernel, monkeypatch, leaky):
    inputs, weight = layer(20, 60, 10, 8, 16, torch.float32, requires_grad=True)

    def run():
        return route(inputs, weight * 0.1, leaky=leaky), *gradients(
            lambda u, w: route(u, w * 0.1, leaky=leaky), inputs, weight
        )

    monkeypatch.setattr(routing_passes, "CHUNK_CPU", 2**10)
    passes = run()
    assert "Routing" in type(route(inputs, weight).grad_fn).__name__
    monkeypatch.setattr(routing, "_better_stored", lambda *_: True)
    assert "Routing" not in type(route(inputs, weight).grad_fn).__name__
    close(passes, run(), 2e-5)


def test_few_images_with_many_votes_are_not_stored():
    u, weight = torch.randn(7, 3872, 8, requires_grad=True), torch.empty(196, 3872, 8, 16)
    assert not routing._better_stored(u, weight)
    assert routing._better_stored(u[:, :1152], weight[:10, :1152])


def test_results_may_be_changed_in_place(with_and_without_kernel):
    for batch in (4, 16, 40):
        inputs, weight = layer(batch, 60, 10, 8, 16, torch.float32, requires_grad=True)
        expected = gradients(lambda u, w: 2 * route(u, w), inputs, weight)
        close(gradients(lambda u, w: route(u, w).mul_(2), inputs, weight), expected, 1e-6)


def test_half_precision_is_routed_in_float32(path):
    inputs, weight = layer(dtype=torch.bfloat16, requires_grad=True)
    expected = route(inputs.float(), weight.float())
    assert route(inputs, weight).dtype == torch.bfloat16
    close(route(inputs, weight), expected.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = route(inputs, weight.float())
        close(couplings(inputs, weight.float()).sum(-1), torch.ones(3, 3, 7), 1e-6)
    assert out.dtype == torch.float32
    close(out, expected, 0)
    out.sum().backward()
    close(inputs.grad, torch.autograd.grad(route(inputs.float(), weight.float()).sum(), inputs)[0])


def test_the_order_of_input_capsules_does_not_matter(path):
    inputs, weight = layer()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    close(route(inputs[:, order], weight[:, order]), route(inputs, weight))


def test_agreement_wins(path):
    """Two input capsules vote alike for the first output capsule and the third against them; on the second output
    capsule all three disagree. The two turn to the first capsule, iteration by iteration, and the third away."""
    votes = torch.tensor([[[1.0, 0], [1, 0], [-1, 0]], [[1, 0], [-0.5, 0.87], [-0.5, -0.87]]])  # (output, input, dim)
    inputs, weight = torch.ones(1, 3, 1), votes.unsqueeze(2) * 2
    first = couplings(inputs, weight, 5)[:, 0, :, 0]  # (iteration, input)
    assert torch.equal(first[0], torch.full((3,), 0.5))
    assert (first[1:, :2] > first[:-1, :2]).all()
    assert (first[1:, 2] < first[:-1, 2]).all()
    outputs = torch.stack([route(inputs, weight, iterations)[0, 0] for iterations in range(1, 6)])
    close(outputs[0], torch.tensor([0.5, 0]))  # s = (2 + 2 - 2) / 2 = 1, squashed to 1/2
    assert outputs[:, 0].diff().min() > 0


def test_leaky_routing_drops_a_share(path):
    inputs, weight = layer()
    assert (couplings(inputs, weight).sum(-1) - 1).abs().max() < 1e-12
    assert (couplings(inputs, weight, leaky=True).sum(-1) < 1).all()


@pytest.mark.parametrize("which", [0, 1])
def test_zeros_give_zeros_and_finite_gradients(path, which):
    arguments = list(layer(dtype=torch.float32))
    arguments[which] = torch.zeros_like(arguments[which])
    inputs, weight = (x.requires_grad_() for x in arguments)
    assert route(inputs, weight).count_nonzero() == 0
    assert all(g.isfinite().all() for g in gradients(route, inputs, weight))


def test_huge_inputs_stay_finite(path):
    inputs, weight = layer(dtype=torch.float32, requires_grad=True)
    out = route(inputs * 1e15, weight)
    assert out.isfinite().all()
    assert (out.norm(dim=-1) < 1 + 1e-5).all()
    assert all(g.isfinite().all() for g in gradients(lambda u, w: route(u * 1e15, w), inputs, weight))


def test_arguments_in_any_layout(path):
    inputs, weight = layer()
    expected = route(inputs, weight)
    strided = inputs.transpose(0, 1).contiguous().transpose(0, 1)
    close(route(strided, weight.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)), expected)
    strided.requires_grad_()
    assert torch.autograd.gradcheck(lambda u: route(u, weight), strided)


def test_twice_differentiated_arguments_in_any_layout(monkeypatch):
    monkeypatch.setattr(routing, "_better_stored", lambda *_: False)
    strided = [x.mT.contiguous().mT.requires_grad_() for x in layer(2, 3, 2, 2, 2)]
    assert torch.autograd.gradgradcheck(route, strided)


def test_empty_batch(path):
    inputs, weight = layer(batch=0)
    assert route(inputs, weight).shape == (0, 5, 6)


def test_arguments_that_cannot_be():
    inputs, weight = layer()
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        route(inputs, weight, 0)


def test_compile():
    """In a process of its own: the shape checks of the test run are nothing that a compiler can look through."""
    program = """
        import torch
        from capsnet import routing, routing_passes

        def gradients(function):
            return torch.autograd.grad(function(inputs, weight).square().sum(), (inputs, weight))

        def route(u, w):
            return routing.route(u, w, leaky=True)

        torch.manual_seed(0)
        inputs = torch.randn(3, 7, 4, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(5, 7, 4, 6, dtype=torch.float64, requires_grad=True)
        compiled = torch.compile(route, backend="aot_eager", fullgraph=True)
        for routing_passes.CHUNK_CPU in (10, 2**20):
            torch.testing.assert_close(compiled(inputs, weight), route(inputs, weight))
            torch.testing.assert_close(gradients(compiled), gradients(route))
        print("compiled")
    """
    assert run_python(program).strip() == "compiled"


def test_export():
    class Layer(torch.nn.Module):
        def forward(self, inputs, weight):
            return route(inputs, weight)

    inputs, weight = layer()
    program = torch.export.export(Layer(), (inputs, weight), dynamic_shapes=({0: torch.export.Dim("batch")}, None))
    inputs = layer(batch=5, seed=2)[0]
    close(program.module()(inputs, weight), route(inputs, weight))


def test_transforms(path):
    inputs, weight = layer(requires_grad=True)
    expected = route(inputs, weight)
    one = lambda u, w: route(u[None], w)[0]  # noqa: E731
    close(torch.vmap(one, (0, None))(inputs, weight), expected)
    close(torch.vmap(route, (None, 0))(inputs, weight[None])[0], expected)

    loss = lambda u, w: route(u, w).square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(inputs, weight), (inputs, weight))
    close(torch.func.grad(loss, argnums=(0, 1))(inputs, weight), expected)
    per_image = torch.vmap(torch.func.grad(lambda u, w: one(u, w).square().sum(), argnums=1), (0, None))
    close(per_image(inputs, weight).sum(0), expected[1])
    _, forward = torch.func.jvp(loss, (inputs, weight), (inputs, weight))
    close(forward, sum((g * x).sum() for g, x in zip(expected, (inputs, weight), strict=True)))


def test_jacobians(path):
    inputs, weight = layer(2, 3, 2, 2, 2, requires_grad=True)
    expected = torch.autograd.functional.jacobian(route, (inputs, weight))
    close(torch.func.jacrev(route, argnums=(0, 1))(inputs, weight), expected)
    close(torch.func.jacfwd(route, argnums=(0, 1))(inputs, weight), expected)
    close(torch.autograd.functional.jacobian(route, (inputs, weight), vectorize=True), expected)


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest storage that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("detach_early", [False, True])
def test_no_tensor_of_the_size_of_the_votes(with_and_without_kernel, detach_early):
    inputs, weight = layer(32, 640, 40, 8, 16, torch.float32, requires_grad=True)
    logits = 32 * 640 * 40
    with LargestTensor() as seen:
        gradients(lambda u, w: route(u, w, detach_early=detach_early), inputs, weight)
    assert seen.elements <= max(logits, weight.numel())
    with LargestTensor() as seen:
        couplings(inputs, weight)
    assert seen.elements <= max(3 * logits, weight.numel())  # it returns the couplings of three iterations


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures the peak as Linux reports it")
def test_memory_is_below_five_times_the_logits(with_and_without_kernel):
    """32 images, 3,872 to 196 capsules, 8 to 16 dimensions: forward and backward, in a process of its own."""
    program = f"""
        import torch
        from capsnet import kernels
        from capsnet.routing import route

        if not {with_and_without_kernel}:
            kernels.library = lambda: None
        assert kernels.available() == {with_and_without_kernel}

        def kilobytes(name):
            with open("/proc/self/status") as lines:
                return next(int(line.split()[1]) for line in lines if line.startswith(name))

        def step(batch, lower, higher):
            inputs = torch.randn(batch, lower, 8, requires_grad=True)
            weight = torch.randn(higher, lower, 8, 16).mul_(0.1).requires_grad_()
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak begins anew
            before = kilobytes("VmRSS")
            route(inputs, weight).sum().backward()
            return kilobytes("VmHWM") - before - (inputs.nbytes + weight.nbytes) / 1024

        torch.set_num_threads(1)
        step(32, 64, 196)
        print(step(32, 3872, 196) * 1024)
    """
    assert float(run_python(program)) < 5 * 32 * 3872 * 196 * 4


def test_squash_is_the_reference():
    s = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    close(squash(s).numpy(), np.stack([reference.squash(x) for x in s.numpy()]))

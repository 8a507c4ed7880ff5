"""What `test_triton.py` has Triton's interpreter do, in a process of its own: `python interpreted.py NAME`."""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from capsnet import kernels, routing
from capsnet.functional import _squash, squash
from capsnet.kernels import triton_routing, triton_squash

CASES = [  # images, input capsules, output capsules, in_dim, out_dim; iterations, leaky, detach_early, temperature
    ((20, 3, 10, 8, 16), (3, False, False, 1.0)),
    ((17, 3, 10, 8, 16), (2, True, True, 1.0)),
    ((1, 1, 1, 8, 16), (1, False, False, 10.0)),
    ((1, 1, 1, 8, 16), (2, True, False, 1.0)),
    ((3, 7, 5, 4, 6), (4, True, False, 1.0)),
    ((3, 7, 5, 4, 6), (3, False, True, 10.0)),
    ((17, 3, 20, 1, 1), (3, False, False, 1.0)),
    ((5, 4, 3, 5, 5), (2, False, False, 1.0)),
    ((5, 4, 3, 5, 5), (1, True, False, 10.0)),
    ((33, 3, 7, 6, 8), (3, True, False, 1.0)),
    ((1, 11, 2, 8, 16), (2, False, False, 1.0)),
    ((4, 3, 3, 16, 32), (3, False, False, 10.0)),
    ((2, 1, 196, 8, 16), (2, False, False, 1.0)),
]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def layer(batch, lower, higher, in_dim, out_dim):
    inputs = torch.randn(batch, lower, in_dim, generator=generator(0)) / in_dim**0.5
    scale = min(higher, 4) / (lower * out_dim) ** 0.5
    return inputs, scale * torch.randn(higher, lower, in_dim, out_dim, generator=generator(1))


def run(inputs, weight, *options):
    arguments = [x.detach().clone().requires_grad_() for x in (inputs, weight)]
    out = routing._Routing.apply(*arguments, *options)
    upstream = torch.randn(out.shape, generator=generator(2)).to(out.dtype)
    return out, *torch.autograd.grad(out, arguments, upstream)


def assert_near(actual, expected, tolerance, case=None):
    for number, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        error = (a.double() - e).abs().max() / e.abs().max()
        assert error <= tolerance, (case, number, error)


def cases():
    for shape, options in CASES:
        inputs, weight = layer(*shape)
        expected = run(inputs.double(), weight.double(), *options)  # double precision never takes the kernels
        assert_near(run(inputs, weight, *options), expected, 2e-5, (shape, options))


def public_function():
    """Arguments that lie otherwise, half precision, gradients of gradients, vectorized ones, and one gradient alone."""
    arguments = [x.mT.contiguous().mT.requires_grad_() for x in layer(18, 4, 3, 4, 6)]
    precise = [x.detach().double().requires_grad_() for x in arguments]
    out, expected = routing.route(*arguments), routing.route(*precise)
    assert "Routing" in type(out.grad_fn).__name__
    assert_near([out], [expected], 5e-6)
    halves = [x.detach().bfloat16() for x in arguments]
    assert routing.route(*halves).dtype == torch.bfloat16
    assert_near([routing.route(*halves)], [routing.route(*(x.double() for x in halves))], 1e-2)

    def second(out, arguments):
        first = torch.autograd.grad(out.square().sum(), arguments, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), arguments, retain_graph=True)

    def batched(out, arguments):
        upstream = torch.randn(3, *out.shape, generator=generator(3)).to(out.dtype)
        return torch.autograd.grad(out, arguments, upstream, is_grads_batched=True, retain_graph=True)

    for function in (second, batched):
        assert_near(function(out, arguments), function(expected, precise), 2e-5)
    inputs, weight = arguments
    both = torch.autograd.grad(out.sum(), arguments, retain_graph=True)
    assert torch.equal(both[0], torch.autograd.grad(routing.route(inputs, weight.detach()).sum(), inputs)[0])
    assert torch.equal(both[1], torch.autograd.grad(routing.route(inputs.detach(), weight).sum(), weight)[0])
    out.mul_(2)


def huge_and_none():
    for scale in (0.0, 1e-20, 1e15):
        inputs, weight = layer(5, 3, 3, 4, 6)
        assert all(x.isfinite().all() for x in run(scale * inputs, weight, 2, False, False, 1.0))
    inputs[3, 2, 1] = torch.nan
    out = routing.route(inputs, weight)
    assert out[3].isnan().all()
    assert out.isnan().sum() == out[3].numel()


def half_precision_passes():
    """They multiply half as many parts, and say the same."""
    inputs, weight = layer(18, 3, 10, 8, 16)
    inputs, total = inputs.bfloat16(), squash(torch.randn(18, 10, 16, generator=generator(3)))
    outcomes = []
    for u in (inputs, inputs.float()):
        gradients = triton_routing.Gradients(u, weight, False, False)
        outcomes.append([triton_routing.sum_votes(u, weight, total, False), gradients.add(total, total.flip(0))])
        gradients.add(None, total)
        outcomes[-1] += gradients.finish()
    assert_near(outcomes[0], [x.double() for x in outcomes[1]], 1e-6)

    # What `route` is given under autocast: it takes them as they are, and hands gradients of their kind back.
    upstream, found = torch.randn(18, 10, 16, generator=generator(4)), []
    for u in (inputs, inputs.float()):
        arguments = [u.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = routing.route(*arguments, temperature=3.0)
        assert out.dtype == torch.float32
        found.append([out, *torch.autograd.grad(out, arguments, upstream)])
    assert found[0][1].dtype == torch.bfloat16
    for half, whole, tolerance in zip(*found, (1e-6, 0.005, 1e-6), strict=True):
        assert_near([half], [whole.double()], tolerance)


def compiled():
    """A compiled function calls it as one operation."""
    inputs, weight = (x.requires_grad_() for x in layer(5, 3, 10, 4, 6))
    torch.library.opcheck(routing._route, (inputs, weight, 2, True, False, 10.0))

    def function(inputs, weight):
        return routing.route(2 * inputs, weight, 2, leaky=True).square().sum()

    seen = []

    def note(graph, _):
        seen.extend(node.target for node in graph.graph.nodes)
        return graph

    expected = torch.autograd.grad(function(inputs, weight), (inputs, weight))
    for backend in (note, "aot_eager"):
        out = torch.compile(function, backend=backend, fullgraph=True)(inputs, weight)
        assert_near(torch.autograd.grad(out, (inputs, weight)), [x.double() for x in expected], 1e-6)
    assert routing._route in seen or torch.ops.capsnet.route.default in seen, seen


class Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


class Nothing:
    """A kernel that does nothing."""

    def __getitem__(self, grid):
        return lambda *_, **__: None


def memory():
    """What is allocated is the same whatever the kernels do."""
    for module, names in ((triton_routing, ("_shares", "_sums", "_gradients")), (triton_squash, ("",))):
        for name in names:
            setattr(module, f"{name}_kernel", Nothing())
    triton_routing.SUMS["programs"] = triton_routing.SUMS_AT_ONCE["programs"] = 1000
    triton_routing.SUMS_AT_ONCE["columns"] = 256
    triton_routing.GRADIENTS["images"] = 64
    for shape in ((32, 640, 40, 8, 16), (128, 640, 10, 8, 16)):
        inputs, weight = (x.requires_grad_() for x in layer(*shape))
        with Largest() as seen:
            out = routing.route(inputs, weight)
            torch.autograd.grad(out, (inputs, weight), out)
        logits = shape[0] * shape[1] * shape[2]
        assert logits <= seen.elements or shape[2] == 40
        assert seen.elements <= max(logits, 2 * weight.numel()), seen.elements / logits


def squashing():
    """Vector by vector. Along a long one the gradient is a small difference of terms as large as the one across it."""
    for exponent in (-30, -15, 0, 1, 30):
        for dim in (1, 3, 8, 16):
            s = torch.randn(7, 50, dim, generator=generator(dim)) * 10.0**exponent
            s[torch.rand(7, 50, generator=generator(0)) < 0.1] = 0
            grad = torch.randn(s.shape, generator=generator(1))
            for x, g, tolerance in (
                (s, grad, 1e-6),
                (s, grad[:1, :1, :1].expand(s.shape), 1e-6),
                (s.bfloat16(), grad.bfloat16(), 1e-2),
            ):
                squash_is_near(x.requires_grad_(), g, tolerance)
    s = s.detach()
    s[0, 0, 0] = torch.nan
    assert squash(s)[0, 0].isnan().all()
    assert squash(s).isnan().sum() == s.shape[-1]
    apart = torch.randn(4, 6, generator=generator(0)).mT.requires_grad_()
    assert "_Squash" not in type(squash(apart).grad_fn).__name__
    outcomes = []
    for function, x in ((squash, apart.detach().contiguous()), (_squash, apart.detach().double())):
        (first,) = torch.autograd.grad(function(x.requires_grad_(), -1).square().sum(), x, create_graph=True)
        outcomes.append((first, *torch.autograd.grad(first.square().sum(), x)))
    assert_near(*outcomes, 1e-5)


def squash_is_near(s, grad, tolerance):
    precise = s.detach().double().requires_grad_()
    v, expected = squash(s), _squash(precise, -1)
    assert "_Squash" in type(v.grad_fn).__name__
    assert v.dtype == s.dtype
    found = torch.autograd.grad(v, s, grad)[0]
    right = torch.autograd.grad(expected, precise, grad.double())[0]
    length = precise.detach().norm(dim=-1, keepdim=True)
    terms = grad.double().norm(dim=-1, keepdim=True) * length / (1 + length**2)
    for a, e, least in ((v, expected, 0), (found, right, terms)):
        size = torch.maximum(e.norm(dim=-1, keepdim=True), torch.as_tensor(least)).clamp_min(1e-30)
        assert ((a.double() - e).abs() / size).max() <= tolerance


def pretend():
    """That this processor is a graphics card, and that few numbers are many: all that is cut is cut."""
    torch.set_num_threads(1)
    kernels.library = lambda: None
    kernels.suit_triton = lambda *tensors: all(x.dtype in kernels._TYPES for x in tensors)
    for sizes in (triton_routing.SHARES, triton_routing.SUMS, triton_routing.SUMS_AT_ONCE, triton_routing.GRADIENTS):
        sizes.update(images=16, columns=64, programs=4)


if __name__ == "__main__":
    pretend()
    for name in sys.argv[1:]:
        globals()[name]()
        print(name)

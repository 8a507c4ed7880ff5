"""What a GPU is asked to do, as far as a machine without one can tell; and that every loss can be compiled."""

import shutil

import pytest
import torch
from process import run_python

import capsnet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def small():
    torch.manual_seed(0)
    return capsnet.CapsNet((1, 28, 28), 10, conv_channels=8, primary_types=2, decoder_hidden=(16, 16))


def test_every_loss_is_compiled_as_a_whole_and_is_the_same():
    """In a process of its own: the shape checks of the test run are nothing that a compiler can look through."""
    program = """
        import torch
        from capsnet.models import build_model

        torch.manual_seed(0)
        small = {"conv_channels": 8, "primary_types": 2, "decoder_hidden": (16, 16)}
        pixels = {"in_shape": (1, 28, 28), "num_classes": 10}
        images, targets = torch.rand(4, 1, 28, 28), torch.rand(4, 2, 1, 28, 28)
        one = torch.randint(10, (4,))
        two = torch.stack([one, (one + 3) % 10], 1)
        for name, config, arguments in (
            ("capsnet", pixels | small, (images, one)),
            ("capsnet", pixels | small | {"leaky": True, "iterations": 2}, (images, two, targets)),
            ("cnn", pixels, (images, one)),
            ("pooling-cnn", pixels, (images, two)),
            ("small-cnn", pixels, (images, one)),
        ):
            model = build_model(name, config).train()
            weights = list(model.parameters())
            compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True, dynamic=False)
            outcomes = []
            for loss in (model.loss, compiled):
                torch.manual_seed(1)
                total = loss(*arguments).total
                outcomes.append((total, *torch.autograd.grad(total, weights)))
            torch.testing.assert_close(*outcomes, rtol=1e-3, atol=1e-5)
        print("the same")
    """
    assert run_python(program).strip() == "the same"


@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor makes C++ on a CPU, and wants a compiler for it")
def test_fused_routing_is_routing():
    program = """
        import torch
        from capsnet.routing import route

        torch.manual_seed(0)
        u, weight, g = torch.randn(8, 12, 4), torch.randn(5, 12, 4, 6) / 3, torch.randn(8, 5, 6)
        fused = torch.compile(route, fullgraph=True)
        outcomes = []
        for function, dtype in ((route, torch.float64), (fused, torch.float32)):
            x, w = (t.to(dtype).requires_grad_() for t in (u, weight))
            v = function(x, w, 3)
            outcomes.append([t.double() for t in (v, *torch.autograd.grad(v, (x, w), g.to(dtype)))])
        torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)
        print("the same")
    """
    assert run_python(program).strip() == "the same"

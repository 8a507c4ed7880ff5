"""What the kernels must never be given, since C looks at no shape: it is told as PyTorch tells it, or goes another way.

In processes of their own: without the shape checks of the test run, and so that memory that is overrun ends one test.
"""

import pytest
from process import run_python

HEAD = """
import torch
import torch.nn.functional as F
import capsnet
from capsnet.convolution import conv2d
from capsnet.routing import route

def refused(function, *arguments):
    try:
        result = function(*arguments)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return True
    raise AssertionError(f"{function} returned {result.shape} for {[a.shape for a in arguments]}")

torch.manual_seed(0)
"""


def passes(program):
    assert run_python(HEAD + program + "\nprint('passed')").strip() == "passed"


def test_convolutions_that_do_not_fit():
    passes("""
for batch, inner in ((16, 1), (64, 128)):  # the direct way, and the spectral one
    x = torch.rand(batch, inner, 28, 28)
    for other in (3, 96, 200):
        refused(conv2d, x, torch.randn(64, other, 9, 9))
    refused(conv2d, x, torch.randn(64, inner, 9, 9), torch.randn(1))
    refused(conv2d, x, torch.randn(64, inner, 9, 9), torch.randn(64, 1))
    refused(conv2d, x[:, :, :8, :8], torch.randn(64, inner, 9, 9))
    refused(lambda x, w: conv2d(x, w, stride=0), x, torch.randn(64, inner, 9, 9))
    refused(lambda x, w: conv2d(x, w, padding=-1), x, torch.randn(64, inner, 9, 9))
model = capsnet.CapsNet((1, 28, 28), 10, conv_channels=16, primary_types=2, decoder=False)
refused(model, torch.rand(16, 3, 28, 28))
""")


def test_routing_that_does_not_fit():
    passes("""
for batch in (3, 16):
    u = torch.randn(batch, 20, 8)
    for shape in ((5, 200, 8, 16), (5, 10, 8, 16), (5, 20, 4, 16), (5, 20, 16), (5, 200_000, 8, 4)):
        refused(route, u, torch.randn(shape))
    assert route(u, torch.randn(5, 20, 8, 16, device="meta")).is_meta  # as any product
    refused(route, u.flatten(1), torch.randn(5, 20, 8, 16))
assert route(u.to("meta"), torch.randn(5, 20, 8, 16, device="meta")).shape == (16, 5, 16)
""")


@pytest.mark.parametrize("channels", [1, 128])
def test_defaults_of_the_caller_change_nothing(channels):
    passes(f"""
x, w = torch.rand(32, {channels}, 20, 20), torch.randn(64, {channels}, 9, 9) / 9
u, votes = torch.randn(16, 20, 8), torch.randn(5, 20, 8, 16)
y, v = conv2d(x, w, stride=2), route(u, votes)
torch.testing.assert_close(y, F.conv2d(x, w, stride=2), rtol=1e-4, atol=1e-4)

def same():
    torch.testing.assert_close(conv2d(x, w, stride=2), y, rtol=0, atol=0)
    torch.testing.assert_close(route(u, votes), v, rtol=0, atol=0)

for tuned in (False, True):
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        same()
    torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        same()
    torch.set_default_device("meta")
    same()
    torch.set_default_device("cpu")
    capsnet.tune_allocator()
""")


def test_sizes_first_met_without_data_or_in_inference_are_as_good_as_any():
    passes("""
from capsnet.convolution import spectral_wins
from capsnet.spectral import spectral_conv2d
x, w = torch.randn(2, 3, 12, 12), torch.randn(4, 3, 9, 9, requires_grad=True)
torch.set_default_dtype(torch.bfloat16)
with torch.device("meta"), torch.inference_mode():
    spectral_wins(torch.Size((32, 128, 20, 20)), torch.Size((128, 128, 9, 9)), 2, 0)
torch.set_default_dtype(torch.float32)
y = spectral_conv2d(x, w, None, 2, 0, 6)
torch.testing.assert_close(y, F.conv2d(x, w, None, 2), rtol=1e-4, atol=1e-4)
y.sum().backward()
""")

"""Where the time of a training step goes, stage by stage, beside the rate at which this machine multiplies matrices."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from capsnet.benchmark.measure import synchronize
from capsnet.benchmark.textbook import TextbookCapsNet, route, squash
from capsnet.models import CapsNet
from capsnet.optimizer import AdamW


def time_stages(batch_size: int, pixels: int, device: torch.device, repeats: int = 15) -> dict[str, Any]:
    """Median milliseconds of each stage on both sides, forward and backward, and the matrix rate in GFLOP/s."""
    ours, theirs = CapsNet((1, pixels, pixels), 10).to(device), TextbookCapsNet(pixels).to(device)
    theirs.to_channels_last()
    features, capsules = pixels - 8, len(theirs.weight[0])
    assert ours.decoder is not None
    stages: dict[str, dict[str, Callable[..., torch.Tensor]]] = {
        "Conv1": {"textbook": lambda x: theirs.conv(x).relu(), "capsnet": ours.features},
        "PrimaryCaps": {
            "textbook": lambda x: squash(theirs.primary(x).permute(0, 2, 3, 1).reshape(len(x), -1, 8)),
            "capsnet": ours.primary,
        },
        "routing": {"textbook": lambda u: route(u, theirs.weight), "capsnet": ours.classes},
        "decoder": {"textbook": theirs.decoder, "capsnet": ours.decoder.stages},
    }
    inputs = {
        "Conv1": torch.rand(batch_size, 1, pixels, pixels, device=device),
        "PrimaryCaps": torch.rand(batch_size, 256, features, features, device=device),
        "routing": torch.randn(batch_size, capsules, 8, device=device) / 8**0.5 / 2,
        "decoder": torch.randn(batch_size, 160, device=device),
    }
    multiplications = _multiplications(pixels, capsules)
    rows = []
    for stage, sides in stages.items():
        x = {"textbook": inputs[stage].clone(), "capsnet": inputs[stage].clone()}
        if stage == "PrimaryCaps":  # as each side's Conv1 leaves it
            x["textbook"] = x["textbook"].contiguous(memory_format=torch.channels_last)
            x["capsnet"] = ours.features(inputs["Conv1"]).detach()
        for tensor in x.values():
            tensor.requires_grad_(stage != "Conv1")
        for _ in range(2):
            for name, function in sides.items():
                _forward_backward(function, x[name], device)
        times = {name: [] for name in sides}
        for _ in range(repeats):
            for name, function in sides.items():
                times[name].append(_forward_backward(function, x[name], device))
        flops = 2 * multiplications[stage] * batch_size * (2 if stage == "Conv1" else 3)
        rows.append({"stage": stage, "direct_gflop": flops / 1e9, **{n: _median_ms(t) for n, t in times.items()}})
    steps = {"textbook": _optimizer_step(theirs), "capsnet": _optimizer_step(ours)}
    times = {name: [_timed(step, device) for _ in range(repeats)] for name, step in steps.items()}
    rows.append({"stage": "optimizer", **{name: _median_ms(values) for name, values in times.items()}})
    return {"batch_size": batch_size, "matrix_rate": matrix_rate(device), "stages": rows}


def _multiplications(pixels: int, capsules: int) -> dict[str, int]:
    """Of an image, forward, counted as direct convolution and stored votes do them; as many additions go with them."""
    return {
        "Conv1": (pixels - 8) ** 2 * 81 * 256,
        "PrimaryCaps": capsules // 32 * 81 * 256 * 256,
        "routing": capsules * 10 * 8 * 16 + (3 + 2) * capsules * 10 * 16,
        "decoder": 160 * 512 + 512 * 1024 + 1024 * pixels**2,
    }


def matrix_rate(device: torch.device, size: int = 2048) -> dict[str, float]:
    """GFLOP/s of a float32 matrix product through each library at hand."""
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    products: dict[str, Callable[[], torch.Tensor]] = {"torch.mm": lambda: a @ b}
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if device.type == "cpu" and onednn is not None and torch.backends.mkldnn.is_available():
        products["oneDNN"] = lambda: onednn(a, b, None, "none", [], "")
    rates = {}
    for name, product in products.items():
        product()
        rates[name] = 2 * size**3 / 1e6 / _median_ms([_timed(product, device) for _ in range(9)])
    return rates


def _forward_backward(function: Callable[..., torch.Tensor], x: torch.Tensor, device: torch.device) -> float:
    x.grad = None

    def step() -> None:
        out = function(x)
        out.backward(torch.ones_like(out))

    return _timed(step, device)


def _optimizer_step(model: torch.nn.Module) -> Callable[[], None]:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ours = isinstance(model, CapsNet)
    optimizer = AdamW(model.parameters(), weight_decay=0) if ours else torch.optim.Adam(model.parameters(), fused=True)
    return lambda: optimizer.step() and None


def _timed(step: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - started


def _median_ms(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)

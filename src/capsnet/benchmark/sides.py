"""The sides of the benchmark: who is compared on which device, and how each of them takes a step."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from capsnet.batches import RawBatch
from capsnet.benchmark.textbook import TextbookCapsNet
from capsnet.cuda_graph import GraphedStep
from capsnet.models import CapsNet
from capsnet.optimizer import AdamW


class Steps(NamedTuple):
    """A step of training, and of inference, on one batch that never changes."""

    train: Callable[[], object]
    infer: Callable[[], object]


class Side(NamedTuple):
    """`precision` is that of products; `build` makes the steps for images, labels and the device they are on."""

    name: str
    precision: str
    build: Callable[[Tensor, Tensor, torch.device], Steps]
    ours: bool = False


def sides_on(device: torch.device, compiled: bool = False) -> list[Side]:
    """The sides on a kind of device; `compiled` adds those on a CPU that `torch.compile` takes long to prepare."""
    if device.type == "cuda":
        return CUDA_SIDES
    if device.type != "cpu":
        return [side for side in CPU_SIDES if side.precision == "float32"]
    half = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # without it each bfloat16 operation converts, for minutes
    sides = CPU_SIDES + (COMPILED_CPU_SIDES if compiled else [])
    return [side for side in sides if half or side.precision == "float32"]


def _textbook(
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    *,
    half: bool = False,
    careful: bool = True,
    mode: str | None = None,
) -> Steps:
    """`careful` is in channels last and with a fused optimizer; `mode` is that of `torch.compile`, None without it."""
    torch.manual_seed(0)
    model = TextbookCapsNet(images.shape[-1]).to(device)
    if careful:
        model.to_channels_last()
    optimizer = torch.optim.Adam(model.parameters(), fused=careful or None)
    loss, forward = model.loss, model
    if mode:
        from torch._inductor import select_algorithm

        select_algorithm.PRINT_AUTOTUNE = False  # tables of every product that it measures
        torch.set_float32_matmul_precision("high")  # as the compiler advises
        torch.backends.cudnn.benchmark = True  # the compiler leaves the convolutions' gradients to cuDNN
        loss = torch.compile(model.loss, mode=mode, dynamic=False)
        forward = torch.compile(model, mode=mode, dynamic=False)

    def train() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            total = loss(images, labels)
        total.backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            forward(images)

    return Steps(train, infer)


def _ours(images: Tensor, labels: Tensor, device: torch.device, *, half: bool = False) -> Steps:
    torch.manual_seed(0)
    channels, height, width = images.shape[1:]
    model = CapsNet((channels, height, width), 10).to(device)

    def infer() -> None:
        if model.training:  # as one does before a series of batches
            model.eval()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            model(images)

    return Steps(_our_training_step(model, images, labels, device, half), infer)


def _our_training_step(
    model: CapsNet, images: Tensor, labels: Tensor, device: torch.device, half: bool
) -> Callable[[], object]:
    """A step as `fit` takes it."""
    optimizer = AdamW(model.parameters(), weight_decay=0)

    def step(images: Tensor, labels: Tensor) -> None:
        model.train()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            total = model.loss(images, labels).total
        total.backward()
        optimizer.step()

    if device.type != "cuda":
        return lambda: step(images, labels)
    batch = RawBatch(images, labels)

    def whole(batch: RawBatch) -> dict[str, Tensor]:
        step(batch.images, batch.labels)
        return {}

    graph = GraphedStep(whole, [model], optimizer, batch)
    return lambda: graph(batch, 0.001)


CPU_SIDES = [
    Side("textbook", "float32", _textbook),
    Side("textbook bf16", "bfloat16", partial(_textbook, half=True)),
    Side("capsnet", "float32", _ours, ours=True),
    Side("capsnet bf16", "bfloat16", partial(_ours, half=True), ours=True),
]
COMPILED_CPU_SIDES = [
    Side("textbook compiled", "float32", partial(_textbook, mode="default")),
    Side("textbook bf16 compiled", "bfloat16", partial(_textbook, half=True, mode="default")),
]
CUDA_SIDES = [
    Side("textbook", "float32", partial(_textbook, careful=False)),
    Side("textbook compiled", "bfloat16", partial(_textbook, half=True, mode="reduce-overhead")),
    Side("expert", "bfloat16", partial(_textbook, half=True, mode="max-autotune")),
    Side("capsnet", "bfloat16", partial(_ours, half=True), ours=True),
]
"""The expert's compiler measures every product it may choose from, which takes most of a minute."""

"""A whole training step as one CUDA graph, so that a GPU never waits for Python."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from capsnet.batches import RawBatch
from capsnet.models import Loss
from capsnet.optimizer import AdamW

WARM_UP_STEPS = 3
"""Steps before the capture, in which libraries choose their algorithms and the optimizer makes its averages."""


class GraphedStep:
    """From the bytes of a batch to new weights: forward, backward and optimizer, captured once and replayed.

    A step of MNIST's CapsNet keeps an H100 busy for less than a millisecond, and Python needs several to ask for its
    hundreds of kernels one by one. The batch is copied to where the captured step reads it; so is the learning rate.
    What `compute` returns lies in memory that the next step overwrites.

    Args:
        compute: the loss of a batch, and what else is to be known of the step.
        model: whose weights the optimizer changes.
        optimizer: its averages stay where they are, so that a checkpoint finds them.
        example: a batch of the size of all others.
    """

    def __init__(
        self,
        compute: Callable[[RawBatch], tuple[Loss, dict[str, Tensor]]],
        model: nn.Module,
        optimizer: AdamW,
        example: RawBatch,
    ) -> None:
        self.batch = example.each(torch.clone)
        self.rate = torch.zeros((), device=example.images.device)
        with _restored(model, optimizer):
            _on_side_stream(lambda: [self._step(compute, optimizer) for _ in range(WARM_UP_STEPS)])
        self.replay = _captured(lambda: self._step(compute, optimizer))

    def __call__(self, batch: RawBatch, rate: float) -> dict[str, Tensor]:
        for kept, part in zip(self.batch, batch, strict=True):
            if kept is not None and part is not None:
                kept.copy_(part)
        self.rate.fill_(rate)
        return self.replay()

    def _step(
        self, compute: Callable[[RawBatch], tuple[Loss, dict[str, Tensor]]], optimizer: AdamW
    ) -> dict[str, Tensor]:
        optimizer.zero_grad()
        with torch.autocast(self.rate.device.type, torch.bfloat16, self.rate.is_cuda, cache_enabled=False):
            loss, outputs = compute(self.batch)
        loss.total.backward()
        with _rate_on_device(optimizer, self.rate):
            optimizer.step()
        return outputs


@contextlib.contextmanager
def _rate_on_device(optimizer: AdamW, rate: Tensor) -> Iterator[None]:
    """Captured, a number would stay what it was. Outside of the capture, the groups keep theirs as numbers."""
    before = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"], group["capturable"] = rate, True
    try:
        yield
    finally:
        for group, (number, capturable) in zip(optimizer.param_groups, before, strict=True):
            group["lr"], group["capturable"] = number, capturable


@contextlib.contextmanager
def _restored(model: nn.Module, optimizer: AdamW) -> Iterator[None]:
    """What warming up does to weights, buffers, averages and random numbers is undone.

    Averages that it has made become zero.
    """
    kept = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    kept += [(tensor, tensor.clone()) for tensor in _averages(optimizer)]
    with torch.random.fork_rng():
        yield
    with torch.no_grad():
        for tensor in _averages(optimizer):
            tensor.zero_()
        for tensor, before in kept:
            tensor.copy_(before)


def _averages(optimizer: AdamW) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _captured(work: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    """The work as a graph; each replay writes its results to the same places."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return outputs

    return replay


def _on_side_stream(work: Callable[[], Any]) -> None:
    """As capturing wants it: what runs before the capture must not be on the stream that is captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)

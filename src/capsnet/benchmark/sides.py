"""The two sides of the benchmark, each in a process of its own, asked in turn."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from capsnet.allocator import tune_allocator
from capsnet.benchmark.textbook import TextbookCapsNet
from capsnet.data import open_dataset, to_float
from capsnet.devices import training_loss
from capsnet.models import CapsNet
from capsnet.optimizer import AdamW

SIDES = ("textbook", "capsnet")
INFERENCE_BATCHES = 4


class Side:
    """A process that trains or runs one implementation when asked, and is otherwise idle."""

    def __init__(self, name: str, batch_size: int, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, name, batch_size, device), daemon=True)
        self.process.start()
        self.connection.recv()  # ready

    def ask(self, task: str, steps: int = 1) -> float:
        """Images/s of `train` or `infer`; or `memory`, in MB above what the process held before it had a model."""
        self.connection.send((task, steps))
        answer = self.connection.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        self.connection.send(None)
        self.process.join()


def _serve(connection: Connection, name: str, batch_size: int, device: str) -> None:
    tune_allocator()
    tasks = _prepare(name, batch_size, torch.device(device))
    connection.send("ready")
    while (request := connection.recv()) is not None:
        task, steps = request
        try:
            connection.send(tasks[task](steps))
        except Exception as error:  # an out-of-memory on one side must not hang the other
            connection.send(f"{name}, batch {batch_size}: {error}")


def _prepare(name: str, batch_size: int, device: torch.device) -> dict[str, Callable[[int], float]]:
    images, labels = _digits(batch_size, device)
    before = peak_memory(device)
    torch.manual_seed(0)
    model = (TextbookCapsNet() if name == "textbook" else CapsNet((1, 28, 28), 10)).to(device)
    if isinstance(model, CapsNet):  # as `fit` trains it
        optimizer = AdamW(model.parameters(), weight_decay=0)
        loss = training_loss(model, device, steps=sys.maxsize)
    else:
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        loss = model.loss
    half = isinstance(model, CapsNet) and device.type == "cuda"

    def train_step() -> None:
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            total: Any = loss(images, labels)
        optimizer.zero_grad()
        (total if isinstance(total, torch.Tensor) else total.total).backward()
        optimizer.step()

    def infer() -> None:
        if model.training:  # as one does before a series of batches
            model.eval()
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            model(images)

    return {
        "train": lambda steps: _rate(train_step, steps, batch_size, device),
        "infer": lambda steps: _rate(infer, steps * INFERENCE_BATCHES, batch_size, device),
        "memory": lambda steps: peak_memory(device) - before,
    }


def _digits(batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    digits = open_dataset("mnist", "test").select(slice(batch_size))
    return to_float(digits.images).to(device), digits.labels.to(device)


def _rate(step: Callable[[], None], steps: int, batch_size: int, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return steps * batch_size / (time.perf_counter() - started)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """MB: on a GPU what PyTorch held at its peak, else the resident set at its peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if Path("/proc/self/status").exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

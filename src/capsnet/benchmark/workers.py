"""The processes of the benchmark: each takes steps of one side when asked, and is otherwise idle."""

import contextlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from capsnet.allocator import tune_allocator
from capsnet.benchmark.measure import peak_memory, synchronize
from capsnet.benchmark.sides import Side
from capsnet.data import open_dataset, to_float


class SideError(Exception):
    """A side could not do what it was asked for; the others go on."""


class Job(NamedTuple):
    """What a process works on, and how far it stands back behind others while compilers need the cores."""

    side: Side
    batch_size: int
    pixels: int
    device: torch.device
    niceness: int = 0


class Worker:
    """A process for one side and batch size. It begins with its first request."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        with _without_ctrl_c():
            self.process.start()
        theirs.close()

    def send(self, task: str, steps: int = 1) -> None:
        """Ask for so many steps of `train` or `infer`; or for `memory`."""
        try:
            self.connection.send((task, steps))
        except OSError:
            raise SideError("its process has ended") from None

    def receive(self, until: float = math.inf) -> list[float]:
        """Seconds of a step: their mean, or each where a batch is one image. Or MB above what was held at first.

        Raises `SideError` if the side fails, or has not answered at the time `until` (`time.monotonic`).
        """
        try:
            if not self.connection.poll(None if until == math.inf else max(0.0, until - time.monotonic())):
                raise SideError("it was not ready in time")
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise SideError("its process has ended") from None
        if isinstance(answer, str):
            raise SideError(answer)
        return answer

    def ask(self, task: str, steps: int = 1) -> list[float]:
        self.send(task, steps)
        return self.receive()

    def close(self) -> None:
        self.process.kill()  # it holds nothing that has to be put in order
        self.process.join()
        self.connection.close()


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """What starts here never sees Ctrl-C: who asks is interrupted, and ends it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, job: Job) -> None:
    if job.niceness:
        os.nice(job.niceness)
    tune_allocator()
    tasks: dict[str, Callable[[int], list[float]]] = {}
    while True:
        try:
            task, steps = connection.recv()
        except EOFError:  # nobody is left to ask
            return
        try:
            tasks = tasks or _prepare(job)
            connection.send(tasks[task](steps))
        except Exception as error:  # an out-of-memory on one side must not hang the others
            connection.send(f"{type(error).__name__}: {error}".strip().splitlines()[0])


def _prepare(job: Job) -> dict[str, Callable[[int], list[float]]]:
    images, labels = _digits(job.batch_size, job.pixels, job.device)
    before = peak_memory(job.device)
    train, infer = job.side.build(images, labels, job.device)
    time_steps = _time_each if job.batch_size == 1 else _time_together
    return {
        "train": lambda steps: time_steps(train, steps, job.device),
        "infer": lambda steps: time_steps(infer, steps, job.device),
        "memory": lambda steps: [peak_memory(job.device) - before],
    }


def _digits(batch_size: int, pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Digits on a square of so many pixels; after the last one comes the first one again."""
    digits = open_dataset("mnist", "test")
    chosen = torch.arange(batch_size) % len(digits)
    margin = (pixels - digits.image_shape[1]) // 2
    images = pad(to_float(digits.images[chosen]), (margin,) * 4)
    return images.to(device), digits.labels[chosen].to(device)


def _time_together(step: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return [(time.perf_counter() - started) / steps]


def _time_each(step: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    return [_time_together(step, 1, device)[0] for _ in range(steps)]

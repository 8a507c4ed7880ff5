"""What is on pictures, however many: found in folders, read ahead in threads, answered in batches.

Memory does not grow with the number of pictures, but for the names in one folder: those are sorted.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from capsnet.data.kinds import FOREIGN
from capsnet.data.pictures import picture_endings, read_picture
from capsnet.errors import InputError
from capsnet.evaluation import probabilities
from capsnet.runs import Run

BATCH = 128
READERS = 8
"""Threads that read pictures, at most; more would only hold more pictures at once."""
TOGETHER = 16
"""Pictures that a thread reads at a time: handing over each for itself would cost as much as reading a small one."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prediction:
    """What the model says of a picture: a probability for each class; or what is wrong with the picture."""

    path: Path
    probabilities: Float[Tensor, " classes"] | None
    error: str = ""

    def as_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """`{"picture", "class", "probability", "probabilities"}`, or `{"picture", "error"}`."""
        if self.probabilities is None:
            return {"picture": str(self.path), "error": self.error}
        scores = [round(score, 4) for score in self.probabilities.tolist()]
        winner = int(self.probabilities.argmax())
        answer = {"picture": str(self.path), "class": class_names[winner], "probability": scores[winner]}
        return {**answer, "probabilities": dict(zip(class_names, scores, strict=True))}


def predict(run: Run, paths: Iterable[Path], device: torch.device | str = "cpu") -> Generator[Prediction, None, None]:
    """The answers for files, and for all pictures in folders and the folders in those, as they come.

    In the order of `paths`; within a folder by name, its pictures before its folders. What cannot be read is answered
    with what is wrong. Hidden files and links to folders are passed over.
    """
    read = partial(_read, shape=run.model.config["in_shape"], framing=run.framing)
    with contextlib.closing(_ahead(read, _chunks(find_pictures(paths), TOGETHER))) as found:
        while batch := [item for part in islice(found, BATCH // TOGETHER) for item in part]:
            images = [image for _, image in batch if isinstance(image, Tensor)]
            scores = iter(probabilities(run.model, torch.stack(images), device) if images else ())
            for path, image in batch:
                yield Prediction(path, next(scores)) if isinstance(image, Tensor) else Prediction(path, None, image)


def find_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """`paths`, where each folder is replaced by the pictures in it and in the folders below it.

    A folder that cannot be opened comes back as itself.
    """
    for path in paths:
        waiting = [path]
        while waiting:
            place = waiting.pop()
            if not os.path.isdir(place):  # unlike its method, false where the path is longer than any may be
                yield place
                continue
            try:
                names, folders = _sorted_entries(place)
            except OSError:
                yield place
                continue
            yield from (place / name for name in names)
            waiting += [place / name for name in reversed(folders)]


def _sorted_entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the pictures and of the folders in a folder."""
    endings, names, folders = picture_endings().union(FOREIGN), [], []  # what cannot be read is answered with that
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in endings and (
                os.path.isfile(entry.path) or not os.path.exists(entry.path)
            ):
                names.append(entry.name)  # also a link that leads nowhere, but no pipe, which might never end
    return sorted(names), sorted(folders)


def _read(paths: list[Path], **options: Any) -> list[tuple[Path, UInt8[Tensor, "channels height width"] | str]]:
    """Each picture as the model takes it, or what is wrong with it."""

    def image(path: Path) -> Tensor | str:
        try:
            return read_picture(path, **options)
        except InputError as error:
            return str(error)

    return [(path, image(path)) for path in paths]


def _ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """`map`, with threads that work ahead by two batches. Stops them when it is closed."""
    threads = min(READERS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * BATCH // TOGETHER + threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

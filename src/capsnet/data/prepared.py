"""A user's pictures, of any size and colour, as images of one size: decoded once, in parallel, into the cache."""

import io
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL
import torch
from jaxtyping import Int64, UInt8

from capsnet.data.cache import found, kept, room
from capsnet.data.framing import MEASURED, Framing, PixelRange, WantedRange
from capsnet.data.image_set import ImageSet
from capsnet.data.pictures import Measured, decode_picture, frame, measure_picture, quiet_pillow
from capsnet.data.splits import ALL, check_classes, classes_told
from capsnet.errors import InputError, MissingSplitError
from capsnet.streams import progress_console, tell
from capsnet.text import printable

LARGEST_SIDE = 64
"""Pixels, where the user does not say: what a capsule network takes in its stride."""

MAX_DAMAGED = 0.01
"""A set of which a larger share is damaged is not used."""

MAX_NAMED = 10
"""So many damaged pictures are named; then there is no more than their number."""

THREADS = 32
AHEAD = 64
"""Tasks begun before their results are asked for."""

Shape = tuple[int, int, int]
Images = UInt8[np.ndarray, "some channels height width"]


@runtime_checkable
class Part(Protocol):
    """The pictures of one split. A task gives a few images; it raises `InputError` if a picture is damaged."""

    @property
    def labels(self) -> Int64[np.ndarray, " count"]: ...

    def measures(self, values: bool) -> Iterator[Callable[[], Measured]]:
        """Tasks that measure pictures, what is in them only if `values`."""
        ...

    def tasks(self, shape: Shape, pixel_range: PixelRange | None) -> Iterator[Callable[[], Images]]:
        """Tasks that give the images of `shape`, in order; numbers of `pixel_range` become 0 to 255."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Pictures that are decoded one by one; `find` gives the file, or its content, at a position."""

    names: Sequence[str]
    labels: Int64[np.ndarray, " count"]
    find: Callable[[int], Path | io.BytesIO]

    def measures(self, values: bool) -> Iterator[Callable[[], Measured]]:
        return (partial(self._measure, position, values) for position in range(len(self.names)))

    def tasks(self, shape: Shape, pixel_range: PixelRange | None) -> Iterator[Callable[[], Images]]:
        return (partial(self._read, position, shape, pixel_range) for position in range(len(self.names)))

    def _measure(self, position: int, values: bool) -> Measured:
        return measure_picture(self.find(position), self.names[position], values)

    def _read(self, position: int, shape: Shape, pixel_range: PixelRange | None) -> Images:
        picture = decode_picture(self.find(position), self.names[position], pixel_range=pixel_range)
        return frame(picture, shape).numpy()[None]


@dataclass(frozen=True)
class Source:
    """What a reader found: the names of the classes, the pictures of each split, and what the user should know."""

    class_names: tuple[str, ...]
    parts: Mapping[str, Part]
    note: str = ""
    complete: bool = True
    """Whether each split must show each class."""
    fewest: int = 2
    """Classes that there must be."""
    framed: bool = True
    """Whether its pictures, where they have the images' size already, are to be taken as they are by `predict` too."""


def prepared(
    place: str,
    identity: Any,
    describe: Callable[[], Source],
    split: str,
    size: tuple[int, int] | None,
    channels: int | None,
    pixel_range: WantedRange = MEASURED,
) -> ImageSet:
    """A split of the set at `place`, its images mapped from the cache, where it is made if it is not there.

    `identity` (anything that JSON can hold) tells its content from any other's. Tells on standard error what was made
    of the pictures, when that is done and when the training split is opened.
    """
    if split == ALL:
        identity, split = [identity, ALL], "test"
    entry, index, made = _entry(place, identity, describe, size, channels, pixel_range)
    if made or split == "train":
        tell_of_set(entry, index)
    if split not in index["counts"]:
        raise MissingSplitError(f"{place} has no {split} pictures; there are: {', '.join(index['counts'])}")
    shape = (index["counts"][split], *index["shape"])
    pixels = np.memmap(entry / f"{split}.images", np.uint8, "r", shape=shape)
    labels = np.fromfile(entry / f"{split}.labels", np.int64)
    with warnings.catch_warnings():  # that the images cannot be written to is meant
        warnings.simplefilter("ignore")
        images = torch.from_numpy(pixels)
    scale = index["pixel_range"]
    framing = Framing(pixel_range=scale and tuple(scale)) if index["framed"] or scale else None
    return ImageSet(images, torch.from_numpy(labels), tuple(index["classes"]), framing)


def tell_of_set(entry: Path, index: Mapping[str, Any]) -> None:
    """What was made of the pictures, and the classes, so that a set that was not meant so can be seen."""
    labels = {split: np.fromfile(entry / f"{split}.labels", np.int64) for split in index["counts"]}
    tell(index["told"])
    tell(f"  {classes_told(index['classes'], labels)}")


def _entry(
    place: str,
    identity: Any,
    describe: Callable[[], Source],
    size: tuple[int, int] | None,
    channels: int | None,
    pixel_range: WantedRange,
) -> tuple[Path, dict[str, Any], bool]:
    for settings in product((None, size), (None, channels), (MEASURED, pixel_range)):
        # There may be these very images, of which nobody had to say the size, the colours or the range.
        entry, index = found(_key(identity, *settings))
        if (
            index
            and channels in (None, index["shape"][0])
            and size in (None, tuple(index["shape"][1:]))
            and (pixel_range == settings[2] or index["pixel_range"] in (None, pixel_range and list(pixel_range)))
        ):
            return entry, index, False
    key = _key(identity, size, channels, pixel_range)
    return kept(key, lambda folder: _make(folder, place, describe(), size, channels, pixel_range), place)


def _key(identity: Any, size: tuple[int, int] | None, channels: int | None, pixel_range: WantedRange) -> Any:
    # What decodes now is what `predict` will decode with.
    return [identity, size, channels, pixel_range, PIL.__version__]


def _make(
    folder: Path,
    place: str,
    source: Source,
    size: tuple[int, int] | None,
    channels: int | None,
    wanted: WantedRange,
) -> dict[str, Any]:
    labels = {split: part.labels for split, part in source.parts.items()}
    check_classes(place, source.class_names, labels, source.complete, source.fewest)
    total = sum(map(len, labels.values()))
    with quiet_pillow(), ThreadPoolExecutor(min(THREADS, _processors())) as pool, Progress(place, total) as progress:
        try:
            known = size and channels and source.framed and wanted != MEASURED
            sizes = [] if known else _measure(place, pool, source, wanted == MEASURED)
            shape = _choose_shape(sizes, size, channels)
            pixel_range = _common_range(sizes) if wanted == MEASURED else wanted
            need = total * math.prod(shape)
            if need > room():
                raise InputError(
                    f"{place} takes {need / 1e9:.1f} GB in the cache, but {folder.parent} has not the room"
                )
            damaged = Damaged(place, total)
            kept_labels = {
                split: _write(folder / split, part, part.tasks(shape, pixel_range), pool, progress, damaged)
                for split, part in source.parts.items()
            }
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    check_classes(place, source.class_names, kept_labels, source.complete, source.fewest)
    counts = {split: len(own) for split, own in kept_labels.items()}
    median = _median(sizes) if sizes else None
    scaled = any(each[:2] != shape[1:] for each in sizes) or not sizes
    return {
        "counts": counts,
        "shape": list(shape),
        "classes": source.class_names,
        "pixel_range": pixel_range,
        "framed": scaled or source.framed,
        "told": _told(place, source, counts, shape, median if scaled and not size else None, damaged.count)
        + _range_told(pixel_range),
    }


def _measure(place: str, pool: ThreadPoolExecutor, source: Source, values: bool) -> list[Measured]:
    """Of each picture that can be read."""
    measures = [measure for part in source.parts.values() for measure in in_parallel(pool, part.measures(values))]
    sizes = [measure for measure in measures if not isinstance(measure, InputError)]
    if not sizes:
        raise InputError(f"none of the {len(measures):,} pictures of {place} can be read; of the first: {measures[0]}")
    return sizes


def _common_range(measures: list[Measured]) -> PixelRange | None:
    """One for all pictures, or None if all are ordinary; a picture by itself would be made as bright as any other."""
    ranges = [measure.pixel_range for measure in measures if measure.pixel_range]
    if not ranges:
        return None
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    return lowest, highest if highest > lowest else lowest + 1


def _range_told(pixel_range: PixelRange | None) -> str:
    if not pixel_range:
        return ""
    low, high = (f"{bound:,.6g}" for bound in pixel_range)
    return f"; of more than 8 bits a pixel {low} to {high} became 0 to 255 (--pixel-range sets another range)"


def _choose_shape(sizes: list[Measured], size: tuple[int, int] | None, channels: int | None) -> tuple[int, int, int]:
    """The median picture's size, or as much of it as `LARGEST_SIDE` allows; grey, if all pictures are grey."""
    channels = channels or max(each[2] for each in sizes)
    if size:
        return channels, *size
    height, width = _median(sizes)
    scale = min(1, LARGEST_SIDE / max(height, width))
    return channels, max(1, round(height * scale)), max(1, round(width * scale))


def _median(sizes: list[Measured]) -> tuple[int, int]:
    return int(np.median([each.height for each in sizes])), int(np.median([each.width for each in sizes]))


def _write(
    path: Path,
    part: Part,
    tasks: Iterator[Callable[[], Images]],
    pool: ThreadPoolExecutor,
    progress: "Progress",
    damaged: "Damaged",
) -> Int64[np.ndarray, " count"]:
    """Append image after image to a file, and return the labels of those that could be read.

    A file that grows is told when the disk is full; of one that is mapped, the process would die.
    """
    whole, position = np.ones(len(part.labels), bool), 0
    with path.with_suffix(".images").open("wb") as file:
        for images in in_parallel(pool, tasks):
            done = 1 if isinstance(images, InputError) else len(images)
            if isinstance(images, InputError):
                whole[position] = False
                progress.note(damaged.add(images))
            else:
                file.write(np.ascontiguousarray(images).data)
            position += done
            progress.advance(done)
    labels = part.labels[whole]
    labels.astype(np.int64).tofile(path.with_suffix(".labels"))
    return labels


class Damaged:
    """Counts damaged pictures. Raises `InputError` when there are too many."""

    def __init__(self, place: str, total: int) -> None:
        self.place, self.total, self.count = place, total, 0

    def add(self, error: InputError) -> str | None:
        """What to tell of one."""
        self.count += 1
        if self.count > MAX_DAMAGED * self.total:
            raise InputError(
                f"more than {100 * MAX_DAMAGED:.0f} % of the {self.total:,} pictures of {self.place} cannot be read, "
                f"the last one: {error}"
            )
        return f"left out: {error}" if self.count <= MAX_NAMED else None


def in_parallel(pool: ThreadPoolExecutor, tasks: Iterator[Callable[[], Any]]) -> Iterator[Any]:
    """Results in the order of the tasks, `InputError`s among them; no more tasks are begun than are soon asked for."""
    ahead: deque[Future[Any]] = deque()
    for task in tasks:
        ahead.append(pool.submit(_attempt, task))
        if len(ahead) > AHEAD:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _attempt(task: Callable[[], Any]) -> Any:
    try:
        return task()
    except InputError as error:
        return error


class Progress:
    """A bar on standard error, on a terminal; elsewhere a line at the start."""

    def __init__(self, place: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = progress_console(markup=False, soft_wrap=True)
        columns = (
            TextColumn("reading"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("pictures "),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        if self.bar.disable:
            self.console.print(printable(f"reading {total:,} pictures of {place} …"))
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def advance(self, count: int) -> None:
        self.bar.advance(self.task, count)

    def note(self, line: str | None) -> None:
        if line:
            self.console.print(printable(line))


def _told(
    place: str, source: Source, counts: dict[str, int], shape: Shape, median: tuple[int, int] | None, damaged: int
) -> str:
    """What was made of the pictures, in one line."""
    uses = {"train": "to train on", "val": "to validate with", "test": "to test on"}
    parts = [f"{counts[split]:,} pictures {use}" for split, use in uses.items() if split in counts]
    colours = {1: "grey", 3: "colour"}.get(shape[0], f"{shape[0]} channels")
    line = f"{place}: {len(source.class_names)} classes, {', '.join(parts)}{source.note}; {shape[1]}×{shape[2]} pixels"
    if median:
        line += f" (the median picture has {median[0]}×{median[1]}; --size sets another size)"
    return f"{line}, {colours}" + (f"; {damaged:,} damaged left out" if damaged else "")


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

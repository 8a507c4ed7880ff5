"""Training and inference rates and peak memory of all sides, measured in alternation."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from capsnet.benchmark.sides import Side
from capsnet.benchmark.workers import Job, SideError, Worker
from capsnet.streams import tell

WARM_UP = 2
"""Steps before each turn: the others' turns have left the caches to them, and perhaps the memory."""
SECONDS_A_TURN = {"cpu": 2.0, "mps": 2.0, "cuda": 0.2}
SHARE_TO_WARM_UP = 0.6
"""Of the time that is left, how long compilers are waited for; who is ready by then is measured."""

Key = tuple[int, str]
"""A batch size and the name of a side."""
Turns = dict[Key, list[list[float]]]
"""Seconds of a step, as `Worker.receive` returns them, for each turn."""


class Comparison:
    """Sides that take turns, so that what else the machine does hits all, until a deadline (`time.monotonic`).

    `rows` holds what has been measured so far, for each batch size and task; `failed` why a side is missing there.
    """

    def __init__(self, sides: list[Side], pixels: int, device: torch.device, rounds: int, deadline: float) -> None:
        self.sides, self.pixels, self.device = sides, pixels, device
        self.rounds, self.deadline = rounds, deadline
        self.rows: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}
        self.workers: dict[Key, Worker] = {}

    def measure(self, batch_sizes: tuple[int, ...]) -> None:
        """All sides at all these sizes: they start and compile side by side, the first size before the others."""
        try:
            for number, size in enumerate(batch_sizes):
                for side in self.sides:
                    job = Job(side, size, self.pixels, self.device, niceness=5 * number)
                    self.workers[size, side.name] = Worker(job)
            self._take_turns("train")
            self._add([self._memory_row(size) for size in _sizes(self.workers)])
            self._take_turns("infer")
        finally:
            for worker in self.workers.values():
                worker.close()
            self.workers.clear()

    def _take_turns(self, task: str) -> None:
        if time.monotonic() > self.deadline:
            return
        self._warm_up(task)
        steps = {key: self._steps_a_turn(key, task) for key in list(self.workers)}
        before = self.rows
        turns: Turns = {key: [] for key in steps}
        for number in range(self.rounds):
            if time.monotonic() > self.deadline:
                break
            for key in list(self.workers):
                _show(f"batch {key[0]}: {task} {number + 1}/{self.rounds} {key[1]}")
                if self._ask(key, task, WARM_UP) and (seconds := self._ask(key, task, steps[key])):
                    turns[key].append(seconds)
            self.rows = list(before)
            self._add(self._task_rows(task, turns))
        _show("")

    def _warm_up(self, task: str) -> None:
        _show(f"{task}: warming up")
        now = time.monotonic()
        until = now + SHARE_TO_WARM_UP * (self.deadline - now)
        for key in list(self.workers):
            self._try(key, lambda worker: worker.send(task, WARM_UP))
        for key in list(self.workers):
            self._try(key, lambda worker: worker.receive(until))

    def _steps_a_turn(self, key: Key, task: str) -> int:
        seconds = self._ask(key, task, WARM_UP)
        return max(1, round(SECONDS_A_TURN[self.device.type] / statistics.mean(seconds))) if seconds else 0

    def _ask(self, key: Key, task: str, steps: int = 1) -> list[float] | None:
        return self._try(key, lambda worker: worker.ask(task, steps))

    def _try(self, key: Key, request: Callable[[Worker], Any]) -> Any:
        """What the worker answers; where it fails, None, and it is left out from now on."""
        try:
            return request(self.workers[key])
        except SideError as error:
            name = f"{key[1]}, batch {key[0]}"
            self.failed[name] = str(error)
            tell(f"capsnet: {name} is left out: {error}")
            self.workers.pop(key).close()
            return None

    def _add(self, rows: list[dict[str, Any]]) -> None:
        """Whoever stops us has on stderr what is known so far; later lines of a row replace the earlier ones."""
        self.rows = self.rows + rows
        if not _on_terminal():
            for row in rows:
                tell(json.dumps(row))

    def _task_rows(self, task: str, turns: Turns) -> list[dict[str, Any]]:
        rows = []
        taken = {key: of_key for key, of_key in turns.items() if of_key}
        for size in _sizes(taken):
            here = {name: of_key for (of, name), of_key in taken.items() if of == size}
            rates = {name: [size / statistics.mean(turn) for turn in of_key] for name, of_key in here.items()}
            rows.append(self._row(size, task, "images/s", rates))
            if (size, task) == (1, "infer"):
                rows.append(self._latency_row(here))
        return rows

    def _latency_row(self, turns: dict[str, list[list[float]]]) -> dict[str, Any]:
        """Of single images, one after the other."""
        medians = {name: [1000 * statistics.median(turn) for turn in taken] for name, taken in turns.items()}
        row = self._row(1, "latency", "ms", medians)
        for name, taken in turns.items():
            each = [1000 * seconds for turn in taken for seconds in turn]
            row[name], row[f"{name}_p99"] = map(float, np.percentile(each, (50, 99)))
        return row

    def _memory_row(self, size: int) -> dict[str, Any]:
        asked = {name: self._ask((of, name), "memory") for of, name in list(self.workers) if of == size}
        return self._row(size, "peak memory", "MB", {name: answer for name, answer in asked.items() if answer})

    def _row(self, size: int, what: str, unit: str, values: dict[str, list[float]]) -> dict[str, Any]:
        """Each side's median and range, and how many times better ours are than the best of the others.

        A ratio is the median of the rounds' ratios.
        """
        row: dict[str, Any] = {"batch_size": size, "what": what, "unit": unit}
        for name, of_rounds in values.items():
            row[name] = statistics.median(of_rounds)
            row[f"{name}_range"] = [min(of_rounds), max(of_rounds)]
        more_is_better = unit == "images/s"
        if "textbook" in row and "capsnet" in row:
            row |= _ratio(values["capsnet"], values["textbook"], more_is_better)
        best = []
        for side, precision in _pairs(self.sides):
            others = [s.name for s in self.sides if not s.ours and s.precision == precision and s.name in row]
            if side.name in row and others:
                other = (max if more_is_better else min)(others, key=row.__getitem__)
                ratio = _ratio(values[side.name], values[other], more_is_better)
                best.append({"side": side.name, "precision": precision, "other": other, **ratio})
        return row | {"best": best}


def _sizes(keys: Iterable[Key]) -> list[int]:
    return list(dict.fromkeys(size for size, _ in keys))


def _pairs(sides: list[Side]) -> list[tuple[Side, str]]:
    """Each of ours, with the precision of others that it is compared with: its own, and any that none of ours has."""
    ours = [side for side in sides if side.ours]
    own = {side.precision for side in ours}
    precisions = dict.fromkeys(side.precision for side in sides)
    return [(side, p) for side in ours for p in precisions if p == side.precision or p not in own]


def _ratio(ours: list[float], theirs: list[float], more_is_better: bool) -> dict[str, Any]:
    rounds = zip(ours, theirs, strict=False)  # one that failed has fewer
    ratios = [mine / other if more_is_better else other / mine for mine, other in rounds]
    return {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}


def _show(progress: str) -> None:
    if _on_terminal():
        tell(f"{progress:<60}", end="\r")


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()

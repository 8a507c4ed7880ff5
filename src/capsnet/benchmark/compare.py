"""Training and inference rates and peak memory of both sides, measured in alternation."""

import statistics
from typing import Any

from capsnet.benchmark.sides import SIDES, Side
from capsnet.streams import tell

WARM_UP = 2
SECONDS_A_TURN = 2.0


def compare(batch_sizes: tuple[int, ...], rounds: int, device: str) -> list[dict[str, Any]]:
    """A row for each batch size and task: both sides' medians and spreads, and the ratio.

    The sides take turns, so that what else the machine does hits both; the ratio is the median of the rounds' ratios.
    """
    return [row for batch_size in batch_sizes for row in _compare_at(batch_size, rounds, device)]


def _compare_at(batch_size: int, rounds: int, device: str) -> list[dict[str, Any]]:
    sides = {name: Side(name, batch_size, device) for name in SIDES}
    rates: dict[str, dict[str, list[float]]] = {task: {name: [] for name in SIDES} for task in ("train", "infer")}
    memory: dict[str, float] = {}
    for task in rates:
        steps = {}
        for name, side in sides.items():
            side.ask(task, WARM_UP)
            steps[name] = max(1, round(SECONDS_A_TURN * side.ask(task, WARM_UP) / batch_size))
        for number in range(rounds):
            for name, side in sides.items():
                tell(f"batch {batch_size}: {task} {number + 1}/{rounds} {name:<10}", end="\r")
                side.ask(task, WARM_UP)  # the other's turn has left the caches to it, and perhaps the memory
                rates[task][name].append(side.ask(task, steps[name]))
        if task == "train":
            memory = {name: side.ask("memory") for name, side in sides.items()}
    for side in sides.values():
        side.close()
    rows = [_row(batch_size, task, rates[task]) for task in rates]
    ratio = memory["textbook"] / memory["capsnet"]
    rows.append({"batch_size": batch_size, "what": "peak memory", "unit": "MB", **memory, "ratio": ratio})
    return rows


def _row(batch_size: int, task: str, rates: dict[str, list[float]]) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in zip(rates["capsnet"], rates["textbook"], strict=True)]
    row: dict[str, Any] = {"batch_size": batch_size, "what": f"{task}", "unit": "images/s"}
    for name in SIDES:
        row[name] = statistics.median(rates[name])
        row[f"{name}_range"] = [min(rates[name]), max(rates[name])]
    return row | {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}

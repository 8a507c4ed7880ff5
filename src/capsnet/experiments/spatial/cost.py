"""What the test of the claim costs: a training step of each model, and all runs of each part.

A step is measured by `scripts/time_spatial.py` for all models in one run, in turns; the seconds that a record holds
also depend on what else its machine had to do.
"""

import math
from pathlib import Path
from typing import Any

from capsnet import runs
from capsnet.errors import InputError
from capsnet.experiments.spatial.plan import IMAGES, PARTS, VARIANTS, Run, runs_of
from capsnet.experiments.spatial.records import FOLDER
from capsnet.experiments.spatial.summary import CAPSULE, CNN, Records

COST = Path(FOLDER) / "cost.json"
DIGITS = 60_000

Cost = dict[str, Any]


def read_cost(results: Path) -> Cost | None:
    """What was measured; None before. Raises `InputError` if the file is damaged."""
    if not (results / COST).exists():
        return None
    cost = runs.read_json(results / COST)
    try:
        _milliseconds(cost)
        cost["environment"]["device"]
    except (KeyError, TypeError, IndexError):
        raise InputError(f"{results / COST} is damaged; make it again with scripts/time_spatial.py") from None
    return cost


def _milliseconds(cost: Cost) -> dict[tuple[str, bool], tuple[float, float, float]]:
    """Median, least and most, by variant and whether it is trained on digits."""
    return {
        (step["variant"], step["task"] == "digits"): tuple(map(float, step["milliseconds"][:3]))  # pyright: ignore
        for step in cost["steps"]
    }


def pace(cost: Cost | None) -> str:
    """How long a step of the CNN takes beside one of the CapsNet, in words."""
    if cost is None:
        return "takes a time to train that was not measured yet"
    found = _milliseconds(cost)
    return f"takes {found[CNN, False][0] / found[CAPSULE, False][0]:.2f} times as long for a training step"


def step_rows(records: Records, cost: Cost | None) -> list[list[str]]:
    """For each model: parameters, milliseconds a step on faces and on digits, seeds."""
    found = _milliseconds(cost) if cost else {}

    def cell(name: str, digits: bool) -> str:
        if (name, digits) not in found:
            return "–"
        middle, least, most = found[name, digits]
        return f"{middle:.0f} ({least:.0f}–{most:.0f})"

    rows = []
    for name, variant in VARIANTS.items():
        counts = [record["parameters"] for record in records.of(name, "all")]
        seeds = {record["seed"] for record in records.records if record["variant"] == name}
        size = f"{counts[0]:,}" if counts else "–"
        rows.append([variant.about, size, cell(name, False), cell(name, True), str(len(seeds))])
    return rows


def part_rows(cost: Cost | None) -> list[list[str]]:
    """For each part: its runs, and the hours that training them takes one core at the measured rates."""
    found = _milliseconds(cost) if cost else {}

    def hours(run: Run) -> float:
        return _steps(run) * found[run.variant.name, run.task == "digits"][0] / 3.6e6

    rows = []
    for part, about in PARTS.items():
        needed = runs_of((part,))
        rows.append([f"({part}) {about}", str(len(needed)), f"{sum(map(hours, needed)):.1f}" if found else "–"])
    everything = runs_of()
    rows.append(["all, each run once", str(len(everything)), f"{sum(map(hours, everything)):.1f}" if found else "–"])
    return rows


def measuring_share(records: Records) -> float | None:
    """How long measuring took beside training, over all runs; None where nothing was timed."""
    training, measuring = (
        sum(record["seconds"].get(part, 0.0) for record in records.records) for part in ("training", "measuring")
    )
    return measuring / training if training else None


def _steps(run: Run) -> int:
    images = DIGITS if run.task == "digits" else int(run.task[7:]) if run.task.startswith("images-") else IMAGES
    return run.recipe.epochs * math.ceil(images / run.recipe.batch_size)

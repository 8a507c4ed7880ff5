"""What a training step of each model of `capsnet reproduce spatial` costs, in one run, in turns.

    .venv/bin/python scripts/time_spatial.py

One thread, batches of 64, as the runs were made; medians over nine turns of ten steps, after one to warm up. Written to
results/spatial/cost.json, from which `scripts/claims.py` takes it.
"""

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from capsnet import runs, tune_allocator
from capsnet.data import ImageSet, PosedSet, to_float
from capsnet.experiments.spatial.cost import COST
from capsnet.experiments.spatial.plan import VARIANTS, Run, training_set
from capsnet.models import build_model
from capsnet.optimizer import AdamW

TURNS, STEPS = 9, 10


def main() -> None:
    torch.set_num_threads(1)
    data = {task: training_set(task).first(64) for task in ("images-625", "digits")}
    steps = {
        (name, task): prepared(Run(variant, task, 0), images)
        for name, variant in VARIANTS.items()
        for task, images in data.items()
        if task != "digits" or variant.digits
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in range(TURNS + 1):
        for key, step in steps.items():
            times[key].append(measured(step))
    entries = [
        {"variant": name, "task": task, "milliseconds": [round(statistics.median(own), 2), *spread(own)]}
        for (name, task), own in ((key, own[1:]) for key, own in times.items())
    ]
    environment = {**runs.environment(torch.device("cpu")), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    runs.write_json(Path("results") / COST, {"environment": environment, "steps": entries})
    for entry in entries:
        print(f"{entry['variant']:<16} {entry['task']:<10} {entry['milliseconds'][0]:7.1f} ms a step")


def prepared(run: Run, images: ImageSet) -> Callable[[], None]:
    """A training step of the run's model."""
    torch.manual_seed(0)
    model = build_model(*run.model)
    optimizer = AdamW(model.parameters())
    pixels, poses = to_float(images.images), images.poses if isinstance(images, PosedSet) else None

    def step() -> None:
        optimizer.zero_grad()
        model.loss(pixels, images.labels, poses).total.backward()
        optimizer.step()

    return step


def measured(step: Callable[[], None]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return 1000 * (time.perf_counter() - started) / STEPS


def spread(values: list[float]) -> tuple[float, float]:
    return round(min(values), 2), round(max(values), 2)


if __name__ == "__main__":
    tune_allocator()
    main()

"""Runs within a budget of seconds: their speed is measured, and how many epochs there is time for follows from it."""

import contextlib
import math
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from capsnet.batches import Batches
from capsnet.data import ImageSet, PairSet
from capsnet.evaluation import BATCH, evaluate
from capsnet.experiments.reproduce import TableSettings, reproduce, test_sets, training_sets
from capsnet.experiments.rows import Row
from capsnet.models import build_model
from capsnet.recipe import Recipe
from capsnet.streams import tell
from capsnet.training import fit

TIMED = 50
"""Training steps, after as many that warm up."""
SPARE = 0.05
"""Share of the time that is not planned with: no run takes exactly as long as its timing says."""


@dataclass(frozen=True)
class Pace:
    """Seconds that a run of a row takes; `seeds` of them are to be made."""

    row: Row
    seeds: int
    start: float
    """Until the steps have their speed: data, model, kernels, warm-up."""
    epoch: float
    test: float

    def run(self, epochs: int) -> float:
        return self.start + epochs * self.epoch + self.test


class _MeasuredError(Exception):
    """Training has gone as far as it was to be timed."""


class Stopwatch(Callback):
    """Times the second epoch and what follows its last step; then ends training by `_MeasuredError`."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.moments: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.is_last_batch and trainer.current_epoch == 1:
            self._note("stepped", pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            self._note("warm", pl_module.device)
        if trainer.current_epoch == 2:
            self._note("ended", pl_module.device)
            raise _MeasuredError

    @property
    def step(self) -> float:
        return (self.moments["stepped"] - self.moments["warm"]) / self.steps

    @property
    def epoch_end(self) -> float:
        """Held-out images, vital signs, checkpoint."""
        return self.moments["ended"] - self.moments["stepped"]

    def _note(self, moment: str, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.moments[moment] = time.perf_counter()


def reproduce_within(seconds: float, rows: Sequence[Row], seeds: int | None, settings: TableSettings) -> int:
    """Make runs of these rows that are over in so many seconds; returns how many failed.

    Each row is trained for the same share of its own epochs, all of them at most. Where that is less than an epoch,
    the rows at the end of the list are left out. A failure is reported, and the next run follows.
    """
    end = time.perf_counter() + seconds
    paces, failed = _paces(rows, seeds, settings, patience=seconds / 3)
    slower = 1.0
    while paces:
        epochs = plan(paces, (1 - SPARE) * (end - time.perf_counter()) / slower)
        for pace in paces[len(epochs) :]:
            tell(f"{pace.row.name} left out: there is no time for an epoch of it")
        if not epochs:
            break
        pace, paces = paces[0], paces[1 : len(epochs)]
        for seed in range(pace.seeds):
            what = f"{pace.row.name} with seed {seed}"
            planned, started = pace.run(epochs[0]), time.perf_counter()
            if slower * planned > end - started:
                tell(f"{what} left out: it wants {slower * planned:.0f} s, and {end - started:.0f} s are left")
                continue
            try:
                reproduce(pace.row, seed, epochs[0], settings)
            except Exception:
                failed += _failed(what)
            taken = time.perf_counter() - started
            slower = max(1.0, taken / planned)
            tell(f"{what}: {taken:.1f} s, planned {planned:.1f} s")
    return failed


def _paces(rows: Sequence[Row], seeds: int | None, settings: TableSettings, patience: float) -> tuple[list[Pace], int]:
    """Times rows until `patience` seconds are over; returns what they take, and how many failed."""
    paces, failed, started = [], 0, time.perf_counter()
    for row in rows:
        if time.perf_counter() > started + patience:
            tell(f"{row.name} left out: to time it would take what the others need")
            continue
        try:
            pace = measure(row, seeds or row.seeds, settings)
        except Exception:
            failed += _failed(row.name)
        else:
            tell(f"{row.name}: {pace.start:.1f} s to start, {pace.epoch:.2f} s an epoch, {pace.test:.1f} s to test")
            paces.append(pace)
    return paces, failed


def plan(paces: Sequence[Pace], seconds: float) -> list[int]:
    """Epochs of each row: the same share of its own for all. Rows at the end are dropped until each gets one."""
    for count in range(len(paces), 0, -1):
        chosen = paces[:count]
        fixed = sum(pace.seeds * pace.run(0) for pace in chosen)
        whole = sum(pace.seeds * pace.row.recipe.epochs * pace.epoch for pace in chosen)
        share = min(1.0, (seconds - fixed) / whole)
        epochs = [math.floor(share * pace.row.recipe.epochs) for pace in chosen]
        if min(epochs) >= 1:
            return epochs
    return []


def measure(row: Row, seeds: int, settings: TableSettings) -> Pace:
    """How long a run of a row takes, from its first steps, the end of an epoch, and tests on the first images."""
    began = time.perf_counter()
    torch.manual_seed(0)
    train_set, held_out = training_sets(row, row.held_out, settings)
    tested = test_sets(row, settings)
    recipe = row.recipe
    steps = math.ceil(len(train_set) / recipe.batch_size)
    few = min(steps, TIMED)
    model, watch = build_model(row.model, row.config), Stopwatch(few)
    # Short epochs, but as many steps in all as the run has: that decides whether steps are taken at once.
    short = replace(recipe, epochs=2 + math.ceil(recipe.epochs * steps / few), stop_at_error=0.0)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_MeasuredError):
        fit(
            model,
            train_set.first(few * recipe.batch_size),
            short,
            held_out=held_out,
            out=Path(folder) / "run",
            device=str(settings.device),
            progress=False,
            callbacks=[watch],
        )
    test = 0.0
    for data in tested.values():
        evaluate(model, data.first(BATCH), settings.device, row.shifts)
        some = data.first(2 * BATCH)
        test += evaluate(model, some, settings.device, row.shifts).seconds * len(data) / len(some)
    epoch = steps * watch.step + watch.epoch_end + _seconds_to_plan(train_set, recipe, settings.device)
    return Pace(row, seeds, row.members * (watch.moments["warm"] - began), row.members * epoch, row.members * test)


def _seconds_to_plan(train_set: ImageSet | PairSet, recipe: Recipe, device: torch.device | str) -> float:
    """What is drawn for a whole epoch, and on a GPU made in advance."""
    batches = Batches(train_set, None, recipe)
    batches.move_to(torch.device(device))
    started = 0.0
    for epoch in range(2):  # the first warms up
        started = time.perf_counter()
        float(batches.train_batch(epoch, 0).images.sum())  # waits for it
    return time.perf_counter() - started


def _failed(what: str) -> int:
    traceback.print_exc()
    tell(f"{what} failed")
    return 1

"""How many images a second the rows of the paper's tables train on, in one run, in turns.

    .venv/bin/python scripts/time_rows.py [ROW…]

The step of `capsnet.fit` but for its moving average, at the row's batch size; medians and ranges over nine turns,
each of one step, after two to warm up.
"""

import sys
import time
from collections.abc import Callable

import torch

from capsnet import tune_allocator
from capsnet.batches import Batches
from capsnet.errors import InputError
from capsnet.experiments.reproduce import TableSettings, training_sets
from capsnet.experiments.rows import ROWS, Row, find_rows
from capsnet.models import build_model
from capsnet.optimizer import AdamW

TURNS = 9


def prepared(row: Row) -> Callable[[], None]:
    """A training step of the row's model, always on its first batch."""
    torch.manual_seed(0)
    model = build_model(row.model, row.config).train()
    optimizer = AdamW(model.parameters(), weight_decay=row.recipe.weight_decay)
    train_set, _ = training_sets(row, row.held_out, TableSettings())
    batches = Batches(train_set, None, row.recipe)

    def step() -> None:
        batch = batches.train_batch(0, 0)
        optimizer.zero_grad()
        model.loss(*batch).total.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    tune_allocator()
    try:
        rows = find_rows(tuple(sys.argv[1:]) or tuple(name for name, row in ROWS.items() if not row.needs))
        steps = [prepared(row) for row in rows]
    except InputError as error:
        sys.exit(f"time_rows: {error}")
    turns = [[seconds(step) for step in steps] for _ in range(TURNS + 2)][2:]
    print("| row | model | batch | images/s, median (range) |", "|---|---|---:|---:|", sep="\n")
    for row, times in zip(rows, zip(*turns, strict=True), strict=True):
        slowest, *_, fastest = rates = sorted(row.recipe.batch_size / time for time in times)
        middle = rates[TURNS // 2]
        print(f"| {row.name} | {row.about} | {row.recipe.batch_size} | {middle:.0f} ({slowest:.0f}–{fastest:.0f}) |")


if __name__ == "__main__":
    main()

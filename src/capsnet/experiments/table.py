"""From records to tables: mean and standard deviation over seeds, beside the paper's numbers."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from capsnet.experiments.records import is_current
from capsnet.experiments.rows import Row

HEADER = ("row", "data", "model", "epochs", "runs", "test error, %", "paper, %", "also")


@dataclass(frozen=True)
class Line:
    """One row at one number of epochs. `mean` is None without a run, `std` (of the sample) without a second one."""

    row: Row
    runs: int
    epochs: int
    mean: float | None
    std: float | None
    also: str
    """Other figures of the same runs, in words."""

    def as_json(self) -> dict[str, Any]:
        row = self.row
        return {
            **{
                "row": row.name,
                "data": row.test_data.rstrip(":"),
                "model": row.about,
                "runs": self.runs,
                "epochs": self.epochs,
            },
            **{"mean": _rounded(self.mean), "std": _rounded(self.std), "paper": row.paper},
        }

    def cells(self) -> tuple[str, ...]:
        row, nominal = self.row, self.row.recipe.epochs
        error = "no run" if self.mean is None else _plus_minus(self.mean, self.std)
        paper = _plus_minus(row.paper, row.paper_std) if row.paper_std else f"{row.paper:g}"
        epochs = str(nominal) if self.epochs == nominal else f"{self.epochs} instead of {nominal}"
        also = self.also if self.runs else row.needs
        data = f"{row.test}, trained on {row.data}" if row.test else row.data.rstrip(":")
        return (row.name, data, row.about, epochs, str(self.runs), error, paper, also)


def make_table(rows: Iterable[Row], records: Iterable[dict[str, Any]]) -> list[Line]:
    """A line for each row, and one more for each other number of epochs that it was run for.

    Runs of different numbers of epochs are never mixed; records of another definition of their row do not count.
    """
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if is_current(record):
            groups[record["row"], record["epochs"]].append(record)
    lines = []
    for row in rows:
        others = sorted(epochs for name, epochs in groups if name == row.name and epochs != row.recipe.epochs)
        lines += [_line(row, epochs, groups[row.name, epochs]) for epochs in (row.recipe.epochs, *others)]
    return lines


def format_table(lines: Sequence[Line]) -> str:
    """As Markdown, aligned so that it can be read as it is."""
    cells = [HEADER, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(padded)


def _line(row: Row, epochs: int, records: list[dict[str, Any]]) -> Line:
    errors = [record["final"]["error"] for record in records]
    mean = statistics.mean(errors) if errors else None
    std = statistics.stdev(errors) if len(errors) > 1 else None
    return Line(row, len(errors), epochs, mean, std, _also(row, epochs, records))


def _also(row: Row, epochs: int, records: list[dict[str, Any]]) -> str:
    finals = [record["final"] for record in records]
    named = {"thing_error": "by digit", "clean_error": "clean", "published_error": "published affNIST"}
    known = [name for name in named if finals and all(name in final for final in finals)]
    told = [f"{named[name]} {statistics.mean(final[name] for final in finals):.2f}" for name in known]
    if len(records) == 1 and "interval" in finals[0]:
        told.append("95 % interval {:.2f} to {:.2f}".format(*finals[0]["interval"]))
    return "; ".join([*told, *_stops(row, epochs, records), *_differences(records)])


def _stops(row: Row, epochs: int, records: list[dict[str, Any]]) -> list[str]:
    """When runs stopped that were to stop at some held-out error, and how many never came as far."""
    if not row.recipe.stop_at_error:
        return []
    held_out = [record["curve"][-1]["held_out_error"] for record in records]
    stopped = [len(record["curve"]) for record in records]
    missed = sum(error > row.recipe.stop_at_error for error in held_out)
    told = [f"stopped after epoch {', '.join(map(str, stopped))}"] if any(n < epochs for n in stopped) else []
    if missed:
        far = f"held-out error {', '.join(f'{error:.2f}' for error in held_out)}"
        told.append(f"{row.recipe.stop_at_error:g} % not reached by {missed} of {len(records)}: {far}")
    return told


def _differences(records: list[dict[str, Any]]) -> list[str]:
    """What was not the same for all runs behind one mean."""
    images = {f"{record['final']['images']:,}" for record in records if "images" in record["final"]}
    # Records that do not note it are older, and all of processors.
    kinds = {str(record["environment"].get("precision", "32-true")) for record in records}
    told = [f"tested on {' or '.join(sorted(images, key=len))} images"] if len(images) > 1 else []
    return [*told, *([f"trained in {' or '.join(sorted(kinds))}"] if len(kinds) > 1 else [])]


def _plus_minus(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

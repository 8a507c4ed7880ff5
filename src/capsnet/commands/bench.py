"""`capsnet bench`"""

import json
from dataclasses import dataclass
from typing import Literal

from capsnet.checks import whole
from capsnet.devices import pick_device


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory beside a textbook implementation in the same run."""

    batch_sizes: tuple[int, ...] = (32, 128, 256)
    """Images in a step."""
    rounds: int = 5
    """Turns that each side gets; more give steadier medians."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        from capsnet.benchmark.report import benchmark, format_tables

        whole("--rounds", self.rounds, 1, 10_000)
        for size in self.batch_sizes:
            whole("--batch-sizes", size, 1, 1_000_000)
        outcome = benchmark(self.batch_sizes, self.rounds, pick_device(self.device))
        print(json.dumps(outcome) if self.json else format_tables(outcome))

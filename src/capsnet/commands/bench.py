"""`capsnet bench`"""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

from capsnet.checks import number, whole
from capsnet.commands import optional
from capsnet.devices import pick_device

CPU_BATCH_SIZES = (32, 128, 256)
GPU_BATCH_SIZES = (128, 2048, 512)
GPU_SECONDS = 80.0


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory beside a textbook implementation in the same run."""

    batch_sizes: tuple[int, ...] = ()
    """Images in a step; by default 32, 128 and 256, on a GPU 128, 512 and 2,048. With 1, latency is measured too."""
    network: Literal["mnist", "multimnist", "affnist"] = "mnist"
    """The paper's network for images of 28, 36 or 40 pixels a side."""
    rounds: int = 5
    """Turns that each side gets; more give steadier medians."""
    compiled: bool = False
    """Also the textbook under torch.compile, which takes minutes more; on a GPU it is always there."""
    seconds: Annotated[float | None, optional("FLOAT")] = None
    """Leave out what has not begun after so many seconds; by default 80 on a GPU, where most of them go to the compiler
    of the textbook, and none on a CPU."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        from capsnet.benchmark.report import benchmark, format_tables

        whole("--rounds", self.rounds, 1, 10_000)
        for size in self.batch_sizes:
            whole("--batch-sizes", size, 1, 1_000_000)
        if self.seconds is not None:
            number("--seconds", self.seconds, 0.001, 1e9)
        device = pick_device(self.device)
        on_gpu = device.type == "cuda"
        outcome = benchmark(
            self.network,
            tuple(dict.fromkeys(self.batch_sizes)) or (GPU_BATCH_SIZES if on_gpu else CPU_BATCH_SIZES),
            self.rounds,
            device,
            compiled=self.compiled,
            seconds=self.seconds or (GPU_SECONDS if on_gpu else None),
        )
        print(json.dumps(outcome) if self.json else format_tables(outcome))
        return 0 if outcome["comparison"] else 1

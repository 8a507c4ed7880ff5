"""`capsnet evaluate`"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from capsnet import runs
from capsnet.commands import data_of, optional
from capsnet.data import AVAILABLE, has_any_size
from capsnet.data.splits import ALL
from capsnet.devices import pick_device
from capsnet.errors import InputError
from capsnet.evaluation import evaluate


@dataclass(frozen=True)
class Evaluate:
    """Test a trained model on the test images of a data set, or on all of a set that does not say which those are."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    data: Annotated[str | None, optional("SET", f"Data set; by default the run's. {AVAILABLE}.")] = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    shifts: int = 0
    """Average the answers over all shifts of the test images by up to so many pixels in each direction."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        folder = runs.locate(self.run_folder)
        run = runs.open_run(folder)
        data = data_of(run, self.data)
        smallest = min(run.model.config["in_shape"][1:])
        if not 0 <= self.shifts < smallest:
            raise InputError(
                f"--shifts must be 0 to {smallest - 1}, or nothing of these images is left; it is {self.shifts}"
            )
        split = "test" if _same(data, run.data) or not has_any_size(data) else ALL
        outcome = evaluate(run.model, runs.open_split(folder, data, split), pick_device(self.device), self.shifts)
        speed = outcome.images / outcome.seconds
        low, high = outcome.interval
        paired = outcome.things > outcome.images
        if self.json:
            answer = {
                "run": str(self.run_folder),
                "data": data,
                "images": outcome.images,
                "errors": outcome.errors,
                "error": round(outcome.error, 4),
                "interval": [round(low, 4), round(high, 4)],
                **({"digit_error": round(outcome.thing_error, 4)} if paired else {}),
                **({"shifts": self.shifts} if self.shifts else {}),
                "seconds": round(outcome.seconds, 2),
                "images_per_second": round(speed, 1),
            }
            print(json.dumps(answer))
        else:
            found = f"{outcome.errors:,} of {outcome.images:,}; 95 % interval {low:.2f} to {high:.2f} %"
            digits = f", by digit {outcome.thing_error:.2f} %" if paired else ""
            print(f"test error {outcome.error:.2f} % ({found}){digits}, {speed:,.0f} images/s")


def _same(name: str, other: str | None) -> bool:
    """Whether two names of data sets, or paths, are those of the same one."""
    if other is None:
        return False
    return name == other or os.path.realpath(os.path.expanduser(name)) == os.path.realpath(os.path.expanduser(other))

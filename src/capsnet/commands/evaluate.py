"""`capsnet evaluate`"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from capsnet import runs
from capsnet.data import AVAILABLE, open_images
from capsnet.devices import pick_device
from capsnet.evaluation import evaluate


@dataclass(frozen=True)
class Evaluate:
    """Test a trained model on the test images of a data set."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    data: Annotated[str, tyro.conf.arg(help=f"Data set: {AVAILABLE}.")] = "mnist"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        model = runs.load(self.run_folder)
        outcome = evaluate(model, open_images(self.data, "test"), pick_device(self.device))
        speed = outcome.images / outcome.seconds
        low, high = outcome.interval
        if self.json:
            answer = {
                "run": str(self.run_folder),
                "data": self.data,
                "images": outcome.images,
                "errors": outcome.errors,
                "error": round(outcome.error, 4),
                "interval": [round(low, 4), round(high, 4)],
                "seconds": round(outcome.seconds, 2),
                "images_per_second": round(speed, 1),
            }
            print(json.dumps(answer))
        else:
            found = f"{outcome.errors:,} of {outcome.images:,}; 95 % interval {low:.2f} to {high:.2f} %"
            print(f"test error {outcome.error:.2f} % ({found}), {speed:,.0f} images/s")

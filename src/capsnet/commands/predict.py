"""`capsnet predict`"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from capsnet import runs
from capsnet.data.pictures import read_picture
from capsnet.devices import pick_device
from capsnet.errors import InputError
from capsnet.evaluation import probabilities


@dataclass(frozen=True)
class Predict:
    """Say what is on pictures (PNG, JPEG, …) of any size."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Picture files."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        if not self.pictures:
            raise InputError("name at least one picture: capsnet predict RUN IMAGE...")
        run = runs.open_run(self.run_folder)
        shape, names = run.model.config["in_shape"], run.class_names
        images = torch.stack([read_picture(path, shape, run.framing) for path in self.pictures])
        scores = probabilities(run.model, images, pick_device(self.device))
        answers = [
            {
                "picture": str(path),
                "class": names[int(row.argmax())],
                "probability": round(float(row.max()), 4),
                "probabilities": {name: round(float(p), 4) for name, p in zip(names, row, strict=True)},
            }
            for path, row in zip(self.pictures, scores, strict=True)
        ]
        if self.json:
            print(json.dumps({"run": str(self.run_folder), "predictions": answers}))
        else:
            width = max(len(answer["picture"]) for answer in answers)
            for answer in answers:
                print(f"{answer['picture']:<{width}}  {answer['class']}  {answer['probability']:.3f}")

"""`capsnet predict`"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from capsnet import runs
from capsnet.data.pictures import Framing, read_picture
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
        model = runs.load(self.run_folder)
        config = runs.read_config(self.run_folder)
        shape, count = model.config["in_shape"], model.config["num_classes"]
        names = config.get("classes", [str(k) for k in range(count)])
        if not isinstance(names, list) or len(names) != count:
            raise InputError(f"{self.run_folder / runs.CONFIG} is damaged: it should name {count} classes")
        framing = _framing(config, self.run_folder)
        images = torch.stack([read_picture(path, shape, framing) for path in self.pictures])
        scores = probabilities(model, images, pick_device(self.device))
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


def _framing(config: dict[str, Any], folder: Path) -> Framing:
    try:
        recorded = config.get("framing", {})
        return Framing(**{**recorded, "centre": tuple(recorded.get("centre", (0.5, 0.5)))})
    except (TypeError, AttributeError, InputError):
        raise InputError(f"{folder / runs.CONFIG} is damaged: its section 'framing' is not ours") from None

"""Tune capsule and CNN alike for `capsnet reproduce spatial`, on validation images, and write down every try.

    .venv/bin/python scripts/tune_spatial.py "learning_rate=0.001" "learning_rate=0.003" "pose_weight=0.3"

Each try changes the recipe, or the weight of the poses, for both models, so both get the same number of tries. All are
kept in results/spatial/tuning.jsonl, one a line; those that are there are not made again.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from capsnet import InputError, Recipe, evaluate, fit, runs, tune_allocator
from capsnet.data.faces import make_faces
from capsnet.evaluation import detect
from capsnet.experiments.records import current_commit
from capsnet.experiments.spatial.detection import pose_errors
from capsnet.experiments.spatial.plan import VARIANTS
from capsnet.models import CapsuleDetector, CNNDetector, build_model

LOG = Path("results") / "spatial" / "tuning.jsonl"
MODELS = ("capsnet-r3-rec", "cnn")
TRAINING, VALIDATION = 2500, 2000
BASE = Recipe(epochs=6, batch_size=64, learning_rate=0.002, final_learning_rate=0.0001, decay="cosine", max_shift=0)


def main(tries: list[str]) -> None:
    train_set, validation = make_faces(TRAINING), make_faces(VALIDATION, "validation")
    runs.make_folder(LOG.parent)
    for words in tries:
        changes = {name: json.loads(value) for name, _, value in (word.partition("=") for word in words.split())}
        weight = changes.pop("pose_weight", None)
        recipe = replace(BASE, **changes)
        for name in MODELS:
            kind, config = VARIANTS[name].faces
            config = config | ({} if weight is None else {"pose_weight": weight})
            torch.manual_seed(recipe.seed)
            model = build_model(kind, config)
            assert isinstance(model, CapsuleDetector | CNNDetector)
            key = {"variant": name, "recipe": asdict(recipe), "pose_weight": model.config["pose_weight"]}
            tried = read_log()
            if any({part: entry[part] for part in key} == key for entry in tried):
                continue
            curve = fit(model, train_set, recipe, progress=False)
            faces = validation.select(validation.labels == 1)
            read = pose_errors(detect(model, faces.images).poses, faces.poses)
            entry = {
                **key,
                "error": round(evaluate(model, validation).error, 3),
                **{part: round(error, 3) for part, error in read.items()},
                "seconds": round(sum(row["seconds"] for row in curve), 1),
                **{"commit": current_commit(), "environment": runs.environment(torch.device("cpu"))},
            }
            content = "".join(json.dumps(line) + "\n" for line in [*tried, entry])
            runs.write_atomically(LOG, content.encode())
            told = {part: entry[part] for part in ("error", "orientation", "size", "position", "seconds")}
            print(f"{name:15} {words or 'as it is'}: {told}", flush=True)


def read_log() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []


if __name__ == "__main__":
    tune_allocator()
    try:
        main(sys.argv[1:] or [""])
    except InputError as error:
        sys.exit(f"tune_spatial: {error}")

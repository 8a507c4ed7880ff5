"""Compare recipes on held-out training images, never on the test set, and write down every try.

    .venv/bin/python scripts/search_recipe.py mnist-best --epochs 4 --limit 20000 \\
        "" "weight_decay=0" "decay=linear learning_rate=0.003" "rotation=0 scale=0 shear=0"

Each try changes the row's recipe ("" leaves it as it is; seed=1 is another seed). All tries of a row are kept in
results/search/ROW.jsonl, one a line; those that are there are not run again, and one that was interrupted goes on.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from capsnet import InputError, Recipe, evaluate, fit, runs, tune_allocator
from capsnet.data import ImageSet, PairSet, open_dataset
from capsnet.devices import pick_device
from capsnet.experiments.records import current_commit
from capsnet.experiments.rows import find_rows
from capsnet.models import build_model

FIGURES = ("error", "error_with_shifts", "seconds")


@dataclass(frozen=True)
class Search:
    """Compare changes to the recipe of one row."""

    row: tyro.conf.Positional[str]
    """A row of `capsnet reproduce`."""
    tries: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TRY")]
    """Changes to its recipe: "name=value name=value"."""
    epochs: int = 4
    limit: int | None = None
    """Train on so many images, or pairs an epoch, only."""
    held_out: int = 5000
    """Training images kept out to compare on."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    out: Path = Path("results") / "search"

    def run(self) -> None:
        (row,) = find_rows((self.row,))
        log = self.out / f"{row.name}.jsonl"
        recipes = {words: changed(row.run_recipe(0, self.epochs), words) for words in self.tries}
        train_set, held_out = self._data(row.data)
        device = pick_device(self.device)
        for words, recipe in recipes.items():
            key: dict[str, Any] = {"recipe": asdict(recipe), "limit": self.limit, "held_out": self.held_out}
            tried = read_log(log)
            if any({name: entry.get(name) for name in key} == key for entry in tried):
                continue
            print(f"{row.name}: {words or 'as it is'}", file=sys.stderr)
            folder = Path("runs") / "search" / row.name / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
            torch.manual_seed(recipe.seed)
            model = build_model(row.model, row.config)
            resume = (folder / runs.CONFIG).exists() and not (folder / runs.WEIGHTS).exists()
            if not (folder / runs.WEIGHTS).exists():
                fit(model, train_set, recipe, held_out=held_out, out=folder, resume=resume, device=str(device))
            model = runs.load(folder)
            curve = runs.read_metrics(folder)
            plain, shifted = (evaluate(model, held_out, device, shifts) for shifts in (0, 1))
            entry = {
                **{"changes": words, "error": round(plain.error, 4), "error_with_shifts": round(shifted.error, 4)},
                "seconds": round(sum(point["seconds"] for point in curve), 1),
                **{"commit": current_commit(), "environment": runs.environment(device)},
                **key,
                "curve": curve,
            }
            runs.make_folder(self.out)
            runs.write_atomically(log, "".join(json.dumps(line) + "\n" for line in [*tried, entry]).encode())
            shutil.rmtree(folder)
        print(as_table(read_log(log)))

    def _data(self, name: str) -> tuple[ImageSet | PairSet, ImageSet | PairSet]:
        train_set, held_out = open_dataset(name).hold_out(self.held_out)
        return (train_set.first(self.limit) if self.limit else train_set), held_out


def changed(recipe: Recipe, words: str) -> Recipe:
    """The recipe with changes as "name=value name=value"."""
    changes: dict[str, Any] = {}
    for word in words.split():
        name, equals, value = word.partition("=")
        if not equals or name not in asdict(recipe):
            raise InputError(f"{word!r} is no change to a recipe, whose settings are: {', '.join(asdict(recipe))}")
        try:
            changes[name] = value if name == "decay" else json.loads(value)
        except ValueError:
            raise InputError(f"{word!r} does not give {name} a number") from None
    return replace(recipe, **changes)


def read_log(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def as_table(entries: list[dict[str, Any]]) -> str:
    """The best first, those of one size together. Errors in percent, of held-out training images."""
    lines = ["| images | epochs | changes | seed | held-out error | with shifts of 1 | seconds |", "|---" * 7 + "|"]
    for entry in sorted(entries, key=lambda entry: (str(entry["limit"]), entry["recipe"]["epochs"], entry["error"])):
        recipe = entry["recipe"]
        cells = [entry["limit"] or "all", recipe["epochs"], entry["changes"] or "none", recipe["seed"]]
        lines.append("| " + " | ".join(map(str, [*cells, *(entry[name] for name in FIGURES)])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    tune_allocator()
    try:
        tyro.cli(Search).run()
    except InputError as error:
        sys.exit(f"search_recipe: {error}")

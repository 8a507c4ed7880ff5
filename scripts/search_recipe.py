"""Compare recipes and networks on held-out training images, never on the test set, and write down every try.

    .venv/bin/python scripts/search_recipe.py mnist-best --epochs 4 --limit 20000 \\
        "" "weight_decay=0" "decay=linear learning_rate=0.003" "rotation=0 scale=0 shear=0"

Each try changes the row's recipe or the settings of its network, as "batch_norm=true temperature=10" ("" leaves both
as they are; seed=1 is another seed; width=0.25 makes all layers a quarter as wide). All tries of a row are kept in
results/search/ROW.jsonl, one a line; those that are there are not run again, and one that was interrupted goes on.
"""

import hashlib
import inspect
import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from capsnet import InputError, Recipe, evaluate, runs, tune_allocator
from capsnet.data import ImageSet, PairSet
from capsnet.devices import pick_device
from capsnet.experiments.making import Settings, provenance, trained
from capsnet.experiments.records import current_commit
from capsnet.experiments.reproduce import TableSettings, training_sets
from capsnet.experiments.rows import Row, find_rows
from capsnet.models import MODELS, build_model, sizes
from capsnet.recipe import is_recipe

FIGURES = ("error", "error_with_shifts", "seconds")


@dataclass(frozen=True)
class Search:
    """Compare changes to the recipe, or the network, of one row."""

    row: tyro.conf.Positional[str]
    """A row of `capsnet reproduce`."""
    tries: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TRY")]
    """Changes to its recipe or its network: "name=value name=value"."""
    epochs: int = 4
    limit: int | None = None
    """Train on so many images, or pairs an epoch, only."""
    held_out: int = 5000
    """Training images kept out to compare on."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    out: Path = Path("results") / "search"

    def run(self) -> None:
        (row,) = find_rows((self.row,))
        row = replace(row, recipe=replace(row.recipe, stop_at_error=0.0))  # all tries train equally long
        train_set, held_out = training_sets(row, self.held_out, TableSettings())
        assert held_out is not None
        train_set = train_set.first(self.limit) if self.limit else train_set
        changed_rows = {words: changed(row, words) for words in self.tries}
        for words, changed_row in changed_rows.items():
            recipe = replace(changed_row.recipe, epochs=self.epochs)
            definition = {"limit": self.limit, **changed_row.definition(), "held_out": self.held_out}
            if any(tells_of(entry, recipe, definition) for entry in self._read()):
                continue
            key: dict[str, Any] = {"recipe": asdict(recipe), **definition}
            print(f"{row.name}: {words or 'as it is'}", file=sys.stderr)
            folder = Path("runs") / "search" / row.name / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
            figures = self._try(changed_row, definition, recipe, folder, train_set, held_out)
            self._write({"changes": words, **figures, **key})
            shutil.rmtree(folder)
        print(as_table(self._read(), row))

    def _try(
        self,
        row: Row,
        definition: dict[str, Any],
        recipe: Recipe,
        folder: Path,
        train_set: ImageSet | PairSet,
        held_out: ImageSet | PairSet,
    ) -> dict[str, Any]:
        settings = Settings(device=pick_device(self.device), command=" ".join(sys.argv), commit=current_commit())
        build = partial(build_model, row.model, row.config)
        model = trained(f"search {row.name}", definition, build, train_set, recipe, folder, settings, held_out)
        curve = runs.read_metrics(folder)
        if recipe.crop and isinstance(held_out, ImageSet):
            held_out = held_out.centre(recipe.crop)
        plain, shifted = (evaluate(model, held_out, settings.device, shifts) for shifts in (0, 1))
        return {
            **{"error": round(plain.error, 4), "error_with_shifts": round(shifted.error, 4)},
            "seconds": round(sum(point["seconds"] for point in curve), 1),
            **provenance(folder, settings),
            "curve": curve,
        }

    @property
    def _log(self) -> Path:
        return self.out / f"{self.row}.jsonl"

    def _read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def _write(self, entry: dict[str, Any]) -> None:
        """Beside what another search may have added meanwhile."""
        runs.make_folder(self.out)
        runs.write_atomically(self._log, "".join(json.dumps(line) + "\n" for line in [*self._read(), entry]).encode())


def tells_of(entry: dict[str, Any], recipe: Recipe, definition: dict[str, Any]) -> bool:
    """Whether this try was made."""
    return {name: entry.get(name) for name in definition} == definition and is_recipe(entry["recipe"], recipe)


def changed(row: Row, words: str) -> Row:
    """The row with changes to its recipe, or to the settings of its network, as "name=value name=value"."""
    recipe: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for word in words.split():
        name, equals, text = word.partition("=")
        if not equals or name not in (*asdict(row.recipe), *network_settings(row)):
            raise InputError(
                f"{word!r} changes nothing; settings are, of the recipe: {', '.join(asdict(row.recipe))}; "
                f"of the network: {', '.join(network_settings(row))}"
            )
        try:
            value: Any = text if name == "decay" else json.loads(text)
        except ValueError:
            raise InputError(f"{word!r} does not give {name} a number") from None
        if name == "width":
            config |= sizes(row.model, value)
        else:
            (recipe if name in asdict(row.recipe) else config)[name] = value
    return replace(row, recipe=replace(row.recipe, **recipe), config={**row.config, **config})


def network_settings(row: Row) -> list[str]:
    """What may be set of the row's network, beside the shape of its images and classes."""
    return ["width", *list(inspect.signature(MODELS[row.model]).parameters)[2:]]


def _whole_config(model: str, config: dict[str, Any]) -> dict[str, Any]:
    """With what the network has by default; tuples are lists, as in what was written down."""
    parameters = inspect.signature(MODELS[model]).parameters.values()
    whole = {each.name: each.default for each in parameters if each.default is not each.empty} | config
    return {name: list(value) if isinstance(value, tuple) else value for name, value in whole.items()}


def as_table(entries: list[dict[str, Any]], present: Row) -> str:
    """The best first, those of one size together. Errors in percent, of held-out training images.

    Changes are those to the `present` row, which may have been another when the try was made.
    """
    lines = ["| images | epochs | changes | seed | held-out error | with shifts of 1 | seconds |", "|---" * 7 + "|"]
    usual = {**asdict(present.recipe), **_whole_config(present.model, present.config)}
    for entry in sorted(entries, key=lambda entry: (str(entry["limit"]), entry["recipe"]["epochs"], entry["error"])):
        recipe = asdict(Recipe(**entry["recipe"]))  # with the settings that came later
        made = {**recipe, **_whole_config(entry["model"], entry["config"])}
        apart = ("epochs", "seed")
        changes = [f"{name}={value}" for name, value in made.items() if value != usual.get(name) and name not in apart]
        cells = [entry["limit"] or "all", recipe["epochs"], " ".join(changes) or "none", recipe["seed"]]
        lines.append("| " + " | ".join(map(str, [*cells, *(entry[name] for name in FIGURES)])) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    tune_allocator()
    try:
        tyro.cli(Search).run()
    except InputError as error:
        sys.exit(f"search_recipe: {error}")

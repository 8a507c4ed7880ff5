"""Runs behind the tables: what is missing is trained, what was interrupted resumed, each tested once at the end."""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from capsnet import runs
from capsnet.data import ImageSet, PairSet, open_dataset
from capsnet.data.expanded import centred, placed
from capsnet.data.mnist import load_mnist
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation, evaluate
from capsnet.experiments.records import current_commit, is_current, read_record, record_path
from capsnet.experiments.rows import SMALLNORB, Row
from capsnet.models import Ensemble, Model, build_model
from capsnet.recipe import Recipe
from capsnet.training import fit

FULL_TEST_PAIRS = 10_000_000


@dataclass(frozen=True)
class Settings:
    """Where runs are made and kept: what may be chosen without changing what a row means."""

    results: Path = Path("results")
    """Where records are kept."""
    folder: Path = Path("runs") / "reproduce"
    """Where run folders are kept."""
    device: torch.device | str = "cpu"
    full: bool = False
    """Test pairs of digits on ten million, as the paper does."""
    smallnorb: Path | None = None
    """Where the files of smallNORB are."""
    command: str = ""
    """What the user typed, for the record."""


def reproduce(row: Row, seed: int, epochs: int, settings: Settings) -> None:
    """Make one run of a row, unless its record is there: train, test once, write the record.

    Raises `InputError` if data is not at hand, or if there is a run folder or a record of another definition of the
    row; `KeyboardInterrupt` after Ctrl-C, with the checkpoint written, so that the same call goes on.
    """
    path = record_path(settings.results, row, seed, epochs)
    if path.exists() and _is_done(path, row, settings):
        return
    test_sets = _test_sets(row, settings)  # now, not after hours of training for which there is no test
    train_set, held_out = _training_sets(row, settings)
    runs.make_folder(path.parent)
    recipe = row.run_recipe(seed, epochs)
    folder = settings.folder / path.stem
    members = []
    for number in range(row.members):
        place = folder / f"member-{number}" if row.members > 1 else folder
        own = replace(recipe, seed=seed * row.members + number)
        _tell(f"{place.relative_to(settings.folder)}: {row.about} on {row.data}, {epochs} epochs, seed {own.seed}")
        members.append(_trained(row, own, train_set, held_out, place, settings))
    _tell(f"{path.stem}: testing")
    model = members[0] if len(members) == 1 else Ensemble(members)
    outcomes = {name: evaluate(model, data, settings.device, row.shifts) for name, data in test_sets.items()}
    runs.write_json(path, _record(row, recipe, folder, outcomes, settings))


def _is_done(path: Path, row: Row, settings: Settings) -> bool:
    record = read_record(path)
    if not is_current(record):
        raise InputError(
            f"{path} was made when the row {row.name} was defined otherwise; move it and its run folder away, "
            f"and the run is made again"
        )
    final = record["final"]
    return not settings.full or "thing_error" not in final or final.get("images", 0) >= FULL_TEST_PAIRS


def _training_sets(row: Row, settings: Settings) -> tuple[ImageSet | PairSet, ImageSet | PairSet | None]:
    """What is trained on, and what training stops by.

    Digits of expanded MNIST are placed anew in each epoch, by the recipe's shifts; the held-out ones once and for all,
    as in the test set.
    """
    if row.data == "expanded-mnist":
        rest, held_out = load_mnist("train").hold_out(row.held_out)
        return centred(rest), placed(held_out)
    data = _open(row.data, "train", settings)
    return data.hold_out(row.held_out) if row.held_out else (data, None)


def _test_sets(row: Row, settings: Settings) -> dict[str, ImageSet | PairSet]:
    """The set that the row is about first, then the clean one, if that is another."""
    opened = {name: _open(name, "test", settings) for name in dict.fromkeys((row.test_data, row.data))}
    for name, data in opened.items():
        if isinstance(data, PairSet) and settings.full:
            opened[name] = replace(data, count=FULL_TEST_PAIRS)
        if isinstance(data, ImageSet) and row.recipe.crop:
            opened[name] = data.centre(row.recipe.crop)
    return opened


def _open(name: str, split: str, settings: Settings) -> ImageSet | PairSet:
    if name == SMALLNORB:
        if settings.smallnorb is None:
            raise InputError("the row smallnorb needs the published files of smallNORB: --smallnorb FOLDER")
        name += str(settings.smallnorb)
    return open_dataset(name, split)


def _trained(
    row: Row,
    recipe: Recipe,
    train_set: ImageSet | PairSet,
    held_out: ImageSet | PairSet | None,
    folder: Path,
    settings: Settings,
) -> Model:
    """From its folder if it is complete, else trained, from its last checkpoint if there is one."""
    started = (folder / runs.CONFIG).exists()
    described = {"reproduce": row.name, **row.definition(), "recipe": asdict(recipe)}
    if started:
        noted = runs.read_config(folder).get("command", {})
        if not isinstance(noted, dict) or {name: noted.get(name) for name in described} != described:
            raise InputError(f"{folder} holds a run of another definition of the row {row.name}; move it away")
    if (folder / runs.WEIGHTS).exists():
        return runs.load(folder)
    torch.manual_seed(recipe.seed)
    model = build_model(row.model, row.config)
    fit(
        model,
        train_set,
        recipe,
        held_out=held_out,
        out=folder,
        resume=started,
        device=str(settings.device),
        command={**described, "commit": current_commit(), "typed": settings.command},
    )
    return model


def _record(
    row: Row, recipe: Recipe, folder: Path, outcomes: dict[str, Evaluation], settings: Settings
) -> dict[str, Any]:
    folders = [folder / f"member-{number}" for number in range(row.members)] if row.members > 1 else [folder]
    curves = [runs.read_metrics(place) for place in folders]
    curve = [{**({"member": n} if row.members > 1 else {}), **point} for n, rows in enumerate(curves) for point in rows]
    begun = runs.read_config(folders[0]).get("command", {})
    commits = [str(commit) for commit in dict.fromkeys((begun.get("commit"), current_commit())) if commit]
    return {
        "row": row.name,
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "final": _final(row, outcomes) | {"epochs_trained": max(len(rows) for rows in curves)},
        "seconds": {
            "training": round(sum(point["seconds"] for point in curve), 1),
            "testing": round(sum(outcome.seconds for outcome in outcomes.values()), 1),
        },
        "commit": ", finished at ".join(commits) or None,
        "command": settings.command,
        "environment": runs.environment(torch.device(settings.device)),
        "definition": row.definition(),
        "recipe": asdict(recipe),
        "curve": curve,
    }


def _final(row: Row, outcomes: dict[str, Evaluation]) -> dict[str, Any]:
    outcome = outcomes[row.test_data]
    final: dict[str, Any] = {
        "data": row.test_data,
        "images": outcome.images,
        "errors": outcome.errors,
        "error": round(outcome.error, 5),
        "interval": [round(bound, 5) for bound in outcome.interval],
    }
    if outcome.things > outcome.images:
        final |= {"thing_errors": outcome.thing_errors, "thing_error": round(outcome.thing_error, 5)}
    if row.test:
        clean = outcomes[row.data]
        final |= {"clean_images": clean.images, "clean_errors": clean.errors, "clean_error": round(clean.error, 5)}
    return final


def _tell(line: str) -> None:
    print(line, file=sys.stderr)

"""Runs behind the tables: what is missing is trained, what was interrupted resumed, each tested once at the end."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from capsnet import runs
from capsnet.data import SPLITS, ImageSet, PairSet, open_dataset
from capsnet.data.expanded import centred, placed
from capsnet.data.mnist import load_mnist
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation, evaluate
from capsnet.experiments.making import Settings, provenance, trained
from capsnet.experiments.records import is_current, read_record, record_path
from capsnet.experiments.rows import AFFNIST, SMALLNORB, Row
from capsnet.models import Ensemble, build_model
from capsnet.recipe import Recipe
from capsnet.streams import tell

FULL_TEST_PAIRS = 10_000_000


class NotAtHandError(InputError):
    """The data of a row cannot be opened."""


@dataclass(frozen=True)
class TableSettings(Settings):
    """What the tables have beside."""

    full: bool = False
    """Test pairs of digits on ten million, as the paper does."""
    smallnorb: Path | None = None
    """Where the files of smallNORB are."""
    affnist: Path | None = None
    """Where the published test set of affNIST is; rows of affNIST are tested on it too."""


def reproduce(row: Row, seed: int, epochs: int, settings: TableSettings) -> None:
    """Make one run of a row, unless its record is there: train, test once, write the record.

    Raises `NotAtHandError` if data is not at hand, `InputError` if there is a run folder or a record of another
    definition of the row; `KeyboardInterrupt` after Ctrl-C, with the checkpoint written, so that the same call goes on.
    """
    path = record_path(settings.results, row, seed, epochs)
    if path.exists() and _is_done(path, row, settings):
        return
    tests = test_sets(row, settings)  # now, not after hours of training for which there is no test
    train_set, held_out = training_sets(row, row.held_out, settings)
    runs.make_folder(path.parent)
    recipe = row.run_recipe(seed, epochs)
    folder = settings.folder / path.stem
    members = []
    for number in range(row.members):
        place = folder / f"member-{number}" if row.members > 1 else folder
        own = replace(recipe, seed=seed * row.members + number)
        tell(f"{place.relative_to(settings.folder)}: {row.about} on {row.data}, {epochs} epochs, seed {own.seed}")
        build = partial(build_model, row.model, row.config)
        members.append(trained(row.name, row.definition(), build, train_set, own, place, settings, held_out))
    tell(f"{path.stem}: testing")
    model = members[0] if len(members) == 1 else Ensemble(members)
    outcomes = {name: evaluate(model, data, settings.device, row.shifts) for name, data in tests.items()}
    runs.write_json(path, _record(row, recipe, folder, outcomes, settings))


def check_files(settings: TableSettings) -> None:
    """Raises `InputError` unless the files that the user named can be opened: they are needed after hours only."""
    if settings.smallnorb is not None:
        for split in SPLITS:
            _open(SMALLNORB, split, settings)
    if settings.affnist is not None:
        _open(AFFNIST, "test", settings)


def _is_done(path: Path, row: Row, settings: TableSettings) -> bool:
    record = read_record(path)
    if not is_current(record):
        raise InputError(
            f"{path} was made when the row {row.name} was defined otherwise; move it and its run folder away, "
            f"and the run is made again"
        )
    final = record["final"]
    if AFFNIST in _tested_on(row, settings) and "published_error" not in final:
        return False
    return not settings.full or "thing_error" not in final or final.get("images", 0) >= FULL_TEST_PAIRS


def training_sets(
    row: Row, held_out: int, settings: TableSettings
) -> tuple[ImageSet | PairSet, ImageSet | PairSet | None]:
    """What is trained on, and so many training images kept out of that.

    Digits of expanded MNIST are placed anew in each epoch, by the recipe's shifts; the held-out ones once and for all,
    as in the test set.
    """
    if row.data == "expanded-mnist" and held_out:
        rest, kept_out = load_mnist("train").hold_out(held_out)
        return centred(rest), placed(kept_out)
    data = _open(row.data, "train", settings)
    return data.hold_out(held_out) if held_out else (data, None)


def _tested_on(row: Row, settings: TableSettings) -> list[str]:
    """The set that the row is about first, then the clean one, if that is another, and the published affNIST."""
    published = [AFFNIST] if settings.affnist and row.test == "affnist-synthetic" else []
    return list(dict.fromkeys((row.test_data, row.data, *published)))


def test_sets(row: Row, settings: TableSettings) -> dict[str, ImageSet | PairSet]:
    """What is tested on, by name; the set that the row is about first."""
    opened = {name: _open(name, "test", settings) for name in _tested_on(row, settings)}
    for name, data in opened.items():
        if isinstance(data, PairSet) and settings.full:
            opened[name] = replace(data, count=FULL_TEST_PAIRS)
        if isinstance(data, ImageSet) and row.recipe.crop:
            opened[name] = data.centre(row.recipe.crop)
    return opened


def _open(name: str, split: str, settings: TableSettings) -> ImageSet | PairSet:
    if name == SMALLNORB and settings.smallnorb is None:
        raise NotAtHandError("the row smallnorb needs the published files of smallNORB: --smallnorb FOLDER")
    name += str({SMALLNORB: settings.smallnorb, AFFNIST: settings.affnist}.get(name, ""))
    try:
        return open_dataset(name, split)
    except InputError as error:
        raise NotAtHandError(*error.args) from None


def _record(
    row: Row, recipe: Recipe, folder: Path, outcomes: dict[str, Evaluation], settings: Settings
) -> dict[str, Any]:
    folders = [folder / f"member-{number}" for number in range(row.members)] if row.members > 1 else [folder]
    curves = [runs.read_metrics(place) for place in folders]
    curve = [{**({"member": n} if row.members > 1 else {}), **point} for n, rows in enumerate(curves) for point in rows]
    return {
        "row": row.name,
        "seed": recipe.seed,
        "epochs": recipe.epochs,
        "final": _final(row, outcomes) | {"epochs_trained": max(len(rows) for rows in curves)},
        "seconds": {
            "training": round(sum(point["seconds"] for point in curve), 1),
            "testing": round(sum(outcome.seconds for outcome in outcomes.values()), 1),
        },
        **provenance(folders[0], settings),
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
    for name, other in (("clean", row.data), ("published", AFFNIST)):
        if other in outcomes and other != row.test_data:
            found = outcomes[other]
            figures = {"images": found.images, "errors": found.errors, "error": round(found.error, 5)}
            final |= {f"{name}_{figure}": value for figure, value in figures.items()}
    return final

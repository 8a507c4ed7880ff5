"""What is kept of each run of the test of the claim: one JSON file, and how the files are read."""

from pathlib import Path
from typing import Any

from capsnet import runs
from capsnet.errors import InputError
from capsnet.experiments.spatial.plan import TASKS, VARIANTS, Run
from capsnet.recipe import is_recipe

FOLDER = "spatial"
FIELDS: dict[str, type] = {
    **{"variant": str, "task": str, "seed": int, "measures": dict, "parameters": int, "seconds": dict},
    **{"definition": dict, "recipe": dict},
}
"""What the tables read; the rest of a record is for people."""


def record_path(results: Path, run: Run) -> Path:
    return results / FOLDER / f"{run.name}.json"


def read_records(results: Path) -> list[dict[str, Any]]:
    """All records in a folder of results, in order of their names. Raises `InputError` if one is damaged."""
    return [read_record(path) for path in sorted((results / FOLDER).glob("*-seed-*.json"))]


def read_record(path: Path) -> dict[str, Any]:
    record = runs.read_json(path)
    wrong = [name for name, kind in FIELDS.items() if not isinstance(record.get(name), kind)]
    if type(record.get("epochs")) not in (int, type(None)):  # none where a run has its own number
        wrong.append("epochs")
    if wrong:
        raise InputError(f"{path} is damaged (see {', '.join(wrong)}); remove it, and the run is made again")
    return record


def is_current(record: dict[str, Any]) -> bool:
    """Whether the run still means what it meant when it was made."""
    if record["variant"] not in VARIANTS or record["task"] not in TASKS:
        return False
    run = Run(VARIANTS[record["variant"]], record["task"], record["seed"], record.get("epochs"))
    try:
        return record["definition"] == run.definition() and is_recipe(record["recipe"], run.recipe)
    except (TypeError, AssertionError, InputError):
        return False

"""What is kept of a run: one JSON file, with all that is needed to judge it and to do it again."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from capsnet import runs
from capsnet.checks import is_number
from capsnet.errors import InputError
from capsnet.experiments.rows import ROWS, Row
from capsnet.recipe import is_recipe

FOLDER = "runs"
CHECKOUT = Path(__file__).parents[3]
COPIED = Path(".gpu", "commit.json")
"""Where a copy without Git's own folder has the commit that it is a copy of (`make gpu-wheels`)."""
DIRTY = " (dirty)"
FIELDS: dict[str, type | tuple[type, ...]] = {
    "row": str,
    "seed": int,
    "epochs": int,
    "definition": dict,
    "environment": dict,
    "recipe": dict,
    "final": dict,
    "curve": list,
}
"""What the tables read; the rest of a record is for people."""
PERCENTAGES = ("error", "thing_error", "clean_error", "published_error")


def record_path(results: Path, row: Row, seed: int, epochs: int) -> Path:
    return results / FOLDER / record_name(row.name, seed, epochs)


def record_name(row: str, seed: int, epochs: int) -> str:
    return f"{row}-{epochs}-epochs-seed-{seed}.json"


def read_records(results: Path) -> list[dict[str, Any]]:
    """All records in a folder of results, in order of their names. Raises `InputError` if one is damaged."""
    return [read_record(path) for path in sorted((results / FOLDER).glob("*.json"))]


def read_record(path: Path) -> dict[str, Any]:
    record = runs.read_json(path)
    wrong = [name for name, kind in FIELDS.items() if not _is(record.get(name), kind)]
    if not wrong:
        percentages = {name: value for name, value in record["final"].items() if name in PERCENTAGES}
        wrong = [f"final.{name}" for name, value in percentages.items() if not _is_percentage(value)]
        wrong += [] if "error" in percentages else ["final.error"]
        interval = record["final"].get("interval", [0, 0])
        images = record["final"].get("images", 0)
        wrong += [] if _is(images, int) and images >= 0 else ["final.images"]
        whole = isinstance(interval, list) and len(interval) == 2 and all(map(_is_percentage, interval))
        wrong += [] if whole else ["final.interval"]
        wrong += [] if _says_where_it_stopped(record) else ["curve"]
    if wrong:
        raise InputError(f"{path} is damaged (see {', '.join(wrong)}); remove it, and the run is made again")
    name = record_name(record["row"], record["seed"], record["epochs"])
    if path.name != name:
        raise InputError(f"{path} holds the run of {name}; give it that name, or move it out of the folder")
    return record


def is_current(record: dict[str, Any]) -> bool:
    """Whether the record's row still means what it meant when the run was made."""
    row = ROWS.get(record["row"])
    if row is None or record["definition"] != row.definition():
        return False
    return is_recipe(record["recipe"], row.run_recipe(record["seed"], record["epochs"]))


def current_commit(root: Path = CHECKOUT) -> str | None:
    """The commit of the code that runs, marked if the tree was changed; None if it is no checkout.

    What is under results/ does not count: the runs write it themselves. A copy knows by `COPIED` what it was copied
    from, also if Git's folder there is another checkout's.
    """
    copied = _copied_commit(root) if (root / COPIED).exists() else None
    if not (root / ".git").exists() or (copied and not copied.endswith(DIRTY)):
        return copied
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", ".", ":(exclude)results"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + DIRTY if changed else head


def note_commit(root: Path = CHECKOUT) -> None:
    """For copies of a checkout: write down its commit, and what the code was then."""
    runs.make_folder((root / COPIED).parent)
    runs.write_json(root / COPIED, {"commit": current_commit(root), "code": _digest(root)})


def _copied_commit(root: Path) -> str | None:
    noted = runs.read_json(root / COPIED)
    commit = noted.get("commit")
    if not isinstance(commit, str) or noted.get("code") == _digest(root) or commit.endswith(DIRTY):
        return commit
    return commit + DIRTY


def _digest(root: Path) -> str:
    """Of the package's code."""
    digest = hashlib.sha256()
    for path in sorted((root / "src").rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _says_where_it_stopped(record: dict[str, Any]) -> bool:
    """As it must, if it was to stop at some held-out error."""
    if not record["recipe"].get("stop_at_error"):
        return True
    last = record["curve"][-1] if record["curve"] else None
    return isinstance(last, dict) and _is_percentage(last.get("held_out_error"))


def _is_percentage(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 100


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)

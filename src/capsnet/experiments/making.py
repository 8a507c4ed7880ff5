"""How a run of an experiment comes about, whichever it is: in its own folder, by which code, asked for by whom."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from capsnet import runs
from capsnet.data import ImageSet, PairSet
from capsnet.errors import InputError
from capsnet.models import Model
from capsnet.recipe import Recipe, is_recipe
from capsnet.training import fit


@dataclass(frozen=True)
class Settings:
    """Where runs are made and kept: what may be chosen without changing what a run means."""

    results: Path = Path("results")
    """Where records are kept."""
    folder: Path = Path("runs") / "reproduce"
    """Where run folders are kept."""
    device: torch.device | str = "cpu"
    command: str = ""
    """What the user typed, for the record."""
    commit: str | None = None
    """Of the code: as it was before the first run, because files may change while this process goes on with its own."""

    def origin(self) -> dict[str, Any]:
        """What a record says of where it comes from."""
        environment = runs.environment(torch.device(self.device))
        return {"commit": self.commit, "command": self.command, "environment": environment}


def trained(
    name: str,
    definition: dict[str, Any],
    build: Callable[[], Model],
    train_set: ImageSet | PairSet,
    recipe: Recipe,
    folder: Path,
    settings: Settings,
    held_out: ImageSet | PairSet | None = None,
) -> Model:
    """From its folder if it is complete, else trained, from its last checkpoint if there is one.

    Raises `InputError` if there is a run of another definition in the folder.
    """
    started = (folder / runs.CONFIG).exists()
    described = {"reproduce": name, **definition}
    if started:
        noted = _noted(folder)
        if {part: noted.get(part) for part in described} != described or not is_recipe(noted.get("recipe"), recipe):
            raise InputError(f"{folder} holds a run of another definition of {name}; move it away")
    if (folder / runs.WEIGHTS).exists():
        return runs.load(folder)
    torch.manual_seed(recipe.seed)
    model = build()
    fit(
        model,
        train_set,
        recipe,
        held_out=held_out,
        out=folder,
        resume=started,
        device=str(settings.device),
        command={**described, "recipe": asdict(recipe), **settings.origin()},
    )
    return model


def provenance(folder: Path, settings: Settings) -> dict[str, Any]:
    """Where the run in a folder comes from: how it was begun, and what had changed when it was `finished`."""
    noted, now = _noted(folder), settings.origin()
    begun = {part: noted.get(part, now[part]) for part in now}
    changed = {part: value for part, value in now.items() if value != begun[part]}
    return {**begun, **({"finished": changed} if changed else {})}


def _noted(folder: Path) -> dict[str, Any]:
    """What `trained` wrote down when it began."""
    noted = runs.read_config(folder).get("command")
    return noted if isinstance(noted, dict) else {}

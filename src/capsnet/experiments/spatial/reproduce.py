"""The runs behind the test of the claim: trained, resumed where they were interrupted, measured once, recorded."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from capsnet import runs
from capsnet.errors import InputError
from capsnet.experiments.records import current_commit
from capsnet.experiments.spatial.attacks import measure_attacks
from capsnet.experiments.spatial.detection import measure_detection
from capsnet.experiments.spatial.plan import Run, training_set
from capsnet.experiments.spatial.readout import measure_readout
from capsnet.experiments.spatial.records import is_current, read_record, record_path
from capsnet.models import CapsNet, CapsuleDetector, CNNDetector, Model, SmallCNN, build_model
from capsnet.training import fit


@dataclass(frozen=True)
class Settings:
    """Where runs are made and kept: what may be chosen without changing what a run means."""

    results: Path = Path("results")
    folder: Path = Path("runs") / "spatial"
    device: torch.device | str = "cpu"
    command: str = ""
    """What the user typed, for the record."""


def reproduce(run: Run, settings: Settings) -> bool:
    """Make one run, unless its record is there: train, measure once, write the record. Whether that was to do.

    Raises `InputError` if there is a record or a run folder of another definition; `KeyboardInterrupt` after Ctrl-C,
    with the checkpoint written, so that the same call goes on.
    """
    path = record_path(settings.results, run)
    if path.exists():
        if not is_current(read_record(path)):
            raise InputError(f"{path} was made when {run.name} was defined otherwise; move it and its run folder away")
        return False
    runs.make_folder(path.parent)
    folder = settings.folder / run.name
    model = _trained(run, folder, settings)
    started = time.perf_counter()
    measures = _measure(run, model, settings)
    curve = runs.read_metrics(folder)
    begun = runs.read_config(folder).get("command", {})
    commits = [str(commit) for commit in dict.fromkeys((begun.get("commit"), current_commit())) if commit]
    record = {
        **{"run": run.name, "variant": run.variant.name, "task": run.task, "seed": run.seed, "epochs": run.epochs},
        "measures": measures,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": {
            "training": round(sum(point["seconds"] for point in curve), 1),
            "measuring": round(time.perf_counter() - started, 1),
        },
        "commit": ", finished at ".join(commits) or None,
        "command": settings.command,
        "environment": runs.environment(torch.device(settings.device)),
        "definition": run.definition(),
        "recipe": asdict(run.recipe),
        "curve": curve,
    }
    runs.write_json(path, record)
    return True


def _trained(run: Run, folder: Path, settings: Settings) -> Model:
    """From its folder if it is complete, else trained, from its last checkpoint if there is one."""
    started = (folder / runs.CONFIG).exists()
    described = {"reproduce": f"spatial {run.name}", **run.definition(), "recipe": asdict(run.recipe)}
    if started:
        noted = runs.read_config(folder).get("command", {})
        if not isinstance(noted, dict) or {name: noted.get(name) for name in described} != described:
            raise InputError(f"{folder} holds a run of another definition of {run.name}; move it away")
    if (folder / runs.WEIGHTS).exists():
        return runs.load(folder)
    print(f"{run.name}: {run.variant.about}, {run.recipe.epochs} epochs", file=sys.stderr)
    torch.manual_seed(run.seed)
    model = build_model(*run.model)
    command = {**described, "commit": current_commit(), "typed": settings.command}
    place = str(settings.device)
    fit(model, training_set(run.task), run.recipe, out=folder, resume=started, device=place, command=command)
    return model


def _measure(run: Run, model: Model, settings: Settings) -> dict[str, Any]:
    print(f"{run.name}: measuring", file=sys.stderr)
    if run.task == "digits":
        assert isinstance(model, CapsNet | SmallCNN)
        return {**measure_readout(model, settings.device), "adversarial": measure_attacks(model, settings.device)}
    assert isinstance(model, CapsuleDetector | CNNDetector)
    return measure_detection(model, run.task == "all", run.task == "painted", settings.device)

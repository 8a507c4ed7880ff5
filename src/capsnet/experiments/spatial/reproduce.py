"""The runs behind the test of the claim: trained, resumed where they were interrupted, measured once, recorded."""

import time
from dataclasses import asdict
from functools import partial
from typing import Any

from capsnet import runs
from capsnet.errors import InputError
from capsnet.experiments.making import Settings, provenance, trained
from capsnet.experiments.spatial.attacks import measure_attacks
from capsnet.experiments.spatial.detection import measure_detection
from capsnet.experiments.spatial.plan import Run, training_set
from capsnet.experiments.spatial.readout import measure_readout
from capsnet.experiments.spatial.records import is_current, read_record, record_path
from capsnet.models import CapsNet, CapsuleDetector, CNNDetector, Model, SmallCNN, build_model
from capsnet.streams import tell


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
    tell(f"{run.name}: {run.variant.about}, {run.recipe.epochs} epochs")
    build = partial(build_model, *run.model)
    model = trained(
        f"spatial {run.name}", run.definition(), build, training_set(run.task), run.recipe, folder, settings
    )
    tell(f"{run.name}: measuring")
    started = time.perf_counter()
    measures = _measure(run, model, settings)
    curve = runs.read_metrics(folder)
    record = {
        **{"run": run.name, "variant": run.variant.name, "task": run.task, "seed": run.seed, "epochs": run.epochs},
        "measures": measures,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": {
            "training": round(sum(point["seconds"] for point in curve), 1),
            "measuring": round(time.perf_counter() - started, 1),
        },
        **provenance(folder, settings),
        "definition": run.definition(),
        "recipe": asdict(run.recipe),
        "curve": curve,
    }
    runs.write_json(path, record)
    return True


def _measure(run: Run, model: Model, settings: Settings) -> dict[str, Any]:
    if run.task == "digits":
        assert isinstance(model, CapsNet | SmallCNN)
        return {**measure_readout(model, settings.device), "adversarial": measure_attacks(model, settings.device)}
    assert isinstance(model, CapsuleDetector | CNNDetector)
    return measure_detection(model, run.task == "all", run.task == "painted", settings.device)

"""The run folder: everything that a training run leaves behind, written so that it can be trusted.

    config.json          the model, the recipe, the classes and how pictures are framed
    last.ckpt            the state of training, for resuming
    metrics.csv          a line an epoch
    model.safetensors    the final weights; there when the run is complete
    report.json          final figures, seed, versions, hardware, seconds

Every file is written to a temporary name, flushed to the disk and renamed: whenever the plug is pulled, a file is the
old one or the new one. Nothing that is loaded can execute code.
"""

import contextlib
import csv
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from capsnet.data.pictures import Framing
from capsnet.errors import InputError
from capsnet.models import Model, build_model, model_name

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
METRICS = "metrics.csv"
REPORT = "report.json"
CHECKPOINT = "last.ckpt"


def save(model: Model, path: str | Path, **sections: Any) -> None:
    """Write a model to a run folder, made if need be. `sections` are recorded in its config beside the model's."""
    folder = Path(path)
    make_folder(folder)
    write_config(folder, model, **sections)
    save_weights(model, folder)


def load(path: str | Path) -> Model:
    """The model of a run folder with its trained weights, ready for use (in evaluation mode, on the CPU).

    Raises `InputError` if the folder is missing, unfinished, damaged, or its weights do not fit its config.
    """
    folder = Path(path)
    described = _section(read_config(folder), "model", folder)
    weights = folder / WEIGHTS
    if not weights.exists():
        raise InputError(
            f"the run {folder} is not complete: it has no {WEIGHTS} yet; "
            f"finish it with: capsnet train --resume --out {folder}"
        )
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        model = build_model(str(described.get("name")), _section(described, "config", folder))
    try:
        state = {name: tensor.float() for name, tensor in safetensors.torch.load_file(weights).items()}
        model.load_state_dict(state, assign=True)
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        raise InputError(f"{weights} is damaged or not this model's: {_first_line(error)}") from None
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise InputError(f"{weights} is damaged: it holds numbers that are not finite")
    return model.eval()


@dataclass(frozen=True)
class Run:
    """A trained model and what is recorded with it: names of the classes, how pictures are framed, what it learnt from.

    `data` is None where the model was not trained by `capsnet train`.
    """

    model: Model
    class_names: tuple[str, ...]
    framing: Framing
    data: str | None


def open_run(path: str | Path) -> Run:
    """The model of a run folder, as `load` gives it, and what is needed to use it on a user's own images.

    Raises `InputError` as `load` does, and if what is recorded beside the model is damaged.
    """
    folder = Path(path)
    model, config = load(folder), read_config(folder)
    count = model.config["num_classes"]
    names = config.get("classes", [str(k) for k in range(count)])
    if not isinstance(names, list) or len(names) != count:
        raise InputError(f"{folder / CONFIG} is damaged: it should name {count} classes")
    try:
        recorded = config.get("framing", {})
        framing = Framing(**{**recorded, "centre": tuple(recorded.get("centre", (0.5, 0.5)))})
    except (TypeError, AttributeError, InputError):
        raise InputError(f"{folder / CONFIG} is damaged: its section 'framing' is not ours") from None
    command = config.get("command", {})
    data = command.get("data") if isinstance(command, dict) else None
    return Run(model, tuple(map(str, names)), framing, data if isinstance(data, str) else None)


def save_weights(model: Model, folder: Path) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(tensors))


def write_config(folder: Path, model: Model, **sections: Any) -> None:
    write_json(folder / CONFIG, {"model": {"name": model_name(model), "config": model.config}, **sections})


def read_config(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise InputError(f"{folder} is a file, not a run folder")
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}; `capsnet train --out {folder}` makes one")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG}")
    return read_json(folder / CONFIG)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it should hold a JSON object")
    return content


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of `metrics.csv`, one for each epoch."""
    try:
        with open(folder / METRICS, newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / METRICS} cannot be read: {error}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file as a whole or not at all. Raises `InputError` if it cannot be written (disk full, read-only)."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; what was saved before is intact") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in this folder, for as long as this one lives.

    Raises `InputError` if one is at it. Clears away what a killed process left half-written.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for litter in folder.glob(".*.partial"):
            litter.unlink(missing_ok=True)
        yield
    except BlockingIOError:
        raise InputError(f"another process is training in {folder}; wait for it, or choose another --out") from None
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """After a power cut, a rename is there only if the folder itself was flushed."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the report."""
    on_gpu = device.type == "cuda"
    return {
        "capsnet": version("capsnet"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _section(config: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise InputError(f"{folder / CONFIG} is damaged: it has no section {name!r}")
    return section


def _first_line(error: Exception) -> str:
    """The first line that says something: PyTorch begins a list of mismatches with a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.rstrip().endswith(":")]
    return lines[0] if lines else type(error).__name__

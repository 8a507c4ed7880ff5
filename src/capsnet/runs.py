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
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from capsnet import hub
from capsnet.card import model_card, public_name
from capsnet.data import ImageSet, PairSet, has_any_size, open_dataset
from capsnet.data.framing import Framing
from capsnet.data.image_set import prints_of
from capsnet.data.splits import ALL, classes_told
from capsnet.devices import training_precision
from capsnet.errors import InputError
from capsnet.models import Detector, Model, build_model, model_name

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
METRICS = "metrics.csv"
REPORT = "report.json"
CHECKPOINT = "last.ckpt"
CARD = "README.md"
LARGEST = 10_000
"""Pixels along a side of an image, or its channels: no more was ever trained on."""
TYPED = ("typed", "command")
"""Where a run's config says what was typed, with places on somebody's computer."""


def save(model: Model, path: str | Path, **sections: Any) -> None:
    """Write a model to a run folder, made if need be, or to the hub (`hub:OWNER/NAME`).

    `sections` are recorded in its config beside the model's.
    """
    if hub.is_place(path):
        with tempfile.TemporaryDirectory() as folder:
            save(model, folder, **sections)
            push(folder, path)
        return
    folder = Path(path)
    make_folder(folder)
    config = _as_bytes(_described(model, sections))
    _write_together({folder / CONFIG: config, folder / WEIGHTS: _weights(model)})
    (folder / REPORT).unlink(missing_ok=True)  # it told of the weights that were there before


def load(path: str | Path, *, stem: nn.Module | None = None) -> Model:
    """The model of a run folder with its trained weights, ready for use (in evaluation mode, on the CPU).

    Or that of a run on the Hugging Face hub: `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`. A model that was given a
    stem of its own needs such a module here, `stem`, which receives the trained weights. Raises `InputError` if the
    folder is missing, unfinished, damaged, or its weights do not fit its config.
    """
    folder = locate(path)
    described = _section(read_config(folder), "model", folder)
    weights = folder / WEIGHTS
    if not weights.exists():
        raise InputError(
            f"the run {folder} is not complete: it has no {WEIGHTS} yet; "
            f"finish it with: capsnet train --resume --out {folder}"
        )
    config = _section(described, "config", folder) | ({"stem": stem} if stem else {})
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        model = build_model(str(described.get("name")), config)
    try:
        state = safetensors.torch.load_file(weights)
        state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
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
    folder = locate(path)
    model, config = load(folder), read_config(folder)
    count = model.config["num_classes"]
    names = config.get("classes", [str(k) for k in range(count)])
    if not isinstance(names, list) or len(names) != count:
        raise InputError(f"{folder / CONFIG} is damaged: it should name {count} classes")
    framing = _framing(folder, config)
    _, height, width = _image_shape(folder, config, model)
    if (height, width) != tuple(model.config["in_shape"][1:]):
        framing = replace(framing, whole=(height, width))
    if isinstance(model, Detector):  # whose answer is where a thing is, and how large
        framing = replace(framing, extent=None)
    command = config.get("command", {})
    data = command.get("data") if isinstance(command, dict) else None
    return Run(model, tuple(map(str, names)), framing, data if isinstance(data, str) else None)


def _framing(folder: Path, config: Mapping[str, Any]) -> Framing:
    try:
        recorded = config.get("framing", {})
        centre, pixel_range = recorded.get("centre", (0.5, 0.5)), recorded.get("pixel_range")
        pairs = {"centre": tuple(centre), "pixel_range": None if pixel_range is None else tuple(pixel_range)}
        return Framing(**{**recorded, **pairs, "whole": None})
    except (TypeError, AttributeError, InputError):
        raise InputError(f"{folder / CONFIG} is damaged: its section 'framing' is not ours") from None


def open_split(path: str | Path, name: str, split: str = "test") -> ImageSet | PairSet:
    """The images of a data set as the model of a run folder has seen its own.

    Pictures get the size and colours of those that it was trained on, labels are matched by the names of the classes,
    and where training was on squares cut out of the images, it is the middle ones. Raises `InputError` as
    `open_dataset` does, and for classes that the model does not know. `split` may be "all", to test on another set; if
    that turns out to be the run's own, it is `test` nevertheless.
    """
    config = read_config(Path(path))
    channels, height, width = _image_shape(Path(path), config, load(path))
    like: dict[str, Any] = {}
    if has_any_size(name):
        like = {"size": (height, width), "channels": channels if channels in (1, 3) else None}
        like["pixel_range"] = _framing(Path(path), config).pixel_range
    images = open_dataset(name, split, **like)
    if isinstance(images, PairSet):
        return images
    if split == ALL:
        split = "test"
        if _was_trained_on(config, images):
            print(f"{name} holds what this run was trained on; testing on what it kept to test on", file=sys.stderr)
            return open_split(path, name)
    named = config.get("classes") or images.class_names
    if not isinstance(named, list | tuple):
        raise InputError(f"{Path(path) / CONFIG} is damaged: its classes are {named!r}")
    classes = tuple(map(str, named))
    images = images if images.class_names == classes else images.with_classes(classes)
    if has_any_size(name):
        print(f"{name}: {classes_told(classes, {split: images.labels.numpy()})}", file=sys.stderr)
    recipe = config.get("recipe")
    crop = recipe.get("crop", 0) if isinstance(recipe, dict) else 0
    if type(crop) is not int:
        raise InputError(f"{Path(path) / CONFIG} is damaged: its crop is {crop!r}")
    return images.centre(crop) if crop else images


def _was_trained_on(config: Mapping[str, Any], images: ImageSet) -> bool:
    """Whether most of the training images that the run can tell again are among these."""
    seen = config.get("seen")
    known = {each for each in seen if isinstance(each, str)} if isinstance(seen, list) else set()
    return bool(known) and len(known.intersection(prints_of(images))) > len(known) / 2


def _image_shape(folder: Path, config: dict[str, Any], model: Model) -> tuple[int, int, int]:
    """Of the images that training saw, before it cut squares out of them."""
    seen = tuple(model.config["in_shape"])
    shape = config.get("image_shape") or seen
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 3
        or not all(type(whole) is int and cut <= whole <= LARGEST for whole, cut in zip(shape, seen, strict=True))
    ):
        raise InputError(f"{folder / CONFIG} is damaged: the shape of its images is {shape!r}")
    channels, height, width = shape
    return channels, height, width


def locate(path: str | Path) -> Path:
    """The folder of a run: itself, or where it was downloaded to from the hub."""
    return hub.fetch(path) if hub.is_place(path) else Path(path)


def push(path: str | Path, place: str | Path, *, private: bool = False) -> str:
    """Put a finished run on the hub, with a page made of its report (or its own README.md); returns the address."""
    folder = Path(path)
    if not hub.is_place(place):
        raise InputError(f"{place} names no model on the hub; that is {hub.PREFIX}OWNER/NAME")
    load(folder)  # nobody shall fetch what cannot be loaded
    files: dict[str, Path | bytes] = {name: folder / name for name in hub.FILES if (folder / name).exists()}
    config = read_config(folder)
    command = config.get("command")
    if isinstance(command, dict):
        config["command"] = {name: value for name, value in command.items() if name not in TYPED}
        if isinstance(data := command.get("data"), str):
            config["command"]["data"] = public_name(data)
        files[CONFIG] = _as_bytes(config)
    if (folder / CARD).exists():
        files[CARD] = folder / CARD
    else:
        report = read_json(folder / REPORT) if REPORT in files else {}
        try:
            files[CARD] = model_card(config, report, Path(place).as_posix()).encode()
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{folder / REPORT} is damaged: {_first_line(error)}") from None
    return hub.push(files, place, private=private)


def save_weights(model: Model, folder: Path) -> None:
    write_atomically(folder / WEIGHTS, _weights(model))


def _weights(model: Model) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors)


def write_config(folder: Path, model: Model, **sections: Any) -> None:
    write_json(folder / CONFIG, _described(model, sections))


def _described(model: Model, sections: dict[str, Any]) -> dict[str, Any]:
    return {"model": {"name": model_name(model), "config": model.config}, **sections}


def read_config(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise InputError(f"{folder} is a file, not a run folder")
    if not folder.is_dir():
        raise InputError(f"there is no run folder {folder}; `capsnet train --out {folder}` makes one")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG}")
    return read_json(folder / CONFIG)


def read_model_config(folder: Path) -> dict[str, Any]:
    return _section(_section(read_config(folder), "model", folder), "config", folder)


def require_free(folder: Path) -> None:
    """Raises `InputError` if there is anything in the folder that a new run wants, or if it cannot be made."""
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} already holds a run; resume it (--resume) or choose another folder (--out)")
    litter = f".{CONFIG}."  # of a process that was killed at its first moment
    if folder.is_dir() and any(not path.name.startswith(litter) for path in folder.iterdir()):
        raise InputError(f"the folder {folder} is not empty; choose a new one for the run (--out)")
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir():
        raise InputError(f"cannot make the folder {folder}: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into the folder {above}; choose another for the run (--out)")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, _as_bytes(content))


def _as_bytes(content: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(content, indent=2, ensure_ascii=False, default=_number) + "\n").encode()
    except UnicodeEncodeError:  # the name of a file that is no text
        return (json.dumps(content, indent=2, default=_number) + "\n").encode()


def _number(value: Any) -> Any:
    """Of NumPy or PyTorch."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be recorded in a run's config")


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
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{folder / METRICS} cannot be read: {error}") from None
    if not all({"epoch", "seconds", "images_per_second"} <= row.keys() and row["seconds"] > 0 for row in rows):
        raise InputError(f"{folder / METRICS} is damaged: each line should tell an epoch and the seconds that it took")
    return rows


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace a file as a whole or not at all. Raises `InputError` if it cannot be written (disk full, read-only)."""
    _write_together({path: content})


def _write_together(contents: Mapping[Path, bytes | memoryview]) -> None:
    """Files of one folder, of which none is replaced before all are written."""
    partials = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in contents}
    path = next(iter(contents))
    try:
        try:
            for path, content in contents.items():
                with open(partials[path], "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            for path, partial in partials.items():
                os.replace(partial, path)
        finally:
            for partial in partials.values():
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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is training in {folder}; wait for it, or choose another --out") from None
        for litter in folder.glob(".*.partial"):
            litter.unlink(missing_ok=True)
        yield
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
        "precision": training_precision(device),
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
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

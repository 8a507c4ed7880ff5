"""The run folder: everything that a training run leaves behind, written so that it can be trusted.

    config.json          the model, the recipe, the classes and how pictures are framed
    last.ckpt            the state of training, for resuming
    metrics.csv          a line an epoch
    model.safetensors    the final weights; there when the run is complete
    report.json          final figures, seed, versions, hardware, seconds

Every file is written to a temporary name, flushed to the disk and renamed: whenever the plug is pulled, a file is the
old one or the new one. The weights name the config that they belong to, so an old one never passes for that of new
weights. Nothing that is loaded can execute code.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from capsnet import hub
from capsnet.card import model_card, public_name
from capsnet.checks import number, shown, whole
from capsnet.data import ImageSet, PairSet, has_any_size, open_dataset
from capsnet.data.framing import Framing
from capsnet.data.image_set import prints_of
from capsnet.data.splits import ALL, classes_told
from capsnet.devices import training_precision
from capsnet.disk import flush, flush_folder, lock, open_file, read_file
from capsnet.errors import InputError, ProcessLostError
from capsnet.evaluation import probabilities
from capsnet.models import CapsNet, Detector, Model, build_model, model_name
from capsnet.models.settings import MAX_SIDE
from capsnet.streams import tell
from capsnet.text import printable

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
METRICS = "metrics.csv"
REPORT = "report.json"
CHECKPOINT = "last.ckpt"
CARD = "README.md"
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
    weights = as_weights(model.state_dict(), json.loads(config))
    # The report tells of the weights that were there before, and goes before they do. The new weights name the new
    # config; those that were there before may be of a version that named none, so the weights come first.
    write_together({folder / REPORT: None, folder / WEIGHTS: weights, folder / CONFIG: config})


def load(path: str | Path, *, stem: nn.Module | None = None) -> Model:
    """The model of a run folder with its trained weights, ready for use (in evaluation mode, on the CPU).

    Or that of a run on the Hugging Face hub: `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`. A model that was given a
    stem of its own needs such a module here, `stem`, which receives the trained weights. Raises `InputError` if the
    folder is missing, unfinished, damaged, or its weights do not fit its config or were saved with another one.
    """
    folder = locate(path)
    recorded = read_config(folder)
    model = _load(folder, recorded, stem)
    _require_same(folder, recorded)
    return model


def _load(folder: Path, recorded: dict[str, Any], stem: nn.Module | None = None) -> Model:
    described = _section(recorded, "model", folder)
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
        with open_file(weights):
            state = safetensors.torch.load_file(weights)
        if isinstance(model, CapsNet) and not any(name.startswith("primary.norm.") for name in state):
            model.fold_batch_norm()  # as training does at its end
        model.load_state_dict(_converted(state, model), assign=True)
    except (safetensors.SafetensorError, RuntimeError, OSError) as error:
        raise InputError(f"{weights} is damaged or not this model's: {_first_line(error)}") from None
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise InputError(f"{weights} is damaged: it holds numbers that are not finite")
    return model.eval()


def _converted(state: dict[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """Floating-point numbers of any precision as float32. Raises `RuntimeError` for a kind that the model has not."""
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    converted = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name, kind in kinds.items():
        kind = torch.float32 if kind.is_floating_point else kind
        if name in converted and converted[name].dtype != kind:
            raise RuntimeError(f"{name} is {converted[name].dtype}, not {kind}")
    return converted


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

    Raises `InputError` as `load` does, if what is recorded beside the model is damaged, and if the weights overflow.
    """
    folder = locate(path)
    config = read_config(folder)
    model = _load(folder, config)
    probabilities(model, torch.full((1, *model.config["in_shape"]), 128, dtype=torch.uint8))
    count = model.config["num_classes"]
    names = _class_names(config, folder) or tuple(map(str, range(count)))
    if len(names) != count:
        raise InputError(f"{folder / CONFIG} is damaged: it should name {count} classes")
    framing = _framing(folder, config)
    _, height, width = _image_shape(folder, config, model)
    if (height, width) != tuple(model.config["in_shape"][1:]):
        framing = replace(framing, whole=(height, width))
    if isinstance(model, Detector):  # whose answer is where a thing is, and how large
        framing = replace(framing, extent=None)
    command = config.get("command", {})
    data = command.get("data") if isinstance(command, dict) else None
    _require_same(folder, config)
    return Run(model, names, framing, data if isinstance(data, str) else None)


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
    channels, height, width = _image_shape(Path(path), config, _load(Path(path), config))
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
            tell(f"{name} holds what this run was trained on; testing on what it kept to test on")
            return open_split(path, name)
    classes = _class_names(config, Path(path)) or images.class_names
    images = images if images.class_names == classes else images.with_classes(classes)
    if has_any_size(name):
        tell(f"{name}: {classes_told(classes, {split: images.labels.numpy()})}")
    recipe = config.get("recipe")
    crop = recipe.get("crop", 0) if isinstance(recipe, dict) else 0
    if type(crop) is not int:
        raise InputError(f"{Path(path) / CONFIG} is damaged: its crop is {shown(crop)}")
    _require_same(Path(path), config)
    return images.centre(crop) if crop else images


def _class_names(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """Empty where none are recorded. They may be numbers there."""
    names = config.get("classes", [])
    if not isinstance(names, list) or not all(type(name) in (str, int, float, bool) for name in names):
        raise InputError(f"{folder / CONFIG} is damaged: its classes are {shown(names)}")
    return tuple(printable(str(name)) for name in names)


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
        or not all(type(whole) is int and cut <= whole <= MAX_SIDE for whole, cut in zip(shape, seen, strict=True))
    ):
        raise InputError(f"{folder / CONFIG} is damaged: the shape of its images is {shown(shape)}")
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
    load(folder)  # nobody shall fetch what cannot be loaded, or does not belong together
    files: dict[str, Path | bytes] = {name: folder / name for name in hub.FILES if (folder / name).exists()}
    config = read_config(folder)
    command = config.get("command")
    if isinstance(command, dict):
        config["command"] = {name: value for name, value in command.items() if name not in TYPED}
        if isinstance(data := command.get("data"), str):
            config["command"]["data"] = public_name(data)
        files[CONFIG] = _as_bytes(config)
    if (folder / CARD).is_file():
        files[CARD] = folder / CARD
    else:
        try:
            files[CARD] = model_card(config, read_report(folder), Path(place).as_posix()).encode()
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{folder / REPORT} is damaged: {_first_line(error)}") from None
    return hub.push(files, place, private=private)


def save_weights(model: Model, folder: Path) -> None:
    """Beside the config that the folder has."""
    write_atomically(folder / WEIGHTS, as_weights(model.state_dict(), read_config(folder)))


def as_weights(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> bytes:
    """The content of a file of weights that names the config it belongs to, as `read_config` gives it.

    Raises `InputError` for what `load` would refuse.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise InputError("the weights are not finite, so they are not saved; train again with a smaller learning rate")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return safetensors.torch.save(tensors, metadata={"config": _sum(config)})


def _sum(config: Mapping[str, Any]) -> str:
    """Of all in a config that decides; not of the command, of which `push` leaves out what is private."""
    decides = {name: section for name, section in config.items() if name != "command"}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _require_same(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises `InputError` if the weights name another config. Asked last: a config that was read before them is old."""
    try:
        with safetensors.safe_open(folder / WEIGHTS, framework="pt") as file:
            named = (file.metadata() or {}).get("config")
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} is damaged: {_first_line(error)}") from None
    if named not in (None, _sum(config)):  # files of earlier versions name none
        raise InputError(
            f"{folder / WEIGHTS} was saved with another {CONFIG} than is there now, as when saving over a model is "
            f"interrupted; save the model again, or bring back its own {CONFIG}"
        )


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
    _require_no_dangling_link(folder)
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir():
        raise InputError(f"cannot make the folder {folder}: {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"cannot write into the folder {above}; choose another for the run (--out)")


def _require_no_dangling_link(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise InputError(
                f"cannot make the folder {folder}: {path} is a link to {os.readlink(path)}, which is not there"
            )


def make_folder(folder: Path) -> None:
    _require_no_dangling_link(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, _as_bytes(content))


def _as_bytes(content: dict[str, Any]) -> bytes:
    as_json = partial(json.dumps, content, indent=2, allow_nan=False, default=_number)
    try:
        return (as_json(ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # the name of a file that is no text
        return (as_json() + "\n").encode()
    except ValueError as error:
        raise InputError(f"this cannot be recorded with a run: {error}") from None


def _number(value: Any) -> Any:
    """Of NumPy or PyTorch."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be recorded in a run's config")


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_file(path), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it should hold a JSON object")
    return content


def _finite(text: Any) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def read_report(folder: Path) -> dict[str, Any]:
    """`report.json`; empty if there is none. Raises `InputError` if its figures are none."""
    if not (folder / REPORT).exists():
        return {}
    report = read_json(folder / REPORT)
    try:
        if "test_error" in report:
            number("test_error", report["test_error"], 0, 100)
        for name in ("test_errors", "test_images"):
            whole(name, report.get(name, 0), 0, 2**63)
    except InputError as error:
        raise InputError(f"{folder / REPORT} is damaged: {error}") from None
    return report


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of `metrics.csv`, one for each epoch; those of an earlier version may have fewer figures."""
    try:
        with io.TextIOWrapper(open_file(folder / METRICS), encoding="utf-8", newline="") as file:
            rows = [
                {name: _finite(value) for name, value in row.items() if value != ""} for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{folder / METRICS} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not all(row.get("epoch", 0) > 0 and row.get("seconds", 0) > 0 and "images_per_second" in row for row in rows):
        raise InputError(f"{folder / METRICS} is damaged: each line should tell an epoch and the seconds that it took")
    return rows


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace a file as a whole or not at all. Raises `InputError` if it cannot be written (disk full, read-only)."""
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes | memoryview | None]) -> None:
    """Files of which none is replaced before all are written; then in this order. None removes one.

    A file keeps the permissions of the one that it replaces.
    """
    new = {path: content for path, content in contents.items() if content is not None}
    partials = {path: _partial(path) for path in new}
    path, replaced = next(iter(contents)), []
    try:
        try:
            for path, content in new.items():
                with open(partials[path], "wb") as file:
                    with contextlib.suppress(OSError):  # there is none, or permissions are not kept here
                        os.chmod(partials[path], stat.S_IMODE(path.stat().st_mode))
                    file.write(content)
                    file.flush()
                    flush(file.fileno())
            for path in contents:
                if path in partials:
                    os.replace(partials[path], path)
                    replaced.append(path.name)
                else:
                    path.unlink(missing_ok=True)
        finally:
            for partial in partials.values():
                partial.unlink(missing_ok=True)
        for folder in {path.parent for path in contents}:
            flush_folder(folder)
    except OSError as error:
        if len(replaced) == len(new):
            raise InputError(
                f"{path} is written, but may be lost in a power cut: its folder cannot be flushed: {error.strerror}"
            ) from None
        rest = f"but {', '.join(replaced)} is replaced" if replaced else "what was saved before is intact"
        raise InputError(f"cannot write {path}: {error.strerror}; {rest}") from None


def _partial(path: Path) -> Path:
    """A temporary name beside it, no longer than file systems take (255 bytes)."""
    name = os.fsencode(path.name)
    short = path.name if len(name) < 200 else hashlib.sha256(name).hexdigest()
    return path.with_name(f".{short}.{os.getpid()}.partial")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in this folder, for as long as this one lives.

    Raises `InputError` if one is at it. Clears away what a killed process left half-written.
    """
    if os.name != "posix":
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:  # gone since it was made
        raise InputError(f"cannot open the folder {folder}: {error.strerror}") from None
    try:
        try:
            alone = lock(descriptor)
        except BlockingIOError:
            raise InputError(f"another process is training in {folder}; wait for it, or choose another --out") from None
        for litter in folder.glob(".*.partial") if alone else ():
            litter.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def cleared_on_failure(folder: Path) -> Iterator[None]:
    """For a run that has just begun: what fails before anything was kept does not keep the folder from a new try.

    What was interrupted is kept, because it can be resumed from the start.
    """
    try:
        yield
    except ProcessLostError:
        raise
    except Exception:
        if not any((folder / name).exists() for name in (CHECKPOINT, METRICS)):
            (folder / CONFIG).unlink(missing_ok=True)
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        raise


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

"""`capsnet train`"""

import contextlib
import dataclasses
import itertools
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

import torch
import tyro

from capsnet import runs
from capsnet.commands import optional
from capsnet.data import AVAILABLE, ImageSet, PairSet, has_any_size, open_dataset, open_validation
from capsnet.data.framing import MEASURED, WantedRange, check_pixel_range
from capsnet.data.own import NAMED_COLUMNS, parse_size
from capsnet.devices import pick_device
from capsnet.errors import InputError, ProcessLostError
from capsnet.evaluation import Evaluation, evaluate
from capsnet.models import CapsNet, Model, build_model, sizes
from capsnet.recipe import Recipe
from capsnet.streams import tell
from capsnet.text import printable

SMALLEST_SIDE = 20
"""Pixels that are enough for every model, unless its stem is set."""
LONGEST_SIDE = 204
"""So an image that is SMALLEST_SIDE high has no more pixels than one of 64×64."""


@dataclass(frozen=True)
class Train:
    """Train a model, test it once at the end, and keep everything in a run folder."""

    data: Annotated[str, tyro.conf.arg(help=f"Data set: {AVAILABLE}.")] = "mnist"
    size: Annotated[str | None, optional("N|HxW")] = None
    """Of your own images, in pixels: one number or HEIGHTxWIDTH; by default the median picture's, at most 64 a side."""
    channels: Annotated[Literal[1, 3] | None, optional("{1,3}")] = None
    """Of your own images: 1 for grey, 3 for colour; by default grey if all are grey."""
    pixel_range: Annotated[tuple[float, float] | None, optional("LOW HIGH")] = None
    """Of your own images with more than 8 bits a pixel: what becomes 0 and 255; by default the lowest and highest."""
    model: Literal["capsnet", "cnn", "pooling-cnn", "small-cnn", "detector", "cnn-detector"] = "capsnet"
    """CapsNet, or one of the CNNs that the paper compares it with: for MNIST, or with max-pooling for MultiMNIST.
    Or a small usual one. Detectors also learn the pose, from the data set faces: a CapsNet, and the small CNN."""
    iterations: int = 3
    """Routing iterations."""
    decoder: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = True
    """Without the decoder, which reconstructs the image from the capsule, as a regulariser."""
    leaky: bool = False
    """Leaky routing: one more softmax column for "none of the above"."""
    width: float = 1.0
    """How wide the network is beside the paper's: channels, capsule types, hidden units."""
    stem: Annotated[int | None, optional("INT")] = None
    """How often CapsNet halves images before it looks for capsules; by default so often that about 28×28 are left."""
    based_on: Annotated[Literal["everyday", "paper", "best"], tyro.conf.arg(name="recipe")] = "everyday"
    """Where the flags below say nothing: a quick recipe's settings, the paper's, or the best that we have."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    limit: Annotated[int | None, optional("INT")] = None
    """Train on the first so many images only, for a quick look."""
    held_out: int = 0
    """Keep so many training images out, and test on them after each epoch; by default those of the set's own split to
    validate with, if it has one."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    devices: int = 1
    """Train on so many GPUs of this machine, or in so many processes of its CPU; together they see --batch-size."""
    nodes: int = 1
    """Machines, each with so many devices; torchrun or srun starts this on all of them."""
    out: Annotated[Path | None, optional("FOLDER")] = None
    """The run folder; by default runs/DATA-MODEL-NUMBER."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint, with the settings that it has."""
    tensorboard: bool = False
    """Write TensorBoard logs into the run folder too."""

    def run(self) -> None:
        from capsnet.processes import find_team

        device = str(pick_device(self.device))
        team = find_team(torch.device(device), self.devices, self.nodes)
        self._check()
        if self.out or team.rank:
            self._run(self.out or Path("runs") / "of-the-first-process", team, device)
            return
        folder = _claimed_folder(f"{_short_name(self.data)}-{self.model}")
        try:
            self._run(folder, team, device)
        finally:
            with contextlib.suppress(OSError):  # unless there is something in them
                folder.rmdir()
                folder.parent.rmdir()

    def _run(self, folder: Path, team: Any, device: str) -> None:
        from capsnet.training import fit

        if not (self.resume or team.rank):
            runs.require_free(folder)
        train_set, held_out = self._training_data(folder)
        test_set = self._test_data(train_set)  # now, not after hours of training for which there is no test
        torch.manual_seed(self.recipe.seed)
        model = self._build(test_set.image_shape, test_set.num_classes)
        if self.resume and (folder / runs.WEIGHTS).exists():
            if not team.rank:
                self._report_again(folder, test_set, device)
            return
        try:
            rows = fit(
                model,
                train_set,
                self.recipe,
                held_out=held_out,
                out=folder,
                resume=self.resume,
                device=device,
                devices=self.devices,
                nodes=self.nodes,
                tensorboard=self.tensorboard,
                command=as_json(self),
            )
            if team.rank:
                return  # the first process tests, reports and draws
            with runs.locked(folder):
                self._test(folder, model, test_set, rows, device)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; {self._again(folder)}") from None
        except ProcessLostError as lost:
            kept = "the last checkpoint is intact" if (folder / runs.CHECKPOINT).exists() else "no checkpoint yet"
            raise ProcessLostError(f"{lost}; {kept}; {self._again(folder)}") from None

    def _check(self) -> None:
        """What can be known to be wrong before any image is read, which may take an hour."""
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit must be at least 1, not {self.limit}")
        if self.pixel_range is not None:
            check_pixel_range(self.pixel_range)
        sizes(self.model, self.width)
        if size := parse_size(self.size):
            with torch.device("meta"):
                self._build((self.channels or 1, *size), 2)

    def _again(self, folder: Path) -> str:
        devices = f" --devices {self.devices}" if self.devices > 1 else ""
        return f"go on with: {_program()} train --resume{devices} --out {folder}"

    def _report_again(self, folder: Path, test_set: ImageSet | PairSet, device: str) -> None:
        """For a run that was stopped between its last step and its report, or the picture."""
        model = runs.load(folder)
        wanted = [runs.REPORT, *([_picture_name(test_set)] if _has_picture(model) else [])]
        if all((folder / name).exists() for name in wanted):
            raise InputError(f"the run {folder} is complete; there is nothing to resume")
        rows = runs.read_metrics(folder)
        if not rows:
            raise InputError(f"{folder / runs.METRICS} is damaged: it should have a line for each epoch")
        with runs.locked(folder):
            self._test(folder, model, test_set, rows, device)

    def _training_data(self, folder: Path) -> tuple[ImageSet | PairSet, ImageSet | PairSet | None]:
        train_set = self._open("train", parse_size(self.size))
        if isinstance(train_set, ImageSet) and (size := self._larger(train_set.image_shape)):
            height, width = train_set.image_shape[1:]
            tell(
                f"{height}×{width} pixels are too few for {self.model}, so the pictures are scaled to "
                f"{size[0]}×{size[1]} (--size sets another size)"
            )
            train_set = self._open("train", size)
        if self.held_out:
            train_set, held_out = train_set.hold_out(self.held_out)
        elif self.resume and not _tests_on_held_out(folder):  # begun by a version that left validation pictures alone
            held_out = None
        else:
            size = train_set.image_shape[1:] if has_any_size(self.data) else None
            held_out = open_validation(self.data, size=size, channels=self.channels, pixel_range=self._pixel_range)
        return (train_set if self.limit is None else train_set.first(self.limit)), held_out

    def _larger(self, shape: tuple[int, int, int]) -> tuple[int, int] | None:
        """A size for the user's pictures, where they said none and the usual one is too small for the model."""
        own = has_any_size(self.data) and not self.size and not self.recipe.crop
        if not own or min(shape[1:]) >= SMALLEST_SIDE:
            return None
        with contextlib.suppress(InputError), torch.device("meta"):
            self._build(shape, 2)
            return None
        scale = SMALLEST_SIDE / min(shape[1:])
        height, width = (min(LONGEST_SIDE, round(side * scale)) for side in shape[1:])
        return height, width

    def _open(self, split: str, size: tuple[int, int] | None) -> ImageSet | PairSet:
        return open_dataset(self.data, split, size=size, channels=self.channels, pixel_range=self._pixel_range)

    @property
    def _pixel_range(self) -> WantedRange:
        return MEASURED if self.pixel_range is None else self.pixel_range

    def _test_data(self, train_set: ImageSet | PairSet) -> ImageSet | PairSet:
        test_set = self._open("test", train_set.image_shape[1:] if has_any_size(self.data) else None)
        test_set.require(train_set.image_shape, train_set.num_classes)
        return test_set.centre(self.recipe.crop) if self.recipe.crop and isinstance(test_set, ImageSet) else test_set

    def _build(self, in_shape: tuple[int, int, int], num_classes: int) -> Model:
        config: dict[str, Any] = {"in_shape": in_shape, "num_classes": num_classes}
        if self.model in ("capsnet", "detector"):
            config |= {"iterations": self.iterations, "decoder": self.decoder, "leaky": self.leaky}
        if self.model == "capsnet":
            config |= {"stem": self.stem}
        config |= sizes(self.model, self.width)
        return build_model(self.model, config)

    def _test(
        self,
        folder: Path,
        model: Model,
        test_set: ImageSet | PairSet,
        rows: list[dict[str, Any]],
        device: str,
    ) -> None:
        """Test, report, draw and print."""
        tell(f"testing on {len(test_set):,} images …")
        outcome = evaluate(model, test_set, device)
        report = self._report(outcome, rows, device)
        runs.write_json(folder / runs.REPORT, report)
        pairs = outcome.things > outcome.images
        by_digit = f"{outcome.thing_error:.2f} %   ({outcome.thing_errors:,} of {outcome.things:,})"
        lines = [
            ("test error", f"{outcome.error:.2f} %   ({outcome.errors:,} of {outcome.images:,} images)"),
            *([("by digit", by_digit)] if pairs else []),
            ("training", f"{report['training_images_per_second']:,.0f} images/s"),
            ("seconds", f"{report['training_seconds']:,.0f} to train, {outcome.seconds:,.0f} to test"),
            ("run folder", str(folder)),
        ]
        if _has_picture(model):
            name = _picture_name(test_set)
            runs.write_atomically(folder / name, _picture(model, test_set, outcome))
            lines.append(("picture", str(folder / name)))
        count = sum(parameter.numel() for parameter in model.parameters())
        epochs = f"{len(rows)} epoch{'s' if len(rows) > 1 else ''}"
        print(f"\n{self.model} on {printable(self.data)}, {epochs}, {count:,} parameters\n")
        for name, value in lines:
            print(f"  {name:<12}{printable(value)}")

    def _report(self, outcome: Evaluation, rows: list[dict[str, Any]], device: str) -> dict[str, Any]:
        trained = sum(row["seconds"] for row in rows)
        return {
            "test_error": round(outcome.error, 4),
            "test_interval": [round(bound, 4) for bound in outcome.interval],
            "test_errors": outcome.errors,
            "test_images": outcome.images,
            **({"test_digit_error": round(outcome.thing_error, 4)} if outcome.things > outcome.images else {}),
            "epochs": len(rows),
            "training_seconds": round(trained, 1),
            "training_images_per_second": round(
                sum(row["images_per_second"] * row["seconds"] for row in rows) / trained, 1
            ),
            "test_seconds": round(outcome.seconds, 1),
            "seed": self.recipe.seed,
            **runs.environment(torch.device(device)),
        }


def as_json(command: Train) -> dict[str, Any]:
    """The flags of a run, as recorded in its config."""
    flags = dataclasses.asdict(command)
    for name in ("out", "resume", "devices", "nodes"):
        del flags[name]
    return flags


def _tests_on_held_out(folder: Path) -> bool:
    """Whether a run has a held-out error for its epochs; one without any epoch yet will have."""
    rows = runs.read_metrics(folder) if (folder / runs.METRICS).exists() else []
    return not rows or "held_out_error" in rows[0]


def _short_name(data: str) -> str:
    """What a run's folder is called after; of a table with named columns the table."""
    named = NAMED_COLUMNS.fullmatch(data)
    return Path(os.path.realpath((named["table"] if named else data).replace(":", "/"))).stem


def _claimed_folder(name: str) -> Path:
    """A new one, made at once: others may look for one at the same time."""
    runs.make_folder(Path("runs"))
    for number in itertools.count(1):
        folder = Path("runs") / f"{name}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None
        return folder
    raise AssertionError


def _has_picture(model: Model) -> TypeGuard[CapsNet]:
    return isinstance(model, CapsNet) and model.decoder is not None


def _picture_name(test_set: ImageSet | PairSet) -> str:
    return "overlap.png" if isinstance(test_set, PairSet) else "reconstructions.png"


def _picture(model: CapsNet, test_set: ImageSet | PairSet, outcome: Evaluation) -> bytes:
    """What the model makes of a few test images."""
    from capsnet.insight import gallery, overlap, reconstructions
    from capsnet.insight.style import as_bytes

    if isinstance(test_set, PairSet):
        figure = overlap.draw_overlap(gallery.overlaps(model, test_set))
        return as_bytes(figure, "png")
    chosen = reconstructions.choose_examples(test_set.labels, outcome.predictions, test_set.num_classes)
    figure = reconstructions.draw_reconstructions(reconstructions.reconstruct(model, test_set, chosen))
    return as_bytes(figure, "png")


def _program() -> str:
    """How the user called us: by name, or by a path if the name alone would not be found."""
    return sys.argv[0] if os.sep in sys.argv[0] and not sys.argv[0].startswith(os.sep) else "capsnet"

"""The commands. One dataclass for each is its flags and its help; its `run` says what it does, step by step."""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import torch
import tyro

from capsnet import runs
from capsnet.allocator import tune_allocator
from capsnet.data import ImageSet, open_dataset
from capsnet.data.pictures import Framing, read_picture
from capsnet.devices import pick_device
from capsnet.errors import InputError
from capsnet.evaluation import Evaluation, evaluate, probabilities
from capsnet.models import CapsNet, Model, build_model
from capsnet.recipe import Recipe

PICTURE = "reconstructions.png"


@dataclass(frozen=True)
class Train:
    """Train a model, test it once at the end, and keep everything in a run folder."""

    data: str = "mnist"
    """Data set: mnist."""
    model: Literal["capsnet", "cnn"] = "capsnet"
    """CapsNet, or the CNN that the paper compares it with."""
    iterations: int = 3
    """Routing iterations."""
    decoder: bool = True
    """Reconstruct the image from the capsule, as a regulariser."""
    leaky: bool = False
    """Leaky routing: one more softmax column for "none of the above"."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    limit: int | None = None
    """Train on the first so many images only, for a quick look."""
    held_out: int = 0
    """Keep so many training images out, and test on them after each epoch."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    out: Path | None = None
    """The run folder; by default runs/DATA-MODEL-NUMBER."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint, with the settings that it has."""
    tensorboard: bool = False
    """Write TensorBoard logs into the run folder too."""

    def run(self) -> None:
        from capsnet.training import fit

        folder = self.out or _free_folder(f"{self.data}-{self.model}")
        train_set, held_out = self._training_data()
        device = str(pick_device(self.device))
        torch.manual_seed(self.recipe.seed)
        model = self._build(train_set)
        if self.resume and (folder / runs.WEIGHTS).exists():
            self._report_again(folder, device)
            return
        started = time.perf_counter()
        try:
            rows = fit(
                model,
                train_set,
                self.recipe,
                held_out=held_out,
                out=folder,
                resume=self.resume,
                device=device,
                tensorboard=self.tensorboard,
                command=_as_json(self),
            )
        except KeyboardInterrupt as stop:
            again = f"{_program()} train --resume --out {folder}"
            raise KeyboardInterrupt(f"{str(stop) or 'interrupted'}; go on with: {again}") from None
        self._test(folder, model, rows, time.perf_counter() - started, device)

    def _report_again(self, folder: Path, device: str) -> None:
        """For a run that was stopped between its last step and its report."""
        if (folder / runs.REPORT).exists():
            raise InputError(f"the run {folder} is complete; there is nothing to resume")
        rows = runs.read_metrics(folder)
        self._test(folder, runs.load(folder), rows, sum(row["seconds"] for row in rows), device)

    def _test(self, folder: Path, model: Model, rows: list[dict[str, Any]], seconds: float, device: str) -> None:
        test_set = open_dataset(self.data, "test")
        print(f"testing on {len(test_set):,} images …", file=sys.stderr)
        outcome = evaluate(model, test_set, device)
        self._report(folder, model, rows, outcome, seconds, device)

    def _training_data(self) -> tuple[ImageSet, ImageSet | None]:
        train_set = open_dataset(self.data, "train")
        if self.limit is not None:
            if self.limit < 1:
                raise InputError(f"--limit must be at least 1, not {self.limit}")
            train_set = train_set.select(slice(self.limit))
        return train_set.hold_out(self.held_out) if self.held_out else (train_set, None)

    def _build(self, train_set: ImageSet) -> Model:
        config: dict[str, Any] = {"in_shape": train_set.image_shape, "num_classes": train_set.num_classes}
        if self.model == "capsnet":
            config |= {"iterations": self.iterations, "decoder": self.decoder, "leaky": self.leaky}
        return build_model(self.model, config)

    def _report(
        self, folder: Path, model: Model, rows: list[dict[str, Any]], outcome: Evaluation, seconds: float, device: str
    ) -> None:
        trained = sum(row["seconds"] for row in rows)
        speed = round(sum(row["images_per_second"] * row["seconds"] for row in rows) / trained, 1)
        report = {
            "test_error": round(outcome.error, 4),
            "test_errors": outcome.errors,
            "test_images": outcome.images,
            "epochs": len(rows),
            "training_seconds": round(trained, 1),
            "training_images_per_second": speed,
            "test_seconds": round(outcome.seconds, 1),
            "seed": self.recipe.seed,
            **runs.environment(torch.device(device)),
        }
        runs.write_json(folder / runs.REPORT, report)
        lines = [
            ("test error", f"{outcome.error:.2f} %   ({outcome.errors:,} of {outcome.images:,} images)"),
            ("training", f"{speed:,.0f} images/s"),
            ("seconds", f"{seconds:,.0f} to train, {outcome.seconds:,.0f} to test"),
            ("run folder", str(folder)),
        ]
        if isinstance(model, CapsNet) and model.decoder is not None:
            _draw(model, open_dataset(self.data, "test"), outcome, folder / PICTURE)
            lines.append(("picture", str(folder / PICTURE)))
        count = sum(parameter.numel() for parameter in model.parameters())
        epochs = f"{len(rows)} epoch{'s' if len(rows) > 1 else ''}"
        print(f"\n{self.model} on {self.data}, {epochs}, {count:,} parameters\n")
        for name, value in lines:
            print(f"  {name:<12}{value}")


@dataclass(frozen=True)
class Evaluate:
    """Test a trained model on the test images of a data set."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    data: str = "mnist"
    """Data set: mnist."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        model = runs.load(self.run_folder)
        outcome = evaluate(model, open_dataset(self.data, "test"), pick_device(self.device))
        speed = outcome.images / outcome.seconds
        if self.json:
            _print_json(
                run=str(self.run_folder),
                data=self.data,
                images=outcome.images,
                errors=outcome.errors,
                error=round(outcome.error, 4),
                seconds=round(outcome.seconds, 2),
                images_per_second=round(speed, 1),
            )
        else:
            print(f"test error {outcome.error:.2f} % ({outcome.errors:,} of {outcome.images:,}), {speed:,.0f} images/s")


@dataclass(frozen=True)
class Predict:
    """Say what is on pictures (PNG, JPEG, …) of any size."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Picture files."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        if not self.pictures:
            raise InputError("name at least one picture: capsnet predict RUN IMAGE...")
        model = runs.load(self.run_folder)
        config = runs.read_config(self.run_folder)
        shape, count = model.config["in_shape"], model.config["num_classes"]
        names = config.get("classes", [str(k) for k in range(count)])
        if not isinstance(names, list) or len(names) != count:
            raise InputError(f"{self.run_folder / runs.CONFIG} is damaged: it should name {count} classes")
        framing = _framing(config, self.run_folder)
        images = torch.stack([read_picture(path, shape, framing) for path in self.pictures])
        scores = probabilities(model, images, pick_device(self.device))
        answers = [
            {
                "picture": str(path),
                "class": names[int(row.argmax())],
                "probability": round(float(row.max()), 4),
                "probabilities": {name: round(float(p), 4) for name, p in zip(names, row, strict=True)},
            }
            for path, row in zip(self.pictures, scores, strict=True)
        ]
        if self.json:
            _print_json(run=str(self.run_folder), predictions=answers)
        else:
            width = max(len(answer["picture"]) for answer in answers)
            for answer in answers:
                print(f"{answer['picture']:<{width}}  {answer['class']}  {answer['probability']:.3f}")


@dataclass(frozen=True)
class Bench:
    """Measure speed and memory beside a textbook implementation in the same run."""

    batch_sizes: tuple[int, ...] = (32, 128, 256)
    """Images in a step."""
    rounds: int = 5
    """Turns that each side gets; more give steadier medians."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        from capsnet.benchmark.report import benchmark, format_tables

        if self.rounds < 1 or not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError("rounds and batch sizes must be at least 1")
        outcome = benchmark(self.batch_sizes, self.rounds, pick_device(self.device))
        print(json.dumps(outcome) if self.json else format_tables(outcome))


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: list[str] | None = None) -> int:
    """The `capsnet` command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    tune_allocator()
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        _parse(arguments).run()
        sys.stdout.flush()
    except InputError as error:
        print(f"capsnet: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\ncapsnet: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `capsnet … | head`
        _drop_output()
        return 0
    except OSError as error:  # a full disk under the output, a path too long, a folder that may not be read
        _drop_output()
        print(f"capsnet: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        return 2
    return 0


def _drop_output() -> None:
    """What is still to be written has nowhere to go; Python would complain of it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("terminated")


def _parse(arguments: list[str]) -> Train | Evaluate | Predict | Bench:
    command = _parse_with(Command, arguments, prog="capsnet", description="Capsule networks that people can use.")
    if isinstance(command, Train) and command.resume:
        return _parse_resumed(command, arguments)
    return command


def _parse_with(kind: Any, arguments: list[str], **options: Any) -> Any:
    """tyro's answer to wrong flags is a box of several lines; ours is one line, like for any other wrong input."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, args=arguments, config=(tyro.conf.FlagCreatePairsOff,), **options)
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise InputError(f"{_gist(told.getvalue())} (capsnet --help shows what there is)") from None


def _gist(box: str) -> str:
    """The first paragraph in tyro's box, and its first suggestion if there is one."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)  # colours, on a terminal
    title = 1 if box.startswith("╭") else 2  # lines; without UTF-8 there is no border, but a rule below the title
    lines = [line.strip("│ ") for line in box.splitlines()[title:]]
    rules = [number for number, line in enumerate(lines) if not line.strip("─-╰╯")] or [len(lines)]
    gist = lines[: rules[0]]
    suggested = lines[rules[0] + 1 : rules[1]][:2] if len(rules) > 1 else []
    if suggested and suggested[0].startswith(("Perhaps you meant", "Available")):
        gist[-1] += "."
        gist += suggested
    return " ".join(gist)


def _parse_resumed(command: Train, arguments: list[str]) -> Train:
    """A resumed run keeps its settings: they come from its config, and a flag that says otherwise is refused."""
    if command.out is None:
        raise InputError("--resume needs the run to go on with: --out RUN")
    saved = runs.read_config(command.out).get("command")
    if not isinstance(saved, dict) or not saved:
        raise InputError(f"{command.out} was not started by `capsnet train`; resume it where it was started")
    try:
        settings = Train(**{**saved, "recipe": Recipe(**saved["recipe"])})
    except (TypeError, KeyError) as error:
        raise InputError(f"{command.out / runs.CONFIG} is damaged or of another version: {error}") from None
    # As defaults, so that the flags given now override what was saved and can be seen to differ.
    again = _parse_with(Train, arguments[1:], prog="capsnet train", default=settings)
    for name, value in _as_json(again).items():
        if name not in ("out", "resume", "device") and value != _as_json(settings)[name]:
            raise InputError(f"a resumed run keeps its settings, and {name} would differ; leave that flag out")
    return again


def _as_json(command: Train) -> dict[str, Any]:
    """The flags of a run, as recorded in its config."""
    flags = dataclasses.asdict(command)
    del flags["out"], flags["resume"]
    return flags


def _framing(config: dict[str, Any], folder: Path) -> Framing:
    try:
        recorded = config.get("framing", {})
        return Framing(**{**recorded, "centre": tuple(recorded.get("centre", (0.5, 0.5)))})
    except (TypeError, AttributeError, InputError):
        raise InputError(f"{folder / runs.CONFIG} is damaged: its section 'framing' is not ours") from None


def _free_folder(name: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def _draw(model: CapsNet, image_set: ImageSet, outcome: Evaluation, path: Path) -> None:
    from capsnet.insight.reconstructions import choose_examples, draw_reconstructions, reconstruct

    chosen = choose_examples(image_set.labels, outcome.predictions, image_set.num_classes)
    buffer = io.BytesIO()
    draw_reconstructions(reconstruct(model, image_set, chosen)).savefig(buffer, format="png")
    runs.write_atomically(path, buffer.getvalue())


def _print_json(**content: Any) -> None:
    print(json.dumps(content))


def _program() -> str:
    """How the user called us: by name, or by a path if the name alone would not be found."""
    return sys.argv[0] if os.sep in sys.argv[0] and not sys.argv[0].startswith(os.sep) else "capsnet"

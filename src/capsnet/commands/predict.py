"""`capsnet predict`"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from capsnet import runs
from capsnet.data.pictures import picture_endings, quiet_pillow, read_picture
from capsnet.devices import pick_device
from capsnet.errors import InputError
from capsnet.evaluation import detect
from capsnet.models import CapsuleDetector, CNNDetector, Detector
from capsnet.prediction import BATCH, Prediction, find_pictures, predict
from capsnet.runs import Run
from capsnet.streams import tell
from capsnet.text import printable


@dataclass(frozen=True)
class Predict:
    """Say what is on pictures (PNG, JPEG, …) of any size. Ends with status 1 if one in a folder could not be read."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    pictures: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER", help_behavior_hint="(required)")
    ]
    """Picture files, and folders to search for pictures, with the folders in them."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    json: bool = False
    """Print one JSON object; where a folder is searched, one for each picture, a line each, as they come."""

    def run(self) -> int:
        if not self.pictures:
            raise InputError("name at least one picture or folder: capsnet predict RUN IMAGE...")
        run = runs.open_run(self.run_folder)
        if isinstance(run.model, CapsuleDetector | CNNDetector):
            self._detect(run.model, run, list(find_pictures(self.pictures)))
            return 0
        predictions = predict(run, self.pictures, pick_device(self.device))
        # `closing`: the threads that read ahead are stopped now, whatever happens, not when Python gets round to it.
        with quiet_pillow(), contextlib.closing(predictions):
            if any(map(os.path.isdir, self.pictures)):
                return self._stream(run, predictions)
            answers = [_readable(prediction).as_json(run.class_names) for prediction in predictions]
        if self.json:
            print(json.dumps({"run": str(self.run_folder), "predictions": answers}))
        else:
            width = max(len(answer["picture"]) for answer in answers)
            for answer in answers:
                print(printable(_line(answer, width)))
        return 0

    def _detect(self, model: Detector, run: Run, pictures: list[Path]) -> None:
        """[likelihood, orientation, size] of each picture, and where the thing is."""
        if not pictures:
            raise InputError(f"there are no pictures in {', '.join(map(str, self.pictures))}")
        images = torch.stack([read_picture(path, model.config["in_shape"], run.framing) for path in pictures])
        found = detect(model, images, pick_device(self.device))
        answers = [
            {
                "picture": str(path),
                "likelihood": round(float(likelihood), 4),
                "orientation": round(pose[2], 2),
                "size": round(pose[3], 4),
                "position": {"down": round(pose[0], 4), "right": round(pose[1], 4)},
                "shear": round(pose[4], 4),
            }
            for path, likelihood, pose in zip(pictures, found.likelihoods, found.poses.tolist(), strict=True)
        ]
        if self.json:
            print(json.dumps({"run": str(self.run_folder), "detections": answers}))
            return
        width = max(len(answer["picture"]) for answer in answers)
        for answer in answers:
            told = f"[{answer['likelihood']:.2f}, {answer['orientation']:+.0f}°, {answer['size']:.2f}]"
            print(printable(f"{answer['picture']:<{width}}  {told}"))

    def _stream(self, run: Run, predictions: Iterator[Prediction]) -> int:
        """Print each answer as it comes; returns the exit status."""
        count = unreadable = 0
        progress = _Progress()
        try:
            for prediction in predictions:
                answer = prediction.as_json(run.class_names)
                print(json.dumps(answer) if self.json else printable(_line(answer)))
                count += 1
                unreadable += prediction.probabilities is None
                if count % BATCH == 0:
                    sys.stdout.flush()  # a reader gets what there is, and one who has gone is noticed
                    progress.show(count)
            sys.stdout.flush()
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"{str(stop) or 'interrupted'} after {count:,} pictures") from None
        finally:
            progress.clear()
        if not count:
            places = ", ".join(map(str, self.pictures))
            endings = " ".join(sorted(picture_endings()))
            raise InputError(f"there are no pictures in {places}; they are files with {endings}")
        if unreadable:
            tell(f"{unreadable:,} of {count:,} pictures could not be read")
        return 1 if unreadable else 0


def _readable(prediction: Prediction) -> Prediction:
    """Whoever names a picture wants an answer for it: none is given unless all can be read."""
    if prediction.probabilities is None:
        raise InputError(prediction.error)
    return prediction


def _line(answer: dict[str, Any], width: int = 0) -> str:
    if "error" in answer:
        return f"{answer['picture']:<{width}}  error: {answer['error']}"
    return f"{answer['picture']:<{width}}  {answer['class']}  {answer['probability']:.3f}"


class _Progress:
    """Pictures so far, and how fast: on a terminal, and only where it does not run into the answers."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty() and not sys.stdout.isatty()
        self.started = self.last = time.perf_counter()

    def show(self, count: int) -> None:
        now = time.perf_counter()
        if self.shown and now > self.last + 0.2:
            speed = count / (now - self.started)
            tell(f"{count:,} pictures, {speed:,.0f}/s ", end="\r")
            self.last = now

    def clear(self) -> None:
        if self.shown and self.last > self.started:
            tell("", end="\r\x1b[K")

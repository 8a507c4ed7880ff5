"""`capsnet export`"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from jaxtyping import UInt8
from torch import Tensor

from capsnet import runs
from capsnet.commands import data_of, optional
from capsnet.data import AVAILABLE, ImageSet, PairSet
from capsnet.errors import InputError
from capsnet.evaluation import missed_things
from capsnet.runs import Run
from capsnet.streams import tell
from capsnet.text import printable

CHECKED = 64
"""Images on which the file is compared with the model."""
CALIBRATION = 512
"""Training images on which the ranges of 8-bit numbers are measured."""
TESTED = 10_000
"""Test images, at most, on which the two files are compared."""


@dataclass(frozen=True)
class Export:
    """Write a trained model as an ONNX file, for programs in any language; bytes in, probabilities out."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.onnx")]
    """The file to write."""
    decoder: bool = False
    """Answer with a reconstruction of the image, too."""
    int8: bool = False
    """Write FILE-int8.onnx beside it, with 8-bit numbers, and test both."""
    data: Annotated[str | None, optional("SET", f"Images to check with; by default the run's set. {AVAILABLE}.")] = None
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        from capsnet import export

        if self.file.suffix != ".onnx":
            raise InputError(f"the name of an ONNX file ends with .onnx, but {self.file} does not")
        if not self.file.parent.is_dir():
            raise InputError(f"there is no folder {self.file.parent} to write {self.file.name} into")
        export.require(*export.LIBRARIES)
        folder = runs.locate(self.run_folder)
        run = runs.open_run(folder)
        images, calibration = self._test_set(folder, run), self._calibration_images(folder, run)
        content = export.export_onnx(run, decoder=self.decoder)
        sample = images.batch(0, CHECKED).images if images else _noise(run.model.config["in_shape"])
        difference = export.greatest_difference(run.model, content, sample, decoder=self.decoder)
        if not difference <= export.TOLERANCE:
            raise InputError(
                f"the file would answer otherwise than the model: the greatest difference is {difference:.1e}, "
                f"above {export.TOLERANCE:.0e}; nothing was written"
            )
        variants = {self.file: content}
        if calibration is not None:
            variants[self.file.with_stem(f"{self.file.stem}-int8")] = export.quantise(content, calibration)
        runs.write_together({_followed(file): variant for file, variant in variants.items()})
        files = [
            {"file": str(file), "bytes": len(variant), **(_test(variant, images) if self.int8 else {})}
            for file, variant in variants.items()
        ]
        checked_on = f"{len(sample)} test images" if images else f"{len(sample)} images of noise"
        added = _share(files[1]) - _share(files[0]) if self.int8 else None
        if self.json:
            report = {"run": str(self.run_folder), "opset": export.OPSET, "difference": difference}
            report |= {"checked_on": checked_on, "files": files}
            print(json.dumps(report if added is None else {**report, "added_error": round(added, 4)}))
            return
        print(f"greatest difference from the model {difference:.1e}, on {checked_on}; opset {export.OPSET}")
        for entry in files:
            print(printable(_line(entry)))
        if added is not None:
            print(f"8-bit numbers change the error by {added:+.2f} points")

    def _test_set(self, folder: Path, run: Run) -> ImageSet | PairSet | None:
        """Test images, if they can be had; where the user wants them, they must be."""
        try:
            images = runs.open_split(folder, data_of(run, self.data), "test")
            images.require(run.model.config["in_shape"], run.model.config["num_classes"])
        except InputError as error:
            if self.data or self.int8:
                raise
            tell(f"no test images, so noise is used to check the file: {error}")
            return None
        return images

    def _calibration_images(self, folder: Path, run: Run) -> UInt8[Tensor, "count channels height width"] | None:
        return (
            runs.open_split(folder, data_of(run, self.data), "train").batch(0, CALIBRATION).images
            if self.int8
            else None
        )


def _followed(file: Path) -> Path:
    """Over a link what it leads to is written, as other programs do."""
    return Path(os.path.realpath(file)) if file.is_symlink() else file


def _noise(shape: tuple[int, int, int]) -> UInt8[Tensor, "count channels height width"]:
    return torch.randint(256, (CHECKED, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _test(content: bytes, images: ImageSet | PairSet | None) -> dict[str, Any]:
    """How often the file is wrong, and how quick it is."""
    from capsnet import export

    assert images is not None
    tested = images.batch(0, TESTED)
    scores, speed = export.answers_of(export.open_session(content), tested.images)
    errors = int(missed_things(scores, tested.labels).any(dim=1).sum())
    return {"images": len(tested.images), "errors": errors, "images_per_second": round(speed, 1)}


def _line(entry: dict[str, Any]) -> str:
    line = f"{entry['file']}  {entry['bytes']:,} bytes"
    if "errors" not in entry:
        return line
    found = f"{entry['errors']:,} of {entry['images']:,} test images"
    return f"{line}  error {_share(entry):.2f} % ({found})  {entry['images_per_second']:,.0f} images/s"


def _share(entry: dict[str, Any]) -> float:
    """The error in percent."""
    return 100 * entry["errors"] / entry["images"]

"""`capsnet figures`"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from capsnet import runs
from capsnet.commands import data_of, optional
from capsnet.data import AVAILABLE
from capsnet.errors import InputError
from capsnet.models import CapsNet
from capsnet.streams import tell
from capsnet.text import printable

if TYPE_CHECKING:
    from capsnet.insight.gallery import Draw


@dataclass(frozen=True)
class Figures:
    """Draw what a trained network knows, and how its training went: PNG and SVG, light and dark."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder; of one that is not complete, only the health of its training is drawn."""
    out: Annotated[Path | None, optional("FOLDER")] = None
    """Where to put the figures; by default RUN/figures, and of a run on the hub, figures."""
    data: Annotated[str | None, optional("SET", f"Test images; by default those of the run's set. {AVAILABLE}.")] = None
    image: Annotated[int | None, optional("INT")] = None
    """The test image that is perturbed, routed and turned; by default the first that is recognised."""
    beside: Annotated[Path | None, optional("RUN")] = None
    """The run of another model, a CNN say, to compare with when images are turned, scaled, moved, …: takes minutes."""

    def run(self) -> None:
        from capsnet.insight.style import as_bytes

        run_folder = runs.locate(self.run_folder)
        folder = self.out or (run_folder / "figures" if run_folder == self.run_folder else Path("figures"))
        names = []
        for name, draw in self._figures(run_folder):
            runs.make_folder(folder)
            for dark, suffix in ((False, ""), (True, "-dark")):
                figure = draw(dark)
                for kind in ("png", "svg"):
                    runs.write_atomically(folder / f"{name}{suffix}.{kind}", as_bytes(figure, kind))
            print(printable(folder / f"{name}.png"), flush=True)
            names.append(name)
        if not names:
            raise InputError(f"nothing to draw: {self.run_folder} has no {runs.METRICS}, and its model no capsules")
        tell("each as PNG and SVG, light and dark (NAME-dark)")

    def _figures(self, folder: Path) -> "Iterator[tuple[str, Draw]]":
        from capsnet.insight.gallery import figures_of
        from capsnet.insight.health import draw_health, read_history

        runs.read_config(folder)
        complete = (folder / runs.WEIGHTS).exists()
        run = runs.open_run(folder) if complete else None
        if run and isinstance(run.model, CapsNet):
            beside = runs.load(self.beside) if self.beside else None
            test_set = runs.open_split(folder, data_of(run, self.data))
            yield from figures_of(run.model, test_set, self.image, beside)
        if (folder / runs.METRICS).exists():
            yield "health", partial(draw_health, read_history(folder))
            if not complete:
                tell(f"{folder} is not complete: only its health is drawn")

"""`capsnet push`"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from capsnet import runs


@dataclass(frozen=True)
class Push:
    """Put a finished run on the Hugging Face hub, with a page that says what it is and how good."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder. A README.md in it becomes the page; without one, it is made from the run's report."""
    place: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="hub:OWNER/NAME")]
    """Where to; with @BRANCH, onto that branch."""
    private: bool = False
    """Make it a model that only you can see, if it is not there yet."""

    def run(self) -> None:
        print(runs.push(self.run_folder, self.place, private=self.private))

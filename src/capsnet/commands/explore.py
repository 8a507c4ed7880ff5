"""`capsnet explore`"""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from capsnet import runs
from capsnet.commands import optional
from capsnet.errors import InputError


@dataclass(frozen=True)
class Explore:
    """See in the browser what a capsule knows: draw, move sliders, overlap, turn. Nothing leaves this computer."""

    run_folder: Annotated[Path | None, tyro.conf.Positional, optional("[RUN]")] = None
    """The run to look at; by default small models that come with the package."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 lets other computers in."""
    port: int = 7860
    """The port; 0 for any that is free."""
    browser: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = True
    """Do not open the page in the browser."""

    def run(self) -> None:
        if importlib.util.find_spec("gradio") is None:
            raise InputError("the explorer needs Gradio; install it with: pip install 'capsnet[explorer]'")
        from capsnet.explorer.answers import open_explorer
        from capsnet.explorer.server import serve

        folder = runs.locate(self.run_folder) if self.run_folder else None
        serve(open_explorer(folder), self.host, self.port, self.browser and _has_screen())


def _has_screen() -> bool:
    """Whether a browser has somewhere to open; without a screen Python would start one in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

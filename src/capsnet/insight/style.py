"""How all figures look: light or dark, and legible when printed in grey."""

import contextlib
import io
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from torch import Tensor

DPI = 150


@dataclass(frozen=True)
class Colours:
    """`first` and `second` tell two things apart, also by lightness; `right` and `wrong` never without a word."""

    paper: str
    ink: str
    faint: str
    right: str
    wrong: str
    first: str
    second: str


LIGHT = Colours("#ffffff", "#222222", "#9a9a9a", "#1b7f4d", "#c2410c", "#0b5cad", "#e08a1e")
DARK = Colours("#161a1d", "#e8e8e8", "#777f86", "#57c98d", "#ff8f5a", "#5aa9f0", "#ffc46b")
PAIR = ((1.0, 0.25, 0.15), (0.25, 0.85, 1.0))
"""Two colours on black for two things laid over each other, red, green, blue; where both are, they add up to white."""


@contextlib.contextmanager
def style(dark: bool) -> Iterator[Colours]:
    """Figures made within look so."""
    colours = DARK if dark else LIGHT
    settings: dict[Any, Any] = {
        **{f"{part}.facecolor": colours.paper for part in ("figure", "axes", "legend")},
        **{f"{part}.color": colours.ink for part in ("text", "xtick", "ytick")},
        **{f"axes.{part}": colours.ink for part in ("edgecolor", "labelcolor", "titlecolor")},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.labelsize": 9},
        **{"grid.color": colours.faint, "grid.linewidth": 0.4, "legend.frameon": False, "legend.fontsize": 8},
        **{"xtick.labelsize": 8, "ytick.labelsize": 8, "figure.dpi": DPI, "image.interpolation": "nearest"},
        "text.parse_math": False,  # names of classes are no formulas
    }
    with rc_context(settings):
        yield colours


def fit_text(text: str, points: float | int, size: int) -> str:
    """As much of a text as is at most so many points wide in letters of this size; … stands for what is left out."""
    text = " ".join(text.split())
    if text_width(text, size) <= points:
        return text
    ends = range(min(len(text), round(points)))  # no letter is narrower than a point
    kept = bisect_right(ends, points, key=lambda end: text_width(f"{text[:end].rstrip()}…", size)) - 1
    return f"{text[: max(kept, 0)].rstrip()}…"


def text_width(text: str, size: int) -> float:
    """Points that a line takes in letters of this size."""
    return text_to_path.get_text_width_height_descent(" ".join(text.split()), FontProperties(size=size), False)[0]


def fit_lines(first: str, second: str, points: float | int, size: int) -> str:
    """Two texts beside each other if they fit into the width, else one above the other, each as `fit_text` has it."""
    joined = f"{' '.join(first.split())} {second}"
    if text_width(joined, size) <= points:
        return joined
    return "\n".join(fit_text(part, points, size) for part in (first, second))


def as_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as the content of a file, kind "png" or "svg". The same figure gives the same bytes."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "capsnet"}):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def to_rgb(images: Num[Tensor, "*any channels height width"]) -> Float[Tensor, "*any height width 3"]:
    """Images from 0 to 1 as red, green and blue to show; unless there are three channels, the mean of them as grey."""
    if images.shape[-3] != 3:
        images = images.mean(dim=-3, keepdim=True).expand(*images.shape[:-3], 3, *images.shape[-2:])
    return images.movedim(-3, -1).clamp(0, 1).float()


def mosaic(
    images: Float[Tensor, "rows columns channels height width"], gap: int = 2
) -> Float[Tensor, "all_height all_width 4"]:
    """All images in one, `gap` transparent pixels apart; one picture is drawn much quicker than hundreds."""
    rows, columns, _, height, width = images.shape
    tiles = torch.zeros(rows, columns, height + gap, width + gap, 4)
    tiles[:, :, :height, :width, :3] = to_rgb(images)
    tiles[:, :, :height, :width, 3] = 1
    return tiles.permute(0, 2, 1, 3, 4).reshape(rows * (height + gap), columns * (width + gap), 4)[:-gap, :-gap]

"""The parts of a page that Gradio has none of: a pad to draw on, a strip of images to pick from, capsule sliders."""

from pathlib import Path
from typing import Any

import gradio as gr

from capsnet.errors import InputError
from capsnet.explorer.pictures import MAX_BYTES, check_size

REACH = 0.5
"""A slider moves its dimension by up to this much either way, twice as far as the paper's figure."""


def pad(value: str) -> gr.HTML:
    """Its value is what is on it, as a data URL; empty when nothing is."""
    return gr.HTML(value, html_template=_read("pad.html"), js_on_load=_read("pad.js"), most=MAX_BYTES)


def strip(value: dict[str, Any]) -> gr.HTML:
    """The value is {turn, items}, an item {number, name, source}; "others" selects the number -1."""
    return gr.HTML(value, html_template=_read("strip.html"), js_on_load=_read("strip.js"))


def sliders(dim: int) -> gr.HTML:
    """The value is {number, capsule, offsets}, or None when there is no capsule."""
    rows = "".join(
        f'<label><span>{k + 1}</span><input type="range" min="{-REACH}" max="{REACH}" step="0.01" value="0" '
        f'aria-label="dimension {k + 1}"></label>'
        for k in range(dim)
    )
    template = f'<div class="sliders">{rows}</div><div class="tools"><button type="button">Back to zero</button></div>'
    return gr.HTML(None, html_template=template, js_on_load=_read("sliders.js"))


def opened(data: object) -> str:
    """The data URL that the pad's "upload" event brings. Raises `InputError` if the picture was too large to bring."""
    data = data if isinstance(data, dict) else {}
    if isinstance(size := data.get("size"), int):
        check_size(size)
    return data.get("picture", "")


def picked(data: object) -> int:
    """The number that the strip's "select" event brings; 0 if it brings none."""
    number = data.get("number") if isinstance(data, dict) else 0
    return number if isinstance(number, int) else 0


def turn_of(value: object) -> int:
    """How often a strip has shown others."""
    turn = value.get("turn") if isinstance(value, dict) else 0
    return turn if isinstance(turn, int) else 0


def moved(value: object) -> tuple[Any, list[Any]]:
    """The number of a class and its moved capsule, as the sliders have them. Raises `InputError` if they have none."""
    state = value if isinstance(value, dict) else {}
    try:
        moves = zip(state["capsule"], state["offsets"], strict=True)
        return state["number"], [x + offset for x, offset in moves]
    except (TypeError, KeyError, ValueError, OverflowError):
        raise InputError("there is no capsule to move yet") from None


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")

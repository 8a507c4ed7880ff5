"""What the settings of a model may be: one rule for each name, whichever model has it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from capsnet.checks import flag, number, shown, whole
from capsnet.errors import InputError

MAX_SIDE = 10_000
"""Pixels along a side of an image, or its channels: no more was ever trained on."""
MAX_SIZE = 1_000_000
"""Of a layer: its channels, capsules, hidden units, ..., and of the classes."""
MAX_LAYERS = 100
MAX_ITERATIONS = 100
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 10_000.0
MAX_WIDTH = 16.0
MAX_POSE_WEIGHT = 1000.0


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, with tuples for lists. Raises `InputError` for a value that is of no use."""
    return {name: RULES[name](name, value) for name, value in settings.items()}


def _sequence(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} must be a list of sizes, not {shown(value)}")
    if len(value) > MAX_LAYERS:
        raise InputError(f"{name} must be at most {MAX_LAYERS} layers, not {len(value):,}")
    return tuple(value)


def _sizes(name: str, value: object) -> tuple[int, ...]:
    return tuple(_size(f"a size in {name}", size) for size in _sequence(name, value))


def _channels(name: str, value: object) -> tuple[int, ...]:
    if not value:
        raise InputError(f"{name} must be at least one layer, not {shown(value)}")
    return _sizes(name, value)


def _layers(name: str, value: object) -> tuple[tuple[int, ...], ...]:
    return tuple(_sizes(name, sizes) for sizes in _sequence(name, value))


def _shape(name: str, value: object) -> tuple[int, ...]:
    shape = _sequence(name, value)
    if len(shape) != 3:
        raise InputError(f"{name} is (channels, height, width), not {shown(value)}")
    return tuple(whole(f"a size in {name}", size, 1, MAX_SIDE) for size in shape)


def _width(name: str, value: object) -> int | float:
    width = number("the width of a network", value)
    if not 0 < width <= MAX_WIDTH:
        raise InputError(f"the width of a network is above 0 and at most {MAX_WIDTH:g}, not {shown(value)}")
    return width


_size = partial(whole, low=1, high=MAX_SIZE)

RULES: dict[str, Callable[[str, object], Any]] = {
    "in_shape": _shape,
    **dict.fromkeys(("num_classes", "conv_channels", "primary_types", "primary_dim", "capsule_dim"), _size),
    **dict.fromkeys(("kernel_size", "dense"), _size),
    "decoder_hidden": _sizes,
    "channels": _channels,
    **dict.fromkeys(("decoder", "leaky", "padding", "batch_norm"), flag),
    "hidden_capsules": _layers,
    "iterations": partial(whole, low=1, high=MAX_ITERATIONS),
    "temperature": partial(number, low=MIN_TEMPERATURE, high=MAX_TEMPERATURE),
    "width": _width,
    "pose_weight": partial(number, low=0, high=MAX_POSE_WEIGHT),
}

"""What a setting may be: whoever reads one from a file or a flag looks at it here, before it is used."""

import math
import reprlib

from capsnet.errors import InputError


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number from `low` to `high`. Raises `InputError` for anything else, True and 2.0 included."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be a whole number, not {shown(value)}")
    if not low <= value <= high:
        raise InputError(f"{name} must be {low:,} to {high:,}, not {shown(value)}")
    return value


def number(name: str, value: object, low: int | float = -math.inf, high: int | float = math.inf) -> int | float:
    """A finite number from `low` to `high`. Raises `InputError` for anything else, True included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise InputError(f"{name} must be a finite number, not {shown(value)}")
    if not low <= value <= high:
        raise InputError(f"{name} must be {low:g} to {high:g}, not {shown(value)}")
    return value


def flag(name: str, value: object) -> bool:
    """True or False. Raises `InputError` for anything else, 0 and 1 included."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, not {shown(value)}")
    return value


def shown(value: object) -> str:
    """A value in a message of one line, however long it is."""
    return reprlib.repr(value)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False

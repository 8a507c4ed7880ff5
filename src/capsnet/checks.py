"""What a setting may be: whoever reads one from a file or a flag looks at it here, before it is used."""

import math
import reprlib
from typing import TypeGuard

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
    if not is_number(value):
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


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite one. True is none, nor is a whole number that no float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False

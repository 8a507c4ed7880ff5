"""The commands, one a file: a dataclass is its flags and its help, its `run` says what it does, step by step."""

from typing import Any

import tyro

from capsnet.errors import InputError
from capsnet.runs import Run


def optional(metavar: str, text: str | None = None) -> Any:
    """For a flag that is None if it is not given: its help names what it takes, and says the rest itself."""
    return tyro.conf.arg(metavar=metavar, help=text, help_behavior_hint="")


def data_of(run: Run, named: str | None) -> str:
    """The data set that --data names, or else that of the run. Raises `InputError` if there is neither."""
    if not (named or run.data):
        raise InputError("the run does not say what it was trained on; name its data set: --data")
    return named or run.data or ""

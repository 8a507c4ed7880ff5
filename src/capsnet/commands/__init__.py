"""The commands, one a file: a dataclass is its flags and its help, its `run` says what it does, step by step."""

from typing import Any

import tyro


def optional(metavar: str, text: str | None = None) -> Any:
    """For a flag that is None if it is not given: its help names what it takes, and says the rest itself."""
    return tyro.conf.arg(metavar=metavar, help=text, help_behavior_hint="")

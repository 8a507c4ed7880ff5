"""What is said to people: the options that messages name exist, and whoever asks for help gets it."""

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import get_args

import pytest

import capsnet
from capsnet import cli

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
COMMANDS = [part.name for each in get_args(cli.Command) for part in get_args(each)[1:]]
OTHERS = {"--version", "--help", "--porcelain"}
"""Of the command itself, and of git."""


@pytest.fixture(scope="module")
def flags():
    """Of all commands."""
    found = set(OTHERS)
    for command in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
            cli._parse([command, "--help"])
        found |= set(FLAG.findall(said.getvalue()))
    return found


def literals():
    """Each piece of text in the package, and where it stands."""
    for path in Path(capsnet.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.name}:{node.lineno}", node.value


def test_every_option_that_is_named_exists(flags):
    named = {(where, flag) for where, text in literals() for flag in FLAG.findall(text)}
    assert len(named) > 30
    assert not sorted((where, flag) for where, flag in named if flag not in flags)

"""What is said to people: the options that messages name exist, and whoever asks for help gets it."""

import ast
import contextlib
import io
import re
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
from process import run_python

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


def test_help_is_the_same_wherever_it_is_asked_for(capsys):
    def told(*arguments):
        with pytest.raises(SystemExit):
            cli.main(list(arguments))
        return capsys.readouterr().out

    for command, name in (("explore", "[RUN]"), ("predict", "RUN")):
        assert name in told(command, "--help").splitlines()[0]
        for flag in ("-h", "--help"):
            assert told(command, "some-run", flag) == told(command, "--help")
    assert "{None}" not in "".join(told(command, "--help") for command in COMMANDS)


@pytest.mark.parametrize(
    ("typed", "shown_by"),
    [
        (["train", "--epoch", "3"], "capsnet train --help"),
        (["train", "--recipe", "best", "--epoch", "3"], "capsnet train --help"),
        (["evaluate"], "capsnet evaluate --help"),
        (["trian"], "capsnet --help"),
        ([], "capsnet --help"),
    ],
)
def test_wrong_flags_are_answered_with_the_help_that_lists_them(capsys, typed, shown_by):
    assert cli.main(typed) == 2
    assert capsys.readouterr().err.endswith(f" ({shown_by} shows what there is)\n")


def test_the_version_is_an_attribute():
    assert capsnet.__version__ == version("capsnet")


def test_what_is_no_set_or_no_batch_is_told_in_one_line():
    """In a process of its own, without the shape checks of the test run."""
    told = run_python("""
import torch, capsnet
from torch.utils.data import DataLoader, TensorDataset

model = capsnet.CapsNet(in_shape=(1, 28, 28), num_classes=2, conv_channels=2, primary_types=1)
images = torch.rand(4, 1, 28, 28)
pairs = TensorDataset(images, torch.zeros(4))
digits = capsnet.ImageSet(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ("a", "b"))
others = [capsnet.BaselineCNN(in_shape=(1, 28, 28), num_classes=2, width=0.05)]
calls = [
    *(lambda data=data: capsnet.fit(model, data) for data in (pairs, DataLoader(pairs), (images, images), None)),
    lambda: capsnet.fit(model, digits, held_out=pairs),
    lambda: capsnet.evaluate(model, pairs),
    *(lambda model=model: model(images[0]) for model in (model, *others)),
    lambda: model.probabilities(images[0, 0]),
]
for call in calls:
    try:
        call()
    except capsnet.InputError as error:
        print(error)
""")
    lines = told.splitlines()
    assert len(lines) == 9
    assert all("ImageSet(images, labels, class_names)" in line for line in lines[:6])
    assert all("images[None]" in line for line in lines[6:8])
    assert "takes images (B, C, H, W)" in lines[8]

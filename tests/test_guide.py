"""docs/guide.md, followed from its first line to its last, as its reader would."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from fake_hub import serving_hub

from capsnet import cli

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


class Step(NamedTuple):
    kind: str
    text: str
    shown: str
    """What the guide says is printed."""


def steps(text):
    """Commands and programs, in order."""
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language == "python":
            yield Step("python", block, "")
            continue
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield Step("console", command, shown)


def masked(text):
    """Without what differs from run to run: numbers, and how wide they are."""
    return re.sub(" +", " ", re.sub(r"\d[\d.,]*(e-\d+)?", "#", text)).strip()


def agrees(said, shown):
    """Where the guide has a line with … alone, there may be any lines."""
    parts = [re.escape(masked(part)) for part in re.split(r"^…$", shown, flags=re.MULTILINE)]
    return re.fullmatch(r"\n(?:.*\n)*".join(parts), masked(said))


def in_process(arguments):
    """What a command prints, all of it; a process of its own would take seconds to start."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = cli.main(arguments)
    assert status == 0, said.getvalue()
    return said.getvalue()


def serve(arguments):
    """The first line of a command that goes on until it is interrupted."""
    command = [sys.executable, "-m", "capsnet", *arguments, "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    return line


def typed(command):
    words = shlex.split(command)
    if words[0] == "capsnet" and ">" not in words:
        return serve(words[1:]) if words[1] == "explore" else in_process(words[1:])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_program(text):
    """A program whose first line names a file is kept there, to be run by a command; any other is run."""
    if name := re.match(r"# (\w+\.py)\n", text):
        Path(name[1]).write_text(text)
        return {}
    variables = {"__name__": "__main__"}
    exec(compile(text, "guide", "exec"), variables)
    return variables


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder in which the guide was followed; each command with what it printed and should have; all variables."""
    folder = tmp_path_factory.mktemp("guide")
    threads, printed, variables = torch.get_num_threads(), [], {}
    torch.set_num_threads(1)  # what the guide shows is of one
    with pytest.MonkeyPatch.context() as patch, serving_hub(patch, folder / "hub") as hub:
        patch.chdir(folder)
        for step in steps(GUIDE.read_text()):
            if step.text.startswith(("pip install", "hf auth")):
                continue
            if step.kind == "python":
                variables |= run_program(step.text)
                continue
            said = typed(step.text).replace(hub.address, "https://huggingface.co")
            printed.append((step.text, said, step.shown))
    torch.set_num_threads(threads)
    return folder, printed, variables


def test_each_command_prints_what_the_guide_says(followed):
    _, printed, _ = followed
    assert len(printed) >= 10
    for command, said, shown in printed:
        if command.startswith("capsnet figures"):
            shown += "each as PNG and SVG, light and dark (NAME-dark)\n"
        if shown:
            assert agrees(said, shown), f"$ {command}\n{said}"


def test_the_network_of_the_guide_is_good(followed):
    folder, _, variables = followed
    report = json.loads((folder / "runs" / "shapes" / "report.json").read_text())
    assert report["test_error"] < 12
    names = ("circle", "square", "star", "triangle")
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 300
    assert all(answer["class"] in names for answer in answers)
    assert variables["lengths"].shape == (5, 4)
    assert variables["classifier"].score(variables["test"].images.numpy(), variables["test"].labels.numpy()) > 0.6


def test_the_file_of_the_guide_answers_as_the_command_does(followed):
    """The reader's own scaling is ours."""
    _, printed, _ = followed
    said = {command: said for command, said, _ in printed}
    name, length = said["python use_onnx.py"].split()
    _, other_name, other_length = said["capsnet predict runs/shapes inbox/000.png inbox/001.png"].split()[:3]
    assert name == other_name
    assert abs(float(length) - float(other_length)) < 0.01


def test_the_guide_shows_what_there_is():
    """Links lead somewhere."""
    for link in re.findall(r"\]\(([^):]+\.md)\)", GUIDE.read_text()):
        assert (GUIDE.parent / link).exists(), link

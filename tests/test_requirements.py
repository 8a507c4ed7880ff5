"""What is installed: releases known to be malicious never, and what is tested by its hashes."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def pinned(file):
    """Name and version of each release, with its hashes."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {tuple(line[0].split("==")): line[1:] for line in lines}


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_malicious_releases_are_never_installed(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [each for each in map(Requirement, project["dependencies"]) if each.name == name]
    assert not {"2.6.2", "2.6.3"} & set(wanted.specifier.filter(["2.6.1", "2.6.2", "2.6.3", "2.6.4"]))
    assert wanted.specifier.contains("2.6.4")


def test_every_tested_release_is_known_by_its_hashes():
    tested, core, dev = (pinned(file) for file in ("constraints.txt", "requirements/core.txt", "requirements/dev.txt"))
    cpu, gpu = pinned("requirements/torch-cpu.txt"), pinned("requirements/cuda.txt")
    (torch,) = [release for release in tested if release[0] == "torch"]
    assert tested.keys() == {*dev, torch}
    assert core.keys() < dev.keys()
    assert "setuptools" in {name for name, _ in core}  # which compiles the kernels
    assert torch in gpu
    assert [(name, version.partition("+")[0]) for name, version in cpu] == [torch]
    for hashes in (*core.values(), *dev.values(), *cpu.values(), *gpu.values()):
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)

"""Write down what is tested: the versions in constraints.txt, and with the hashes of all their files in requirements/.

    .venv/bin/python scripts/lock.py

In an environment in which the tests pass. Hashes are those that the package index states, for all platforms; of files
that lie on this disk, as a build of PyTorch may, they are computed. PyTorch stands apart: `torch-cpu.txt` is its build
without GPUs, which must be installed here; `cuda.txt` the index's own, with what that needs beside the rest.
"""

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version
from pip._internal.commands import create_command  # nothing else asks the index that the user has set
from pip._internal.index.collector import parse_links

ROOT = Path(__file__).parents[1]
BUILD = "setuptools"
"""Compiles the kernels when capsnet is installed."""
HEAD = "# Written by scripts/lock.py.\n"


def needed_by(name: str, extras: frozenset[str] = frozenset()) -> dict[str, str]:
    """Names and versions of all that is installed for a package, without itself."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, extras)]
    while waiting:
        package, wanted = waiting.pop()
        for each in map(Requirement, requires(package) or ()):
            applies = each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *wanted))
            key = (canonicalize_name(each.name), frozenset(each.extras))
            if applies and key not in seen:
                seen.add(key)
                waiting.append(key)
                if key[0] not in (name, "pip"):  # which is there before all others
                    found[key[0]] = version(key[0])
    return found


def needed_for_gpus(torch_version: str) -> dict[str, str]:
    """Names and versions of what the index's own PyTorch is installed with."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    environment = {**os.environ, "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    report = subprocess.check_output([*command, f"torch=={torch_version}"], env=environment)
    installed = [item["metadata"] for item in json.loads(report)["install"]]
    return {canonicalize_name(each["name"]): each["version"] for each in installed}


def open_index() -> Any:
    """Where pip is set to look for packages: the index, and folders on this disk."""
    command: Any = create_command("download")
    options, _ = command.parse_args(["capsnet"])
    with command.main_context():
        return command._build_package_finder(options, command.get_default_session(options))._link_collector


def hashes_of(index: Any, name: str, wanted: str) -> list[str]:
    """Of all wheels of a release: nothing is built from source but capsnet."""

    def links_on(page: Any) -> list[Any]:
        answer = index.fetch_response(page)
        return [] if answer is None else list(parse_links(answer))

    places = [place for places in index.collect_sources(name, links_on) for place in places if place is not None]
    found = set()
    for link in (link for place in places for link in (*place.page_candidates(), *place.file_links())):
        if is_wheel_of(link.filename, name, wanted):
            own = link.hash if link.hash_name == "sha256" else None
            found.add(own or hashlib.sha256(Path(link.file_path).read_bytes()).hexdigest())
    if not found:
        sys.exit(f"the index has no wheel of {name} {wanted}")
    return sorted(found)


def is_wheel_of(file: str, name: str, wanted: str) -> bool:
    try:
        own, release, _, _ = parse_wheel_filename(file)
    except ValueError:  # a source, or named as they were long ago
        return False
    return own == name and str(release) == wanted


def write(file: str, packages: dict[str, str], index: Any) -> None:
    blocks = [
        " \\\n    ".join([f"{name}=={wanted}", *(f"--hash=sha256:{each}" for each in hashes_of(index, name, wanted))])
        for name, wanted in sorted(packages.items())
    ]
    (ROOT / "requirements" / file).write_text(HEAD + "\n".join(blocks) + "\n")
    print(f"requirements/{file}: {len(packages)} packages")


if __name__ == "__main__":
    build = {BUILD: version(BUILD)}
    core, dev = needed_by("capsnet") | build, needed_by("capsnet", frozenset({"dev"})) | build
    installed = {"torch": core.pop("torch")}
    torch = {"torch": Version(dev.pop("torch")).public}
    gpu = {name: own for name, own in needed_for_gpus(torch["torch"]).items() if name not in dev}
    (ROOT / "constraints.txt").write_text("".join(f"{name}=={own}\n" for name, own in sorted((dev | torch).items())))
    place = open_index()
    for file, packages in (("core.txt", core), ("dev.txt", dev), ("torch-cpu.txt", installed), ("cuda.txt", gpu)):
        write(file, packages, place)

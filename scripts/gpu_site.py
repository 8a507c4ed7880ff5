"""Write into .gpu what a copy of this checkout is asked for and only an installation or Git would know.

    .venv/bin/python scripts/gpu_site.py     # the last step of: make gpu-wheels

That is the version of the package, and the commit.
"""

import tomllib
from pathlib import Path

from capsnet.experiments.records import note_commit

ROOT = Path(__file__).parents[1]


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = ROOT / ".gpu" / "site" / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (folder / "METADATA").write_text(metadata)
    note_commit(ROOT)


if __name__ == "__main__":
    main()

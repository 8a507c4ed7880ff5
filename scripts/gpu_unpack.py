"""Take apart what scripts/gpu.sh brought back, and write the tables anew.

    .venv/bin/python scripts/gpu_unpack.py gpu-results.tar.gz [--results results] [--replace]

Records go to results/runs, logs, the benchmark and the curves of the runs to results/gpu/DATE. A record that is there
already, and is another one, is kept; --replace takes the new one.
"""

import argparse
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import readme_table

from capsnet import runs
from capsnet.experiments.records import FOLDER, read_record

ROOT = Path(__file__).parents[1]


def unpack(archive: Path, results: Path, replace: bool = False) -> None:
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(archive) as opened:
        folder = Path(temporary)
        opened.extractall(folder, filter="data")
        records = {path: read_record(path) for path in sorted((folder / "results" / FOLDER).glob("*.json"))}
        for path, record in records.items():  # none, if one of them is damaged
            _take(path, record, results / FOLDER / path.name, replace)
        date = (folder / "gpu" / "parts.txt").read_text().splitlines()[0].split()[-1].partition("T")[0]
        for part in ("gpu", "runs"):
            for path in sorted((folder / part).rglob("*")):
                if path.is_file() and path.suffix != ".safetensors":
                    _write(results / "gpu" / date / path.relative_to(folder / part), path.read_bytes())


def _take(path: Path, record: dict[str, Any], place: Path, replace: bool) -> None:
    if place.exists() and runs.read_json(place) != record and not replace:
        print(f"{place} is another run and is kept; to take the new one: --replace", file=sys.stderr)
        return
    _write(place, path.read_bytes())
    print(place)


def _write(place: Path, content: bytes) -> None:
    runs.make_folder(place.parent)
    runs.write_atomically(place, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--replace", action="store_true")
    chosen = parser.parse_args()
    unpack(chosen.archive, chosen.results, chosen.replace)
    if chosen.results.resolve() == ROOT / "results":
        readme_table.write(ROOT)


if __name__ == "__main__":
    main()

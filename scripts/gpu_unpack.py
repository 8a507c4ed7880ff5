"""Take apart what scripts/gpu.sh brought back, and write the tables anew.

    .venv/bin/python scripts/gpu_unpack.py gpu-results.tar.gz [--results results] [--replace]

Records go to results/runs, logs, the benchmark and the curves of the runs to results/gpu/DATE. A record that is there
already, and is another one, is kept; --replace takes the new one.
"""

import argparse
import json
import sys
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import readme_table

from capsnet import runs
from capsnet.experiments.records import FOLDER, read_record

ROOT = Path(__file__).parents[1]


def unpack(archive: Path, results: Path, replace: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as opened:
        date = datetime.fromtimestamp(max(archive.stat().st_mtime, 0), UTC).date().isoformat()
        opened.extractall(folder, filter="data")
        _take_records(Path(folder) / "results" / FOLDER, results / FOLDER, replace)
        for part in ("gpu", "runs"):
            for path in sorted((Path(folder) / part).rglob("*")):
                if path.is_file() and path.suffix != ".safetensors":
                    place = results / "gpu" / date / path.relative_to(Path(folder) / part)
                    runs.make_folder(place.parent)
                    runs.write_atomically(place, path.read_bytes())


def _take_records(made: Path, results: Path, replace: bool) -> None:
    runs.make_folder(results)
    for path in sorted(made.glob("*.json")):
        record, place = read_record(path), results / path.name  # a damaged one ends it here
        if place.exists() and json.loads(place.read_text()) != record and not replace:
            print(f"{place} is another run and is kept; to take the new one: --replace", file=sys.stderr)
            continue
        runs.write_atomically(place, path.read_bytes())
        print(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--replace", action="store_true")
    chosen = parser.parse_args()
    unpack(chosen.archive, chosen.results, chosen.replace)
    if chosen.results.resolve() == ROOT / "results":
        readme_table.main()


if __name__ == "__main__":
    main()

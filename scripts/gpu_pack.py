"""Put what scripts/gpu.sh has made so far into one archive; with --summary, print what came of it.

    scripts/gpu_pack.py WORK OUT [--summary]

WORK holds results/ and runs/ of `capsnet reproduce`, OUT gets logs and archive. Wants nothing but Python.
"""

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

ARCHIVE = "gpu-results.tar.gz"
LIMIT = 15_000_000
"""Bytes before compression; the weights of the smaller models are added while there is room."""
LOG_LIMIT = 300_000
"""Bytes; of a longer log the end is kept."""
LINES = 100


def pack(work: Path, out: Path, weights: bool) -> None:
    partial = out / f"{ARCHIVE}.partial"
    size = 0
    with tarfile.open(partial, "w:gz", compresslevel=6) as archive:
        for name, content in _contents(work, out, weights):
            if size + len(content) > LIMIT:
                continue
            size += len(content)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    partial.replace(out / ARCHIVE)


def _contents(work: Path, out: Path, weights: bool) -> Iterator[tuple[str, bytes]]:
    """Names in the archive and what they hold, what must not be missing first."""
    for path in sorted((work / "results" / "runs").glob("*.json")):
        yield f"results/runs/{path.name}", path.read_bytes()
    for path in sorted([*out.glob("*.json"), *out.glob("*.txt")]):
        yield f"gpu/{path.name}", path.read_bytes()
    for path in sorted(out.glob("*.log")):
        yield f"gpu/{path.name}", path.read_bytes()[-LOG_LIMIT:]
    folders = work / "runs" / "reproduce"
    for pattern in ("metrics.csv", "config.json"):
        for path in sorted(folders.rglob(pattern)):
            yield f"runs/{path.relative_to(folders).as_posix()}", path.read_bytes()
    models = folders.rglob("model.safetensors") if weights else ()
    for path in sorted(models, key=lambda path: path.stat().st_size):
        yield f"runs/{path.relative_to(folders).as_posix()}", path.read_bytes()


def summary(work: Path, out: Path) -> list[str]:
    parts = (out / "parts.txt").read_text().splitlines()
    lines = [*parts, *[f"{part}: {line}" for part in _failed(parts) for line in _log(out, part)[-1:]]]
    tests = _log(out, "tests")
    lines += ["", *[line for line in tests if line.startswith(("FAILED", "ERROR"))][:20], *tests[-1:]]
    lines += ["", *_benchmark(out), ""]
    for path in sorted((work / "results" / "runs").glob("*.json")):
        record = json.loads(path.read_text())
        final, seconds = record["final"], record["seconds"]
        others = [f"{name} {value:.2f}" for name, value in final.items() if name.endswith("_error")]
        told = ", ".join([f"error {final['error']:.3f} %", *others])
        lines.append(f"{path.stem}: {told}; {seconds['training']} s to train, {seconds['testing']} s to test")
    for path in sorted(out.glob("runs-*.log")):
        lines += [line for line in _log(out, path.stem) if "left out" in line or line.endswith("failed")]
    archive = out / ARCHIVE
    return [*lines[: LINES - 1], f"{archive}: {archive.stat().st_size / 1e6:.1f} MB"]


def _failed(parts: list[str]) -> list[str]:
    return [line.partition(": ")[0] for line in parts if ": exit " in line]


def _benchmark(out: Path) -> list[str]:
    """What the benchmark has measured; also if it was cut off, as it logs each row."""
    try:
        outcome = json.loads((out / "bench.json").read_text())
        rows = [*outcome["comparison"], outcome.get("routing", {}), outcome.get("failed", {})]
    except (OSError, ValueError, KeyError):
        rows = [json.loads(line) for line in _log(out, "bench") if line.startswith("{") and line.endswith("}")]
    lines = [", ".join(f"{name} {_short(value)}" for name, value in row.items() if _is_short(value)) for row in rows]
    return [line for line in lines if line] or ["the benchmark has left no numbers; see bench.log"]


def _is_short(value: object) -> bool:
    return isinstance(value, str | int | float)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _log(out: Path, name: str) -> list[str]:
    path = out / f"{name}.log"
    text = path.read_text(errors="replace") if path.exists() else ""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def main() -> None:
    work, out, last = Path(sys.argv[1]), Path(sys.argv[2]), "--summary" in sys.argv
    pack(work, out, weights=last)
    if last:
        print("\n".join(["", *summary(work, out)]))


if __name__ == "__main__":
    main()

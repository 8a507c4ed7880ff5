"""How large a model becomes with its images: the table in docs/sizes.md.

    .venv/bin/python scripts/size_table.py

Each row is `capsnet train` in a process of its own, on random images: two steps at batch 64, a checkpoint and a test.
Memory is the largest that the process ever was, all of Python and PyTorch included.
"""

import contextlib
import io
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor

import torch

import capsnet
from capsnet import cli, data
from capsnet.benchmark.measure import peak_memory
from capsnet.stem import halved

ROWS = [((1, 28, 28), 10), ((3, 64, 64), 10), ((3, 96, 96), 43), ((3, 224, 224), 200)]
BATCH, STEPS = 64, 2


def main() -> None:
    print("| images | classes | stem | capsules see | capsules | parameters | peak memory |")
    print("|---|---:|---:|---|---|---:|---:|")
    for shape, classes in ROWS:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            print(pool.submit(measure, shape, classes).result(), flush=True)


def measure(shape: tuple[int, int, int], classes: int, *flags: str) -> str:
    """A row of the table."""

    def noise(split: str) -> capsnet.ImageSet:
        count = BATCH * (STEPS if split == "train" else 1)
        images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
        return capsnet.ImageSet(images, torch.arange(count) % classes, tuple(map(str, range(classes))))

    data.DATASETS["noise"] = noise
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = ["--data", "noise", "--epochs", "1", "--batch-size", str(BATCH), "--out", f"{folder}/run"]
        if status := cli.main(["train", *arguments, *flags]):
            raise SystemExit(status)
        peak = peak_memory(torch.device("cpu"))
        model = capsnet.load(f"{folder}/run")
    assert isinstance(model, capsnet.CapsNet)
    (rows, columns), types, depth = model.grid, model.primary.types, model.config.get("stem", 0)
    height, width = shape[1:]
    for _ in range(depth):
        height, width = halved(height), halved(width)
    count = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"| {'×'.join(map(str, (*shape[1:], shape[0])))} | {classes} | {depth} | {height}×{width} "
        f"| {rows}×{columns}×{types} = {rows * columns * types:,} | {count:,} | {peak / 1000:.2f} GB |"
    )


if __name__ == "__main__":
    main()

"""How time and memory of training grow: the tables of docs/scaling.md.

    .venv/bin/python scripts/scaling.py

First measured here, each line in a process of its own: a training step (forward, backward, Adam) for more images in a
batch, more primary capsules and more classes; then the same batch on one process and on two. Then computed: what
adding up gradients takes on networks of various speed.
"""

import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS, WARM_UP = 7, 2
BASE = {"batch": 32, "side": 28, "types": 8, "classes": 10}
VARIED = {"batch": (16, 32, 64, 128), "types": (4, 8, 16, 32), "side": (20, 28, 36, 52), "classes": (5, 10, 40, 160)}
NETWORKS = {"1 Gbit/s": 1e9 / 8, "10 Gbit/s": 1e10 / 8, "100 Gbit/s": 1e11 / 8, "NVLink, 450 GB/s": 450e9}
PROCESSES = (2, 4, 8, 16, 64)
PARAMETERS = 8_215_568
"""Of the paper's network, decoder included."""
STEP = 128 / 474
"""Seconds for 128 images on two cores without any other process (README)."""


def main() -> None:
    print("| varied | images | capsules I | classes J | parameters | ms a step | µs an image | MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, values in VARIED.items():
        for value in values:
            sizes = {**BASE, name: value}
            row = in_a_process(sizes)
            print(
                f"| {name} | {sizes['batch']} | {row['capsules']:,} | {sizes['classes']} | {row['parameters']:,} "
                f"| {row['ms']:.1f} | {1000 * row['ms'] / sizes['batch']:.0f} | {row['mib']:.0f} |",
                flush=True,
            )
    print("\n| processes | threads each | images/s |\n|---:|---:|---:|")
    for count in (1, 2):
        speed, threads = train_with(count)
        print(f"| {count} | {threads} | {speed:,.0f} |", flush=True)
    print_communication(PARAMETERS)


def in_a_process(sizes: dict[str, int]) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (sizes,))


def measure(sizes: dict[str, int]) -> dict[str, Any]:
    """Median of some steps on one core, in its seconds, which other work on the machine changes little; and how much
    more memory the process has at its most than before the model was made.
    """
    import torch

    import capsnet
    from capsnet.optimizer import AdamW

    capsnet.tune_allocator()
    torch.set_num_threads(1)
    before = _peak()
    torch.manual_seed(0)
    side = sizes["side"]
    model = capsnet.CapsNet(
        (1, side, side), sizes["classes"], conv_channels=64, primary_types=sizes["types"], decoder=False
    )
    optimizer = AdamW(model.parameters(), lr=1e-3)
    images = torch.rand(sizes["batch"], 1, side, side)
    labels = torch.arange(sizes["batch"]) % sizes["classes"]
    seconds = []
    for _ in range(WARM_UP + STEPS):
        started = time.process_time()
        optimizer.zero_grad()
        model.loss(images, labels).total.backward()
        optimizer.step()
        seconds.append(time.process_time() - started)
    return {
        "capsules": model.classes.weight.shape[1],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "ms": 1000 * statistics.median(seconds[WARM_UP:]),
        "mib": (_peak() - before) / 1024,
    }


def train_with(processes: int) -> tuple[float, int]:
    """Images a second of the second epoch, the network a quarter as wide as the paper's."""
    flags = "--limit 2000 --batch-size 128 --epochs 2 --width 0.25 --max-shift 0 --device cpu"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        subprocess.run(
            [sys.executable, "-m", "capsnet", "train", *flags.split(), "--devices", str(processes), "--out", str(out)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        report = json.loads((out / "report.json").read_text())
        speed = float((out / "metrics.csv").read_text().split()[-1].rpartition(",")[2])
        assert report["processes"] == processes
        return speed, max(1, report["threads"] // processes)


def ring_seconds(parameters: int, processes: int, bandwidth: float) -> float:
    """Each process sends, and receives, 2 (n-1)/n times 4 bytes a parameter, at so many bytes a second."""
    return 2 * (processes - 1) / processes * 4 * parameters / bandwidth


def bend(parameters: int, seconds: float, bandwidth: float) -> float:
    """As many processes as spend as long on adding up as on computing, of a step that takes one `seconds`.

    seconds / n = ring_seconds(n) has the solution n = 1 + seconds · bandwidth / (8 · parameters).
    """
    return 1 + seconds * bandwidth / (8 * parameters)


def print_communication(parameters: int) -> None:
    print(f"\n{parameters:,} parameters: {4 * parameters / 1e6:.1f} MB of gradients a step\n")
    print("| ms a step for | " + " | ".join(f"{n} processes" for n in PROCESSES) + f" | bend, {STEP:.2f} s a step |")
    print("|---|" + "---:|" * (len(PROCESSES) + 1))
    for name, bandwidth in NETWORKS.items():
        cells = (f"{1000 * ring_seconds(parameters, n, bandwidth):.3g}" for n in PROCESSES)
        print(f"| {name} | " + " | ".join(cells) + f" | {bend(parameters, STEP, bandwidth):,.1f} |")


def _peak() -> int:
    """The most memory this process has had, in KiB; macOS counts in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
